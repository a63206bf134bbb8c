from __future__ import annotations

import errno
import fcntl
import os
import random
import threading
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from stagecast import copying, gathering
from stagecast.errors import Interrupted
from stagecast.gathering import gather_files, gather_pieces, to_gather
from stagecast.manifest import Manifest
from stagecast.partial import Partial
from stagecast.pieces import pieces_of
from stagecast.reading import Slice
from stagecast.records import identity_of
from stagecast.store import Store
from stagecast.workshop import leftovers
from tests.sample import contents_of, fill, lay_out, manifest_of

STEP = 1024
BIG = random.Random(1).randbytes(5 * STEP + 7)
OTHER = random.Random(2).randbytes(2 * STEP)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models", tmp_path / "data")


def publish(store: Store, name: str, contents: dict[str, bytes]) -> Manifest:
    manifest = manifest_of(name, contents, piece_size=STEP)
    with store.partial(manifest) as partial:
        fill(partial, contents)
        partial.publish()
    return manifest


class Gatherer:
    """Gathers into a partial, and fills in the rest."""

    def __init__(self, store: Store, name: str, contents: dict[str, bytes]) -> None:
        self.store = store
        self.contents = contents
        self.manifest = manifest_of(name, contents, piece_size=STEP)
        self.files = 0
        self.pieces = 0
        self.as_planned = False
        self.is_deceived = False
        """Whether what lies on the disk is not what it looks like, so that a plan may err."""

    def gather(self, partial: Partial, stop: threading.Event | None = None) -> None:
        def found_file(count: int) -> None:
            self.files += count

        def found_piece(count: int) -> None:
            self.pieces += count

        planned = to_gather(self.store, self.manifest, partial.written)
        before = partial.verified_bytes
        gather_files(self.store, partial, found_file)
        gather_pieces(self.store, partial, found_piece, stop or threading.Event())
        assert partial.verified_bytes - before == self.files + self.pieces
        # A file that is changed meanwhile, or rots, is what no plan can know.
        self.as_planned = planned == (self.files, self.pieces)

    def stage(self) -> None:
        with self.store.partial(self.manifest) as partial:
            self.gather(partial)
            assert self.as_planned or self.is_deceived
            fill(partial, self.contents)
            partial.publish()
        assert contents_of(self.store.path(self.manifest.model)) == self.contents


def one_inode(*paths: Path) -> bool:
    return len({path.stat().st_ino for path in paths}) == 1


def test_a_file_of_two_models_is_stored_once_and_both_stay_known(store: Store) -> None:
    one = publish(store, "one", {"weights": BIG, "config": b"1"})
    two = Gatherer(store, "two", {"model.bin": BIG, "config": b"2"})
    two.stage()
    assert (two.files, two.pieces) == (len(BIG), 0)
    # On a file system that shares blocks they are two files; both ways the bytes lie there once.
    assert one_inode(store.models / "one" / "weights", store.models / "two" / "model.bin") or _shares_blocks(store)
    assert store.recorded("one") == one, "its time has changed, and nothing was read for that"
    assert store.recorded("two") == two.manifest


def _shares_blocks(store: Store) -> bool:
    lay_out(store.data, {"probe": b"x" * 4096})
    try:
        with (store.data / "probe").open("rb") as origin, (store.data / "copy").open("wb") as copy:
            fcntl.ioctl(copy.fileno(), 0x40049409, origin.fileno())
    except OSError:
        return False
    return True


def test_each_of_the_two_may_go_and_the_other_stays_as_it_is(store: Store) -> None:
    publish(store, "one", {"weights": BIG})
    Gatherer(store, "two", {"model.bin": BIG}).stage()
    store.remove("one")
    assert store.recorded("two") is not None
    assert (store.models / "two" / "model.bin").read_bytes() == BIG
    Gatherer(store, "three", {"w": BIG}).stage()
    publish(store, "two", {"another": OTHER})
    assert store.recorded("three") is not None
    assert contents_of(store.models / "three") == {"w": BIG}


