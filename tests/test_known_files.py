from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from stagecast import gathering
from stagecast.durable import Lock
from stagecast.known_files import KnownFiles
from stagecast.manifest import PIECE_SIZE, Manifest
from stagecast.store import Store
from stagecast.transfer.bundles import Bundles
from stagecast.verification import inspect
from tests.nodes import Nodes
from tests.sample import contents_of, fill, manifest_of
from tests.test_worker import staged

STEP = 1024
BIG = bytes(range(256)) * 20
SMALL = b"b" * 3000
CONTENTS = {"a.bin": BIG, "b.bin": SMALL}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models", tmp_path / "data")


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set once somebody waits until names are made; to be set, too, once somebody has not waited for that."""
    came, take = threading.Event(), Lock.take

    def taken(lock: Lock) -> bool:
        has_it = take(lock)
        if lock._path.name == ".names" and not has_it:
            came.set()
        return has_it

    monkeypatch.setattr(Lock, "take", taken)
    return came


def publish(store: Store, name: str, contents: dict[str, bytes], piece_size: int = STEP) -> Manifest:
    manifest = manifest_of(name, contents, piece_size=piece_size)
    with store.partial(manifest) as partial:
        fill(partial, contents)
        partial.publish()
    return manifest


MANIFEST = manifest_of("m", CONTENTS, piece_size=STEP)
B = MANIFEST.files[1]

LOOKS: dict[str, Callable[[Store], object]] = {
    "read in": lambda store: store.manifest("m"),
    "recorded": lambda store: store.recorded("m"),
    "by its digest": lambda store: store.manifest_by_digest(MANIFEST.digest),
    "served": lambda store: store.locate(B.digest),
    "served in a bundle": lambda store: [part.path for part in Bundles(store).find(MANIFEST.digest, "0-7") or []],
    "a source of files": lambda store: store.files.lying({B.digest}, is_published=True),
    "a source of pieces": lambda store: store.files.pieces({B.pieces[1]}),
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_who_looks_while_names_are_made_sees_what_was_there_before(
    store: Store, looked: threading.Event, tmp_path: Path, look: Callable[[Store], object]
) -> None:
    """To link a file changes the time by which it is known, for the moment until the record says so."""
    publish(store, "m", CONTENTS)
    before = look(store)
    other = Store(store.models, store.data)
    with ThreadPoolExecutor(1) as thread:
        with store.files.keeping():
            assert store.files.link(B.digest, tmp_path / "another name")
            seen = thread.submit(look, other)
            seen.add_done_callback(lambda _: looked.set())
            assert looked.wait(60)
        assert seen.result(60) == before
    assert store.recorded("m") == MANIFEST


def test_what_was_hashed_while_names_of_other_files_were_made_is_known(store: Store, tmp_path: Path) -> None:
    """Only what nobody knew is hashed; the others may get a name meanwhile, and the record has their time then."""
    publish(store, "m", CONTENTS, PIECE_SIZE)
    (store.models / "m" / "new").write_bytes(b"put there")

    digest = manifest_of("m", CONTENTS, piece_size=PIECE_SIZE).files[1].digest

    def link(_: int) -> None:
        with store.files.keeping():
            assert store.files.link(digest, tmp_path / "another name")

    manifest = store.manifest("m", link)
    assert [file.path for file in manifest.files] == ["a.bin", "b.bin", "new"]
    assert store.recorded("m") == manifest


def test_a_model_can_be_verified_while_files_of_it_get_other_names(store: Store, tmp_path: Path) -> None:
    publish(store, "m", CONTENTS)
    names = iter(range(100))

    def link(_: int) -> None:
        with store.files.keeping():
            assert store.files.link(B.digest, tmp_path / f"name-{next(names)}")

    found = inspect(store, "m", checked=link, found=lambda _: None, stop=threading.Event())
    assert found.files == ()
    assert store.recorded("m") == MANIFEST


def test_what_is_found_damaged_leaves_the_others_known_though_they_got_names(store: Store, tmp_path: Path) -> None:
    publish(store, "m", CONTENTS)
    (store.models / "m" / "a.bin").write_bytes(b"X" + BIG[1:])
    names = iter(range(100))

    def link(_: int) -> None:
        with store.files.keeping():
            assert store.files.link(B.digest, tmp_path / f"name-{next(names)}")

    found = inspect(store, "m", checked=link, found=lambda _: None, stop=threading.Event())
    assert [piece.index for piece in found.pieces] == [0]
    assert store.files.locate(B.digest) == store.models / "m" / "b.bin"
    assert store.files.locate(MANIFEST.files[0].digest) is None


def test_a_file_that_was_written_to_while_names_were_made_is_not_known(store: Store, tmp_path: Path) -> None:
    publish(store, "m", CONTENTS)
    with store.files.keeping():
        assert store.files.link(B.digest, tmp_path / "another name")
        (store.models / "m" / "b.bin").write_bytes(b"c" * len(SMALL))
    assert store.files.locate(B.digest) is None
    assert store.recorded("m") is None


async def test_a_worker_moves_nothing_that_lies_here_though_it_looks_at_its_disk_while_names_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looked: threading.Event
) -> None:
    """The older revision, of which a file is linked, was read in anew in that moment: its pieces were lost."""
    new = {**CONTENTS, "a.bin": BIG[:STEP] + b"new" + BIG[STEP + 3 :]}
    digest, size = manifest_of("m", new, piece_size=STEP).digest, sum(map(len, new.values()))
    nodes, loop, link = Nodes(tmp_path), asyncio.get_running_loop(), KnownFiles.link
    looks: list[Future[None]] = []
    for node, contents in (("holder", new), ("w", CONTENTS)):
        publish(Store(tmp_path / node / "models", tmp_path / node), "m", contents)
    async with nodes.node("holder") as holder, nodes.worker("w") as member:
        await holder.until_held("m")
        await member.until_held("m")

        def linked(files: KnownFiles, digest: str, target: Path) -> bool:
            is_linked = link(files, digest, target)
            looks.append(asyncio.run_coroutine_threadsafe(member.node.adopt(), loop))
            looks[0].add_done_callback(lambda _: looked.set())
            assert looked.wait(60)
            return is_linked

        monkeypatch.setattr(gathering, "_clone", lambda *_: False)
        monkeypatch.setattr(KnownFiles, "link", linked)
        end = await staged(holder, "m", "w", digest=digest)
        await asyncio.wrap_future(looks[0])
        assert (end.state, end.bytes_done, end.bytes_present) == ("succeeded", size, size - STEP)
        assert holder.node.bytes_sent == STEP
        assert contents_of(member.models / "m") == new
