from __future__ import annotations

import errno
import os
import signal
import threading
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from stagecast import part_files
from stagecast import partial as partial_module
from stagecast.errors import Busy, InvalidManifest, InvalidName, NotEnoughSpace, WrongState
from stagecast.manifest import Manifest
from stagecast.partial import VERIFIED, Partial, read_status
from stagecast.pieces import Piece, pieces_of
from tests.killing import dying_at, in_child
from tests.sample import contents_of, fill, manifest_of

CONTENTS = {"a": b"0123456789abcdef!", "b/empty": b"", "b/two": b"zyxwvutsrq"}
MANIFEST = manifest_of("model", CONTENTS, piece_size=8)
PIECES = list(pieces_of(MANIFEST))


def ignore(manifest: Manifest) -> None:
    pass


def open_partial(models: Path, manifest: Manifest = MANIFEST) -> Partial:
    return Partial(models, manifest, ignore, node="node-1")


def folder_of(models: Path, manifest: Manifest = MANIFEST) -> Path:
    return models / ".stagecast" / f"partial-{manifest.digest[:16]}-{manifest.model}"


def crash(partial: Partial) -> None:
    """Let go of everything as a killed process does: nothing is settled."""
    partial._close()


def content_of(piece: Piece) -> bytes:
    return CONTENTS[MANIFEST.files[piece.file].path][piece.offset : piece.offset + piece.length]