def test_a_partial_with_linked_files_that_is_thrown_away_leaves_them_known(store: Store) -> None:
    one = publish(store, "one", {"weights": BIG})
    two = Gatherer(store, "two", {"weights": BIG, "more": OTHER})
    with store.partial(two.manifest) as partial:
        two.gather(partial)
        partial.discard()
    assert store.recorded("one") == one


def test_a_leftover_with_linked_files_that_is_cleaned_leaves_them_known(store: Store) -> None:
    one = publish(store, "one", {"weights": BIG})
    two = Gatherer(store, "two", {"weights": BIG, "more": OTHER})
    with store.partial(two.manifest) as partial:
        two.gather(partial)
    [leftover] = leftovers(store.models, 0.0)
    store.remove_leftover(leftover)
    assert leftovers(store.models, 0.0) == []
    assert store.recorded("one") == one


def test_files_that_people_have_put_there_are_not_linked_but_copied(store: Store) -> None:
    manifest = manifest_of("theirs", {"weights": BIG}, piece_size=STEP)
    lay_out(store.models / "theirs", {"weights": BIG})
    store.vouch(manifest, [identity_of(store.models / "theirs" / "weights")])
    mine = Gatherer(store, "mine", {"weights": BIG})
    mine.stage()
    assert mine.files + mine.pieces == len(BIG)
    (store.models / "theirs" / "weights").write_bytes(b"edited in place")
    assert contents_of(store.models / "mine") == {"weights": BIG}
    assert store.recorded("mine") == mine.manifest


def test_a_file_that_was_changed_is_no_source(store: Store) -> None:
    publish(store, "one", {"weights": BIG})
    times = (store.models / "one" / "weights").stat()
    with (store.models / "one" / "weights").open("r+b") as file:
        file.write(b"X")
    os.utime(store.models / "one" / "weights", ns=(times.st_atime_ns, times.st_mtime_ns))
    two = Gatherer(store, "two", {"weights": BIG})
    two.stage()
    assert (two.files, two.pieces) == (0, 0)


def test_pieces_of_an_older_revision_are_copied_and_only_the_others_have_to_come(store: Store) -> None:
    publish(store, "m", {"weights": BIG, "gone": OTHER})
    newer = BIG[:STEP] + b"\xff" * STEP + BIG[2 * STEP :]
    new = Gatherer(store, "m", {"weights": newer, "moved/there": b"front" * 300 + OTHER})
    with store.partial(new.manifest) as partial:
        new.gather(partial)
        assert [piece.index for piece in partial.missing() if piece.file == 1] == [1]
        assert new.pieces == len(BIG) - STEP, "nothing of what does not begin where a piece does"
        assert new.as_planned
        fill(partial, new.contents)
        partial.publish()
    assert contents_of(store.path("m")) == new.contents


