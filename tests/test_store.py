from __future__ import annotations

import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from stagecast.durable import Lock
from stagecast.errors import Interrupted, InvalidManifest, NotEnoughSpace, Unknown, WrongState
from stagecast.manifest import check, encode
from stagecast.pieces import pieces_of
from stagecast.records import Record, Records
from stagecast.store import PartialState, Store
from tests.sample import contents_of, fill, lay_out, manifest_of

FILES = {"model.safetensors": b"weights" * 100, "tokenizer/vocab.json": b"{}", ".hidden": b"kept", "empty": b""}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models", tmp_path / "data", node="node-1")


def again(store: Store) -> Store:
    """Return the store of another process with the same folders."""
    return Store(store.models, store.data, store.node)


def test_each_file_or_folder_is_a_model(store: Store) -> None:
    lay_out(store.models, {"b/x": b"1", "a.gguf": b"2", ".hidden/x": b"3", ".stagecast/junk": b"4"})
    (store.models / "dangling").symlink_to("nowhere")
    os.mkfifo(store.models / "pipe")
    assert store.names() == ["a.gguf", "b"]
    assert store.path("b") == store.models / "b"


@pytest.mark.parametrize("name", ["nothing", ".stagecast", "../models", "", "a/b", "..", "\udcff", "nul\0"])
def test_what_is_no_model_is_unknown(store: Store, name: str) -> None:
    lay_out(store.models, {"b/x": b"1", "a/b": b"2"})
    for ask in (store.path, store.manifest, store.remove):
        with pytest.raises(Unknown, match=r"no model .*known: a, b"):
            ask(name)
    assert store.recorded(name) is None


def test_a_folder_is_adopted_whole(store: Store) -> None:
    lay_out(store.models / "m", FILES | {".git/config": b"not a part of it"})
    moved: list[int] = []
    manifest = store.manifest("m", moved.append)
    check(manifest)
    assert manifest == manifest_of("m", FILES, piece_size=manifest.piece_size)
    assert sum(moved) == manifest.size
    for file in manifest.files:
        assert store.locate(file.digest) == (store.models / "m" / file.path, file.size)


def test_a_single_file_is_adopted(store: Store) -> None:
    lay_out(store.models, {"m.gguf": b"weights"})
    manifest = store.manifest("m.gguf")
    assert manifest == manifest_of("m.gguf", {"m.gguf": b"weights"}, single=True, piece_size=manifest.piece_size)
    assert store.locate(manifest.files[0].digest) == (store.models / "m.gguf", 7)
    assert store.manifest_by_digest(manifest.digest) == manifest


def test_only_what_changed_is_hashed_again_also_by_another_process(store: Store) -> None:
    lay_out(store.models / "m", {"a": b"1" * 10, "b": b"2" * 20})
    store.manifest("m")
    moved: list[int] = []
    assert again(store).manifest("m", moved.append) == store.recorded("m")
    assert moved == []
    lay_out(store.models / "m", {"b": b"3" * 20, "c": b"4" * 5})
    assert store.recorded("m") is None
    assert store.manifest("m", moved.append) == again(store).recorded("m")
    assert sum(moved) == 25
    (store.models / "m" / "a").unlink()
    assert [file.path for file in store.manifest("m", moved.append).files] == ["b", "c"]
    assert sum(moved) == 25


def test_a_copy_that_keeps_the_time_is_seen(store: Store) -> None:
    lay_out(store.models, {"m": b"one"})
    lay_out(store.data, {"other": b"two"})
    old = store.manifest("m")
    times = (store.models / "m").stat()
    os.utime(store.data / "other", ns=(times.st_atime_ns, times.st_mtime_ns))
    with (store.models / "m").open("r+b") as file:
        file.write(b"two")
    os.utime(store.models / "m", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert store.locate(old.files[0].digest) is None
    assert store.manifest_by_digest(old.digest) is None
    assert store.manifest("m") != old


def test_a_change_right_after_hashing_is_seen(store: Store) -> None:
    # Without heed for the clock's tick both contents could carry one time stamp.
    for number in range(20):
        (store.models / "m").write_bytes(b"%02d" % number)
        manifest = store.manifest("m")
        assert manifest == manifest_of("m", {"m": b"%02d" % number}, single=True, piece_size=manifest.piece_size)


def test_links_to_files_count_and_others_do_not(store: Store, tmp_path: Path) -> None:
    lay_out(tmp_path / "blobs", {"abc": b"weights", "folder/x": b"y"})
    lay_out(store.models / "m", {"config": b"{}"})
    (store.models / "m" / "weights").symlink_to(tmp_path / "blobs" / "abc")
    (store.models / "m" / "gone").symlink_to("nowhere")
    (store.models / "m" / "folder").symlink_to(tmp_path / "blobs" / "folder")
    os.mkfifo(store.models / "m" / "pipe")
    assert {file.path: file.size for file in store.manifest("m").files} == {"config": 2, "weights": 7}


def test_a_folder_without_files_says_so(store: Store) -> None:
    (store.models / "m").mkdir()
    with pytest.raises(InvalidManifest, match="no files"):
        store.manifest("m")
    assert store.remove("m") == 0


def test_a_name_that_no_manifest_can_hold_says_so(store: Store) -> None:
    (store.models / "m").mkdir()
    (store.models / "m" / "bad\udcff").write_bytes(b"x")
    with pytest.raises(InvalidManifest, match="rename the file"):
        store.manifest("m")
    store.remove("m")
    assert store.names() == []


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"manifest": 3}', b"\xff" * 50])
def test_a_corrupt_record_is_made_again(store: Store, data: bytes) -> None:
    lay_out(store.models / "m", FILES)
    manifest = store.manifest("m")
    (store.data / "manifests" / "m.json").write_bytes(data)
    assert store.recorded("m") is None
    assert store.locate(manifest.files[0].digest) is None
    assert store.manifest("m") == manifest
    assert again(store).recorded("m") == manifest