class PartialMachine(RuleBasedStateMachine):
    """A partial equals its model, whatever is done in whatever order, and crashes at any step."""

    @initialize()
    def begin(self) -> None:
        self.home = TemporaryDirectory()
        self.models = Path(self.home.name)
        self.written = dict.fromkeys(PIECES, 0)
        self.verified: set[Piece] = set()
        self.settled: set[Piece] = set()
        self.partial = open_partial(self.models).__enter__()

    @rule(piece=st.sampled_from(PIECES), count=st.integers(1, 8))
    def write(self, piece: Piece, count: int) -> None:
        start = self.written[piece]
        part = content_of(piece)[start : start + count]
        if piece in self.verified:
            with pytest.raises(ValueError, match="cannot be written"):
                self.partial.write(piece, 0, b"x")
        elif part:
            self.partial.write(piece, start, memoryview(part))
            self.written[piece] += len(part)

    @rule(piece=st.sampled_from(PIECES))
    def verify(self, piece: Piece) -> None:
        if self.written[piece] == piece.length:
            self.partial.verify(piece)
            self.verified.add(piece)
        else:
            with pytest.raises(ValueError, match="cannot be verified"):
                self.partial.verify(piece)

    @rule(pieces=st.sets(st.sampled_from(PIECES), min_size=1))
    def fill(self, pieces: set[Piece]) -> None:
        arrived = [(piece, memoryview(content_of(piece))) for piece in PIECES if piece in pieces]
        if pieces & self.verified:
            with pytest.raises(ValueError, match="cannot fill"):
                self.partial.fill(arrived)
        else:
            self.partial.fill(arrived)
            self.written.update((piece, piece.length) for piece in pieces)
            self.verified |= pieces

    @rule(piece=st.sampled_from(PIECES))
    def forget(self, piece: Piece) -> None:
        self.partial.forget(piece)
        self.written[piece] = 0
        self.verified.discard(piece)
        self.settled.discard(piece)

    @rule()
    def leave_and_come_back(self) -> None:
        self.partial.__exit__(None, None, None)
        self.settled = set(self.verified)
        self.partial = open_partial(self.models).__enter__()

    @rule()
    def crash_and_come_back(self) -> None:
        crash(self.partial)
        self.partial = open_partial(self.models).__enter__()
        found = {piece for piece in PIECES if self.partial.is_verified(piece)}
        assert self.settled <= found <= self.verified
        self.verified, self.settled = found, set(found)

    @rule(length=st.integers(0, 4 * len(PIECES)))
    def crash_and_lose_the_end_of_the_status(self, length: int) -> None:
        self.partial.__exit__(None, None, None)
        os.truncate(folder_of(self.models) / "status", length)
        self.partial = open_partial(self.models).__enter__()
        for piece in PIECES[length // 4 :]:
            self.written[piece] = 0
            self.verified.discard(piece)
        self.settled = set(self.verified)

    @rule()
    def nobody_else_gets_in(self) -> None:
        with pytest.raises(Busy, match="process"):
            open_partial(self.models).__enter__()

    @precondition(lambda self: len(self.verified) < len(PIECES))
    @rule()
    def what_is_not_whole_is_not_published(self) -> None:
        with pytest.raises(WrongState):
            self.partial.publish()

    @precondition(lambda self: len(self.verified) == len(PIECES))
    @rule()
    def publish(self) -> None:
        assert contents_of(self.partial.publish()) == CONTENTS
        self.partial.publish()
        self.partial.__exit__(None, None, None)
        self.home.cleanup()
        self.begin()

    @rule()
    def discard(self) -> None:
        assert self.partial.discard() == sum(self.written.values())
        self.partial.__exit__(None, None, None)
        self.home.cleanup()
        self.begin()

    @invariant()
    def equals_the_model(self) -> None:
        for piece in PIECES:
            assert self.partial.written(piece) == self.written[piece]
            assert self.partial.is_verified(piece) == (piece in self.verified)
            if self.written[piece]:
                read = b"".join(map(bytes, self.partial.read(piece, self.written[piece])))
                assert read == content_of(piece)[: self.written[piece]]
        assert self.partial.missing() == [piece for piece in PIECES if piece not in self.verified]
        assert self.partial.verified_bytes == sum(piece.length for piece in self.verified)

    def teardown(self) -> None:
        if hasattr(self, "partial"):
            self.partial.__exit__(None, None, None)
            self.home.cleanup()


PartialMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


class TestPartialMachine(PartialMachine.TestCase):  # type: ignore[misc, name-defined]
    """Settled at every second piece, so that both the settled and the unsettled occur."""

    @pytest.fixture(autouse=True)
    def settle_often(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(partial_module, "SYNC_EVERY", 16)


def test_what_a_killed_process_had_written_is_there(tmp_path: Path) -> None:
    def work() -> None:
        partial = open_partial(tmp_path).__enter__()
        partial.write(PIECES[0], 0, content_of(PIECES[0]))
        partial.verify(PIECES[0])
        partial._settle()
        partial.write(PIECES[1], 0, content_of(PIECES[1])[:5])
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(work) == -signal.SIGKILL
    with open_partial(tmp_path) as partial:
        assert partial.is_verified(PIECES[0])
        assert partial.written(PIECES[1]) == 5
        assert b"".join(map(bytes, partial.read(PIECES[1], 5))) == content_of(PIECES[1])[:5]


def test_killed_at_every_step_of_a_transfer_no_verified_piece_moves_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partial_module, "SYNC_EVERY", 1)
    steps = 0

    def work() -> None:
        with open_partial(models) as partial:
            fill(partial, CONTENTS)

    while True:
        steps += 1
        models = tmp_path / str(steps)
        models.mkdir()
        code = in_child(dying_at(steps, work))
        with open_partial(models) as partial:
            for piece in PIECES:
                count = partial.written(piece)
                assert b"".join(map(bytes, partial.read(piece, count))) == content_of(piece)[:count] if count else True
            fill(partial, CONTENTS)
            assert contents_of(partial.publish()) == CONTENTS
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert steps > 15


def test_the_status_says_verified_only_after_the_data_is_safe(tmp_path: Path) -> None:
    status = folder_of(tmp_path) / "status"
    with open_partial(tmp_path) as partial:
        fill(partial, CONTENTS)
        assert read_status(status, PIECES) == [piece.length for piece in PIECES]
    assert read_status(status, PIECES) == [VERIFIED] * len(PIECES)


@pytest.mark.parametrize("data", [b"", b"\x01", b"\xff" * 3, b"\xfe" * 400, bytes(100), b"\xfe" * 4 * len(PIECES)])
def test_a_broken_status_counts_as_nothing(tmp_path: Path, data: bytes) -> None:
    with open_partial(tmp_path) as partial:
        fill(partial, CONTENTS)
    (folder_of(tmp_path) / "status").write_bytes(data)
    with open_partial(tmp_path) as partial:
        assert partial.missing() == PIECES
        assert partial.verified_bytes == 0
        assert sum(map(partial.written, PIECES)) == 0
    assert (folder_of(tmp_path) / "status").stat().st_size == 4 * len(PIECES)


def test_a_lost_status_and_a_corrupt_manifest_are_made_again(tmp_path: Path) -> None:
    with open_partial(tmp_path) as partial:
        fill(partial, CONTENTS)
    (folder_of(tmp_path) / "status").unlink()
    (folder_of(tmp_path) / "manifest.json").write_bytes(b"{nonsense")
    with open_partial(tmp_path) as partial:
        assert partial.missing() == PIECES
        fill(partial, CONTENTS)
        assert contents_of(partial.publish()) == CONTENTS


@pytest.mark.parametrize("size", [None, 3, 1000])
def test_a_file_that_is_gone_or_has_another_size_is_fetched_again(tmp_path: Path, size: int | None) -> None:
    with open_partial(tmp_path) as partial:
        fill(partial, CONTENTS)
    victim = folder_of(tmp_path) / "files" / "a"
    victim.unlink() if size is None else os.truncate(victim, size)
    with open_partial(tmp_path) as partial:
        assert partial.missing() == [piece for piece in PIECES if piece.file == 0]
        fill(partial, CONTENTS)
        assert contents_of(partial.publish()) == CONTENTS


def test_one_thread_at_a_time_writes_to_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel lets only one do that; a second one would wait on a core, and sleeps for its turn instead."""
    real, taken = part_files.write_all, list[list[bool]]()

    def write(descriptor: int, buffer: memoryview, offset: int) -> None:
        taken.append([turn.locked() for turn in partial.files._turns])
        real(descriptor, buffer, offset)

    monkeypatch.setattr(part_files, "write_all", write)
    with open_partial(tmp_path) as partial:
        for piece in PIECES[:2]:
            partial.write(piece, 0, content_of(piece))
        assert PIECES[0].file == PIECES[1].file
        assert [turns.count(True) for turns in taken] == [1, 1]
        assert taken[0] == taken[1]
        assert not any(turn.locked() for turn in partial.files._turns)


def test_pieces_may_come_in_any_order_from_many_threads(tmp_path: Path) -> None:
    content = os.urandom(500_000)
    manifest = manifest_of("big", {"w": content}, piece_size=1000)
    with open_partial(tmp_path, manifest) as partial:
        todo = list(reversed(partial.missing()))

        def work() -> None:
            while True:
                try:
                    piece = todo.pop()
                except IndexError:
                    return
                partial.write(piece, 0, content[piece.offset : piece.offset + 400])
                partial.write(piece, 400, content[piece.offset + 400 : piece.offset + piece.length])
                partial.verify(piece)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert partial.verified_bytes == len(content)
        assert contents_of(partial.publish()) == {"w": content}


def test_nothing_stands_under_the_final_name_before_it_is_whole(tmp_path: Path) -> None:
    with open_partial(tmp_path) as partial:
        for piece in PIECES:
            assert not (tmp_path / "model").exists()
            partial.write(piece, 0, content_of(piece))
            partial.verify(piece)
        partial.publish()
    assert contents_of(tmp_path / "model") == CONTENTS
    assert list((tmp_path / ".stagecast").iterdir()) == []


def test_a_write_that_leaves_a_hole_or_the_piece_is_refused(tmp_path: Path) -> None:
    with open_partial(tmp_path) as partial:
        for offset, data in [(1, b"x"), (-1, b"x"), (0, b"x" * 9)]:
            with pytest.raises(ValueError, match="cannot be written"):
                partial.write(PIECES[0], offset, data)


def test_what_is_not_as_long_as_its_piece_fills_nothing(tmp_path: Path) -> None:
    with open_partial(tmp_path) as partial:
        with pytest.raises(ValueError, match="7 bytes cannot fill"):
            partial.fill([(PIECES[0], memoryview(content_of(PIECES[0])[:7]))])
        assert partial.missing() == PIECES


def test_whole_pieces_never_overwrite_what_lies_there_under_another_name_too(tmp_path: Path) -> None:
    ours = folder_of(tmp_path) / "files" / "a"
    ours.parent.mkdir(parents=True)
    (tmp_path / "theirs").write_bytes(b"theirs")
    ours.hardlink_to(tmp_path / "theirs")
    with open_partial(tmp_path) as partial:
        partial.fill([(piece, memoryview(content_of(piece))) for piece in PIECES])
        assert contents_of(partial.publish()) == CONTENTS
    assert (tmp_path / "theirs").read_bytes() == b"theirs"


def test_a_manifest_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidName):
        open_partial(tmp_path, manifest_of("../up", CONTENTS))
    with pytest.raises(InvalidManifest, match="piece_size"):
        open_partial(tmp_path, manifest_of("m", {"a": b"x"}, piece_size=VERIFIED))
    with pytest.raises(InvalidManifest, match="inside"):
        open_partial(tmp_path, manifest_of("m", {"../a": b"x"}))


def test_the_lock_is_free_again_after_an_error_on_entering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="broken disk"):
        open_partial(tmp_path).__enter__()
    monkeypatch.undo()
    with open_partial(tmp_path) as partial:
        assert partial.missing() == PIECES


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_is_named_and_what_came_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    real, room = os.pwrite, 13

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        nonlocal room
        if descriptor == partial.status.descriptor:
            return real(descriptor, data, offset)
        if room <= 0:
            raise OSError(number, os.strerror(number))
        count = real(descriptor, data[:room], offset)
        room -= count
        return count

    with open_partial(tmp_path) as partial:
        monkeypatch.setattr(os, "pwrite", pwrite)
        with pytest.raises(NotEnoughSpace, match=r"node-1: .* bytes free, but 19 more are needed") as caught:
            fill(partial, CONTENTS)
        assert (caught.value.needed, caught.value.present) == (19, 8)
        monkeypatch.undo()
        assert partial.is_verified(PIECES[0])
        assert partial.written(PIECES[1]) == 0
        fill(partial, CONTENTS)
        assert contents_of(partial.publish()) == CONTENTS


def test_data_that_a_sync_could_not_save_is_never_called_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    partial = open_partial(tmp_path).__enter__()
    fill(partial, CONTENTS)
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(NotEnoughSpace) as caught:
        partial.__exit__(None, None, None)
    assert (caught.value.needed, caught.value.present) == (MANIFEST.size, 0), "what was forgotten has to come again"
    monkeypatch.undo()
    with open_partial(tmp_path) as partial:
        assert partial.missing() == PIECES
        assert partial.written(PIECES[0]) == 0


def test_a_truly_full_disk(tmp_path: Path) -> None:
    # /dev/full refuses every write with ENOSPC, by the kernel's own hand.
    with open_partial(tmp_path) as partial:
        partial.write(PIECES[0], 0, content_of(PIECES[0]))
        path = folder_of(tmp_path) / "files" / "a"
        path.rename(path.with_name("kept"))
        path.symlink_to("/dev/full")
        with pytest.raises(NotEnoughSpace) as caught:
            partial.write(PIECES[1], 0, content_of(PIECES[1]))
        # What a retry goes on from is there, verified or not.
        assert (caught.value.needed, caught.value.present) == (MANIFEST.size - 8, 8)
        path.unlink()
        path.with_name("kept").rename(path)
        fill(partial, CONTENTS)
        assert contents_of(partial.publish()) == CONTENTS


def test_discarding_frees_everything(tmp_path: Path) -> None:
    with open_partial(tmp_path) as partial:
        partial.write(PIECES[0], 0, content_of(PIECES[0]))
        assert partial.discard() == 8
    assert list((tmp_path / ".stagecast").iterdir()) == []
    assert partial.written(PIECES[0]) == 0