def test_a_piece_that_lies_about_itself_is_not_taken(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    old = publish(store, "m", {"weights": BIG})
    newer = BIG + b"more"
    # As where the disk has rotted without a sign: the record fits, the bytes do not.
    path = store.models / "m" / "weights"
    path.write_bytes(b"\0" + BIG[1:])
    store.vouch(old, [identity_of(path)])
    new = Gatherer(store, "m", {"weights": newer})
    with store.partial(new.manifest) as partial:
        new.gather(partial)
        assert [piece.index for piece in partial.missing()] == [0, 5]
        fill(partial, new.contents)
        partial.publish()
    assert contents_of(store.path("m")) == {"weights": newer}


def test_where_the_kernel_cannot_copy_it_is_read_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    lay_out(tmp_path, {"from": BIG, "to": bytes(len(BIG))})
    digest = copying.copied(Slice(tmp_path / "from", 5, 3000), tmp_path / "to", 100, threading.Event())
    assert (tmp_path / "to").read_bytes()[100:3100] == BIG[5:3005]
    assert digest == manifest_of("x", {"x": BIG[5:3005]}, piece_size=4096).files[0].pieces[0]
    assert copying.copied(Slice(tmp_path / "from", 5, 9999), tmp_path / "to", 0, threading.Event()) == ""


def test_it_can_be_stopped(store: Store) -> None:
    publish(store, "m", {"weights": BIG})
    stop = threading.Event()
    stop.set()
    new = Gatherer(store, "m", {"weights": BIG + b"more"})
    with store.partial(new.manifest) as partial, pytest.raises(Interrupted):
        new.gather(partial, stop)


def test_a_linked_file_is_never_written_to(store: Store) -> None:
    publish(store, "one", {"weights": BIG})
    two = Gatherer(store, "two", {"weights": BIG, "more": OTHER})
    with store.partial(two.manifest) as partial:
        gather_files(store, partial, lambda _: None)
        linked = [piece for piece in pieces_of(two.manifest) if piece.file == 1]
        first = linked[0]
        with pytest.raises(ValueError, match="cannot be written"):
            partial.write(first, 0, b"x")
        is_linked = one_inode(store.models / "one" / "weights", partial.folder / "files" / "weights")
        assert is_linked is not _shares_blocks(store)
        partial.forget(first)
        # A second name is let go as a whole; of a copy that shares blocks the rest stays.
        assert list(map(partial.written, linked)) == [0] + [0 if is_linked else each.length for each in linked[1:]]
        partial.write(first, 0, b"x" * 10)
    assert contents_of(store.models / "one") == {"weights": BIG}
    # The same after a crash between the link and its mark: what is not known to be whole is made anew.
    with store.partial(two.manifest) as partial:
        path = partial.folder / "files" / "weights"
        path.unlink()
        os.link(store.models / "one" / "weights", path)
    with store.partial(two.manifest) as partial:
        fill(partial, two.contents)
        partial.publish()
    assert contents_of(store.models / "one") == {"weights": BIG}
    assert not one_inode(store.models / "one" / "weights", store.models / "two" / "weights")


def test_a_file_that_is_changed_while_its_blocks_are_shared_is_not_taken_for_good(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store, "one", {"weights": BIG})
    two = Gatherer(store, "two", {"weights": BIG})

    def clone(source: Path, target: Path) -> bool:
        source.write_bytes(OTHER)
        target.write_bytes(OTHER)
        return True

    monkeypatch.setattr(gathering, "_clone", clone)
    two.is_deceived = True
    two.stage()
    assert two.files == 0


def test_a_shared_volume_is_known_by_what_lies_there_not_by_who_says_so(tmp_path: Path) -> None:
    here = Store(tmp_path / "models", tmp_path / "here")
    manifest = publish(here, "m", {"weights": BIG})
    there = Store(tmp_path / "models", tmp_path / "there")
    assert there.recorded("m") is None, "another machine's record is not believed"
    read: list[int] = []
    assert there.manifest("m", read.append).files[0].size == manifest.files[0].size
    assert sum(read) == len(BIG)
    (tmp_path / "models" / "m" / "weights").write_bytes(b"\0" + BIG[1:])
    assert here.recorded("m") is None
    assert there.recorded("m") is None


class SharingMachine(RuleBasedStateMachine):
    """Models that share files come and go: none ever changes by what happens to another, and none is forgotten."""

    @initialize()
    def begin(self) -> None:
        self.home = TemporaryDirectory()
        self.store = Store(Path(self.home.name, "models"), Path(self.home.name, "data"))
        self.models: dict[str, dict[str, bytes]] = {}

    @rule(name=st.sampled_from("mno"), one=st.sampled_from([BIG, OTHER]), two=st.sampled_from([BIG, OTHER, b"x"]))
    def stage(self, name: str, one: bytes, two: bytes) -> None:
        Gatherer(self.store, name, {"a": one, "b": two}).stage()
        self.models[name] = {"a": one, "b": two}

    @rule(name=st.sampled_from("mno"))
    def remove(self, name: str) -> None:
        if self.models.pop(name, None):
            self.store.remove(name)

    @invariant()
    def all_are_known_and_right(self) -> None:
        for name, contents in getattr(self, "models", {}).items():
            assert contents_of(self.store.path(name)) == contents
            assert self.store.recorded(name) == manifest_of(name, contents, piece_size=STEP)

    def teardown(self) -> None:
        if hasattr(self, "home"):
            self.home.cleanup()


SharingMachine.TestCase.settings = settings(max_examples=15, stateful_step_count=10, deadline=None)
TestSharingMachine = SharingMachine.TestCase