def test_a_full_data_folder_is_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(28, "no space left")

    lay_out(store.models / "m", FILES)
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(NotEnoughSpace, match=r"node-1: .*data"):
        store.manifest("m")
    monkeypatch.undo()
    assert store.manifest("m") == store.recorded("m")


def test_a_record_fails_before_a_publication_ends_and_can_be_repeated(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = manifest_of("m", FILES)
    real = Records.put

    def refuse(records: Records, record: Record) -> None:
        raise OSError(28, "no space left")

    with store.partial(manifest) as partial:
        fill(partial, FILES)
        monkeypatch.setattr(Records, "put", refuse)
        with pytest.raises(NotEnoughSpace):
            partial.publish()
        monkeypatch.setattr(Records, "put", real)
        assert partial.publish() == store.models / "m"
    assert store.recorded("m") == manifest


def test_hashing_is_done_once_however_many_want_it(store: Store) -> None:
    lay_out(store.models / "m", {"a": b"x" * 50_000_000})
    moved: list[int] = []
    with ThreadPoolExecutor(4) as executor:
        manifests = list(executor.map(lambda one: one.manifest("m", moved.append), [again(store) for _ in range(4)]))
    assert manifests == [manifests[0]] * 4
    assert sum(moved) == 50_000_000


def test_hashing_and_waiting_for_it_can_be_stopped(store: Store) -> None:
    lay_out(store.models / "m", {"a": b"x" * 1000})
    stop = threading.Event()
    stop.set()
    with pytest.raises(Interrupted):
        store.manifest("m", stop=stop)
    lock = Lock(store.data / "locks" / "m")
    assert lock.take()
    with pytest.raises(Interrupted):
        store.manifest("m", stop=stop)
    lock.release()
    assert store.manifest("m").size == 1000


def test_what_is_published_is_recorded_and_never_hashed(store: Store) -> None:
    manifest = manifest_of("m", FILES, piece_size=64)
    with store.partial(manifest) as partial:
        fill(partial, FILES)
        assert store.names() == []
        assert partial.publish() == store.models / "m"
    assert contents_of(store.models / "m") == FILES
    moved: list[int] = []
    assert again(store).manifest("m", moved.append) == store.manifest_by_digest(manifest.digest) == manifest
    assert moved == []


def test_a_single_file_is_published_and_located(store: Store) -> None:
    manifest = manifest_of("m", {"upstream-name.gguf": b"weights"}, single=True)
    with store.partial(manifest) as partial:
        fill(partial, {"upstream-name.gguf": b"weights"})
        partial.publish()
    assert contents_of(store.models / "m") == {"m": b"weights"}
    assert store.recorded("m") == store.manifest("m") == manifest
    assert store.locate(manifest.files[0].digest) == (store.models / "m", 7)


def test_a_draft_is_published_like_a_partial(store: Store) -> None:
    working = store.models / ".stagecast" / "draft-m"
    lay_out(working / "files", FILES)
    manifest = manifest_of("m", FILES)
    assert not store.was_published(working, manifest)
    assert store.publish(working, manifest) == store.models / "m"
    assert store.recorded("m") == manifest
    assert not working.exists()


def test_what_another_process_records_is_found_here(store: Store) -> None:
    lay_out(store.models, {"one": b"same", "two/x": b"same"})
    digest = store.manifest("one").files[0].digest
    assert again(store).manifest("two").files[0].digest == digest
    again(store).remove("one")
    assert store.locate(digest) == (store.models / "two" / "x", 4)
    again(store).remove("two")
    assert store.locate(digest) is None


def test_only_what_lies_there_is_recorded(store: Store) -> None:
    lay_out(store.models / "m", {"a": b"123"})
    with pytest.raises(WrongState, match="record"):
        store.record(manifest_of("m", {"a": b"1234"}))
    with pytest.raises(WrongState, match="record"):
        store.record(manifest_of("m", {"a": b"123", "b": b""}))
    with pytest.raises(Unknown):
        store.record(manifest_of("other", {"a": b"123"}))


def test_partials_are_listed_also_those_that_nobody_can_read(store: Store) -> None:
    manifest = manifest_of("m", FILES, piece_size=100)
    with store.partial(manifest) as partial:
        piece = next(pieces_of(manifest))
        partial.write(piece, 0, b"kep")
        assert store.partials() == again(store).partials() == [PartialState("m", manifest.digest, 3, manifest.size)]
    broken = store.models / ".stagecast" / "partial-0-x"
    broken.mkdir()
    (broken / "manifest.json").write_bytes(encode(manifest)[:-5])
    assert store.partials()[0] == PartialState("?", "?", 0, 0)
    with store.partial(manifest) as partial:
        partial.discard()
    assert len(store.partials()) == 1


def test_removing_tells_the_bytes_and_leaves_nothing(store: Store) -> None:
    lay_out(store.models / "m", FILES)
    manifest = store.manifest("m")
    assert store.remove("m") == manifest.size
    assert not (store.models / "m").exists()
    assert list((store.models / ".stagecast").iterdir()) == []
    assert list((store.data / "manifests").iterdir()) == []
    assert store.recorded("m") is None
    assert store.manifest_by_digest(manifest.digest) is None
    with pytest.raises(Unknown):
        store.remove("m")


def test_removing_a_link_leaves_what_it_points_to(store: Store, tmp_path: Path) -> None:
    lay_out(tmp_path / "elsewhere", FILES)
    (store.models / "m").symlink_to(tmp_path / "elsewhere")
    assert store.manifest("m").size == sum(map(len, FILES.values()))
    assert store.remove("m") == 0
    assert contents_of(tmp_path / "elsewhere") == FILES


def test_space_is_promised_once(store: Store) -> None:
    space = store.space()
    assert 0 < space.free <= space.total
    with store.reserve(1000), pytest.raises(NotEnoughSpace, match=r"node-1: .* \(7 are there already\)") as caught:
        store.reserve(space.total + 1, present=7).__enter__()
    assert (caught.value.needed, caught.value.present) == (space.total + 1, 7)
    assert caught.value.free <= space.total - 1000


def test_a_record_outlives_the_folder_only_as_nothing(store: Store) -> None:
    lay_out(store.models / "m", FILES)
    manifest = store.manifest("m")
    shutil.rmtree(store.models / "m")
    assert store.recorded("m") is None
    assert store.locate(manifest.files[1].digest) is None


class StoreMachine(RuleBasedStateMachine):
    """Whatever is done to the files, by whomever: a manifest always tells what lies there."""

    @initialize()
    def begin(self) -> None:
        self.home = TemporaryDirectory()
        self.stores = [Store(Path(self.home.name, "models"), Path(self.home.name, "data")) for _ in range(2)]
        self.models: dict[str, dict[str, bytes]] = {}

    @rule(name=st.sampled_from("mn"), path=st.sampled_from(["a", "b", "c/d"]), content=st.binary(max_size=3))
    def write(self, name: str, path: str, content: bytes) -> None:
        lay_out(self.stores[0].models / name, {path: content})
        self.models.setdefault(name, {})[path] = content

    @rule(name=st.sampled_from("mn"), which=st.integers(0, 1))
    def remove(self, name: str, which: int) -> None:
        if name in self.models:
            assert self.stores[which].remove(name) == sum(map(len, self.models.pop(name).values()))

    @rule(name=st.sampled_from("mn"), which=st.integers(0, 1), content=st.binary(max_size=5))
    def publish(self, name: str, which: int, content: bytes) -> None:
        manifest = manifest_of(name, {"a": content}, piece_size=2)
        with self.stores[which].partial(manifest) as partial:
            fill(partial, {"a": content})
            partial.publish()
        self.models[name] = {"a": content}

    @rule(name=st.sampled_from("mn"), which=st.integers(0, 1))
    def hash(self, name: str, which: int) -> None:
        if name in self.models:
            manifest = self.stores[which].manifest(name)
            assert manifest == manifest_of(name, self.models[name], piece_size=manifest.piece_size)

    @invariant()
    def tells_the_truth(self) -> None:
        for store in getattr(self, "stores", []):
            assert store.names() == sorted(self.models)
            for name, contents in self.models.items():
                held = store.recorded(name)
                assert held is None or held == manifest_of(name, contents, piece_size=held.piece_size)
                for file in held.files if held else ():
                    located = store.locate(file.digest)
                    assert located
                    assert located[0].read_bytes() == contents[file.path]

    def teardown(self) -> None:
        if hasattr(self, "home"):
            self.home.cleanup()


StoreMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)
TestStoreMachine = StoreMachine.TestCase


def test_discarding_partials_of_a_model_leaves_those_of_others(store: Store) -> None:
    for name in ("m", "other"):
        manifest = manifest_of(name, FILES, piece_size=100)
        with store.partial(manifest) as partial:
            partial.write(next(pieces_of(manifest)), 0, b"kep")
    assert store.discard_partials("m") > 0
    assert [state.name for state in store.partials()] == ["other"]
    assert store.discard_partials("nothing") == 0
