from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from stagecast.adoption import survey
from stagecast.errors import Busy, Interrupted, Unknown, WrongState
from stagecast.pieces import Piece
from stagecast.records import Record
from stagecast.repair import Repair
from stagecast.store import Store
from stagecast.verification import Findings, inspect
from tests.sample import contents_of, fill, lay_out, manifest_of

FILES = {"a": b"0123456789abcdef!", "b/two": b"zyxwvutsrq", "empty": b""}
MANIFEST = manifest_of("m", FILES, piece_size=8)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store to which the model was staged."""
    store = Store(tmp_path / "models", tmp_path / "data")
    with store.partial(MANIFEST) as partial:
        fill(partial, FILES)
        partial.publish()
    return store


class Reader:
    """Inspects, and keeps what it is told."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.checked = 0
        self.found = 0
        self.stop = threading.Event()

    def inspect(self, name: str = "m") -> Findings:
        def checked(count: int) -> None:
            self.checked += count

        def found(count: int) -> None:
            self.found += count

        return inspect(self.store, name, checked=checked, found=found, stop=self.stop)

    def repair(self) -> list[Piece]:
        findings = self.inspect()
        with Repair(self.store, findings) as repair:
            missing = repair.missing()
            fill(repair, FILES)
            repair.mend(self.stop)
        return missing


def rot(store: Store, path: str, at: int, *, unseen: bool = True) -> None:
    """Flip a byte, as a disk does that nobody told to; where ``unseen``, no time stamp tells of it."""
    with (store.models / "m" / path).open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    if unseen:
        found = survey("m", store.path("m"))
        store._records.put(Record(MANIFEST, tuple(found.values()), is_published=True))


def test_all_of_it_is_read_and_found_good(store: Store) -> None:
    reader = Reader(store)
    findings = reader.inspect()
    assert (findings.manifest, findings.files, findings.pieces) == (MANIFEST, (), ())
    assert reader.checked == reader.found == MANIFEST.size
    assert store.recorded("m") == MANIFEST


@pytest.mark.parametrize("unseen", [True, False])
def test_one_bad_piece_is_found_and_comes_alone(store: Store, unseen: bool) -> None:
    rot(store, "a", 9, unseen=unseen)
    reader = Reader(store)
    assert reader.repair() == [Piece(0, 1, 8, 8)]
    assert (reader.checked, reader.found) == (MANIFEST.size, MANIFEST.size - 8)
    assert contents_of(store.path("m")) == FILES
    assert store.recorded("m") == MANIFEST
    assert list((store.models / ".stagecast").iterdir()) == []


def test_what_is_known_to_be_bad_is_given_to_nobody_and_the_rest_still_is(store: Store) -> None:
    rot(store, "a", 0)
    assert store.recorded("m") == MANIFEST, "nobody has looked"
    Reader(store).inspect()
    assert store.recorded("m") is None
    assert store.manifest_by_digest(MANIFEST.digest) is None
    assert store.locate(MANIFEST.files[0].digest) is None
    assert store.locate(MANIFEST.files[1].digest) == (store.models / "m" / "b/two", 10)
    assert Reader(store).inspect().files == (0,), "it is remembered what it should be"


def test_what_it_should_be_outlives_being_read_in_as_it_is(store: Store) -> None:
    rot(store, "b/two", 3, unseen=False)
    found = store.manifest("m")
    assert found.digest != MANIFEST.digest
    assert store.recorded("m") == found
    assert store.expected("m") == MANIFEST
    assert Reader(store).repair() == [Piece(1, 0, 0, 8)]
    assert store.recorded("m") == MANIFEST


def test_damage_that_was_found_outlives_it_too_where_the_model_was_only_adopted(tmp_path: Path) -> None:
    store = Store(tmp_path / "models", tmp_path / "data")
    lay_out(store.models / "m", FILES)
    known = store.manifest("m")
    rotten = Record(known, tuple(survey("m", store.path("m")).values()))
    (store.models / "m" / "a").write_bytes(b"0123456789abcdeX!")
    store._records.put(Record(known, tuple(survey("m", store.path("m")).values())))
    assert rotten.manifest == known
    assert Reader(store).inspect().files == (0,)
    assert store.manifest("m") != known
    assert store.expected("m") == known


def test_files_that_somebody_put_there_and_changed_are_theirs(tmp_path: Path) -> None:
    store = Store(tmp_path / "models", tmp_path / "data")
    lay_out(store.models / "m", FILES)
    store.manifest("m")
    lay_out(store.models / "m", {"a": b"my own edit"})
    reader = Reader(store)
    assert reader.inspect().files == ()
    assert store.recorded("m") == store.manifest("m")
    assert contents_of(store.path("m"))["a"] == b"my own edit"
    assert reader.found == len(b"my own edit") + 10


@pytest.mark.parametrize("content", [None, b"", b"0123", b"0123456789abcdef!and more"])
def test_a_file_that_is_gone_or_has_another_length(store: Store, content: bytes | None) -> None:
    path = store.models / "m" / "a"
    path.unlink() if content is None else path.write_bytes(content)
    Reader(store).repair()
    assert contents_of(store.path("m")) == FILES
    assert store.recorded("m") == MANIFEST


def test_an_empty_file_that_is_gone_comes_back(store: Store) -> None:
    (store.models / "m" / "empty").unlink()
    assert Reader(store).repair() == []
    assert contents_of(store.path("m")) == FILES


def test_files_beside_it_stay(store: Store) -> None:
    rot(store, "a", 9, unseen=False)
    lay_out(store.models / "m", {"notes.txt": b"mine"})
    Reader(store).repair()
    assert contents_of(store.path("m")) == {**FILES, "notes.txt": b"mine"}
    assert store.locate(MANIFEST.files[0].digest) is not None


def test_what_else_is_linked_to_a_damaged_file_or_has_it_open_keeps_it(store: Store, tmp_path: Path) -> None:
    rot(store, "a", 9, unseen=False)
    damaged = (store.models / "m" / "a").read_bytes()
    os.link(store.models / "m" / "a", tmp_path / "link")
    with (store.models / "m" / "a").open("rb") as reader:
        Reader(store).repair()
        assert reader.read() == damaged
    assert (tmp_path / "link").read_bytes() == damaged
    assert (store.models / "m" / "a").read_bytes() == FILES["a"]


def test_a_file_keeps_its_mode(store: Store) -> None:
    rot(store, "a", 9, unseen=False)
    (store.models / "m" / "a").chmod(0o640)
    Reader(store).repair()
    assert (store.models / "m" / "a").stat().st_mode & 0o777 == 0o640


def test_pieces_that_came_for_a_repair_do_not_come_again(store: Store) -> None:
    rot(store, "a", 9)
    rot(store, "b/two", 0)
    with Repair(store, Reader(store).inspect()) as repair:
        piece = repair.missing()[0]
        repair.write(piece, 0, FILES["a"][8:16])
        repair.verify(piece)
    assert Reader(store).repair() == [Piece(1, 0, 0, 8)]
    assert contents_of(store.path("m")) == FILES


def test_nothing_is_put_right_before_all_has_come(store: Store) -> None:
    rot(store, "a", 9)
    with Repair(store, Reader(store).inspect()) as repair, pytest.raises(WrongState, match="1 pieces are missing"):
        repair.mend(threading.Event())


def test_a_revision_that_was_published_meanwhile_is_not_mixed_with_the_old_one(store: Store) -> None:
    rot(store, "a", 9)
    new = {"a": b"a new revision", "c": b"x"}
    with Repair(store, Reader(store).inspect()) as repair:
        fill(repair, FILES)
        with store.partial(manifest_of("m", new)) as partial:
            fill(partial, new)
            partial.publish()
        with pytest.raises(Busy, match="another revision"):
            repair.mend(threading.Event())
        repair.discard()
    assert contents_of(store.path("m")) == new


def test_files_that_change_while_they_are_read_are_not_judged(store: Store) -> None:
    def change(count: int) -> None:
        (store.models / "m" / "a").write_bytes(b"another content!!")

    with pytest.raises(Busy, match="whoever writes it"):
        inspect(store, "m", checked=change, found=lambda _: None, stop=threading.Event())
    assert store.recorded("m") is None


def test_it_can_be_stopped_and_asks_for_a_model(store: Store) -> None:
    reader = Reader(store)
    with pytest.raises(Unknown):
        reader.inspect("nothing")
    reader.stop.set()
    with pytest.raises(Interrupted):
        reader.inspect()
