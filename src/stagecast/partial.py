"""What has arrived of a model that is not whole yet.

Lies in ``<models>/.stagecast/partial-<start of the digest>-<model>``: ``manifest.json``, ``files/<path>``, ``lock``,
and ``status``, which holds one number of 4 bytes, little endian, per piece in the order of `pieces_of`: the bytes of
the piece written so far, or 0xFFFFFFFF once it is verified. A byte is written before ``status`` counts it, so after
``kill -9`` nothing that was verified moves again, and a piece that was cut off goes on where it stopped. After a loss
of power what counts as verified is there, and right: its bytes and names are synced before its number says so, that
number after, and the number that takes it back before a byte of it is written again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from stagecast.disk import naming_full_disk
from stagecast.durable import Lock, sync_folder, write_whole
from stagecast.errors import Busy, InvalidManifest, WrongState
from stagecast.manifest import Manifest, check, check_name, encode
from stagecast.part_files import PartFiles, folder_of
from stagecast.pieces import Piece, pieces_of
from stagecast.publication import Keeping, publish, throw_away, was_published
from stagecast.status import VERIFIED, Status, Tally, read_status

SYNC_EVERY: Final = 128 * 1024 * 1024
"""Bytes that are verified before one fdatasync settles them; after a loss of power so many are hashed again."""


class Partial:
    """Use as ``with store.partial(manifest) as partial``; safe to share between threads while inside.

    A piece is written by one thread at a time, from its start on. ``record`` is called with the manifest when the
    model has been published; ``keeping`` is entered while files are deleted, see `publication.publish`.

    Entering raises:
        Busy: another process or thread has this very revision open.
        InvalidManifest: the manifest's parts do not fit together.
        NotEnoughSpace: no room even for the status.
    """

    def __init__(
        self, models: Path, manifest: Manifest, record: Callable[[Manifest], None], node: str = "",
        keeping: Keeping = nullcontext,
    ) -> None:  # fmt: skip
        check(manifest)
        check_name(manifest.model)
        if manifest.piece_size >= VERIFIED:
            raise InvalidManifest(manifest.model, f"piece_size is {manifest.piece_size}; less than 4 GiB is possible")
        self.manifest = manifest
        self.digest = manifest.digest
        self._models = models
        self._record = record
        self._node = node
        self._keeping = keeping
        self.folder = folder_of(models, manifest.model, self.digest)
        self._file_lock = Lock(self.folder / "lock")
        self._guard = threading.Lock()
        self._tally = Tally(list(pieces_of(manifest)))
        self._unsettled: list[Piece] = []
        self._unsettled_bytes = 0
        self.files = PartFiles(self.folder, manifest)
        self._published: Path | None = None
        self.status = Status(self.folder / "status")

    def __enter__(self) -> Self:
        if not self._file_lock.take():
            raise Busy(f"the transfer of {self.manifest.model}", self._file_lock.holder())
        try:
            with self._clear_errors():
                self._open()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.status.is_open:
                self._settle()
        finally:
            self._close()

    @property
    def verified_bytes(self) -> int:
        """Bytes of all verified pieces."""
        return self._tally.verified_bytes

    def written(self, piece: Piece) -> int:
        """Return the bytes of the piece on disk, from its start on; a verified piece has all of them."""
        return self._tally.written(piece)

    def is_verified(self, piece: Piece) -> bool:
        """Return whether the piece was verified."""
        return self._tally.is_verified(piece)

    def missing(self) -> list[Piece]:
        """Return the pieces that are not verified, in order."""
        return self._tally.missing()

    def write(self, piece: Piece, offset: int, buffer: bytes | bytearray | memoryview) -> None:
        """Write ``buffer`` at ``offset`` bytes into the piece, and count it as written.

        Raises:
            NotEnoughSpace: the disk is full; what was counted before stays, and can be gone on from.
            ValueError: that would leave a hole, or leave the piece, or overwrite a verified one.
        """
        stop = offset + memoryview(buffer).nbytes
        if self.is_verified(piece) or not 0 <= offset <= self.written(piece) or stop > piece.length:
            raise ValueError(f"bytes {offset}-{stop} cannot be written to {piece}: {self.written(piece)} are there")
        with self._clear_errors():
            self.files.write(piece.file, buffer, piece.offset + offset)
            with self._guard:
                self._mark(piece, max(stop, self.written(piece)))

    def fill(self, arrived: Sequence[tuple[Piece, memoryview]]) -> None:
        """Write whole pieces that the caller has hashed, and count them as verified; the status of all at once.

        Each comes with its bytes, in the order of `pieces_of`.

        Raises:
            NotEnoughSpace: the disk is full; none of these counts.
            ValueError: a piece has another length, or was verified before.
        """
        for piece, buffer in arrived:
            if self.is_verified(piece) or buffer.nbytes != piece.length:
                raise ValueError(f"{buffer.nbytes} bytes cannot fill {piece}")
        with self._clear_errors():
            for piece, buffer in arrived:
                self.files.write(piece.file, buffer, piece.offset)
        with self._guard:
            pieces = [piece for piece, _ in arrived]
            self.status.mark_all([self._tally.number[piece] for piece in pieces], [piece.length for piece in pieces])
            is_due = self._count_as_verified(pieces)
        if is_due:
            self._settle()

    def copy(self, piece: Piece, make: Callable[[Path], str]) -> bool:
        """Have ``make`` put all of a piece into its file; it returns the digest of what lies there then.

        Where that is the manifest's, the piece is verified, else nothing of it counts as written. Returns which.

        Raises:
            NotEnoughSpace: the disk is full.
        """
        with self._clear_errors():
            digest = make(self.files.prepare(piece.file))
            self.files.written(piece.file)
        if digest != self.manifest.files[piece.file].pieces[piece.index]:
            return False
        with self._guard:
            self._mark(piece, piece.length)
        self.verify(piece)
        return True

    def put(self, number: int, make: Callable[[Path], bool]) -> bool:
        """Have a whole file of which nothing is here put in its place by ``make``, and count it as verified.

        ``make`` gets the path, at which nothing is, and tells whether it has put there what the manifest says. The file
        may be another model's as well: nothing is ever written to it.
        """
        pieces = [piece for piece in self._tally.pieces if piece.file == number]
        with self._clear_errors():
            if any(map(self.written, pieces)) or not self.files.put(number, make):
                return False
        with self._guard:
            is_due = self._count_as_verified(pieces)
        if is_due:
            self._settle()
        return True

    def read(self, piece: Piece, length: int) -> Iterator[memoryview]:
        """Yield the first ``length`` bytes of the piece, in chunks that are valid until the next one is asked for.

        Raises:
            OSError: the file ends before that.
        """
        return self.files.read(piece.file, piece.offset, length)

    def forget(self, piece: Piece) -> None:
        """Count nothing of the piece as written any more, nor of its file where that has other names too."""
        with self._guard:
            is_shared = self.files.let_go(piece.file)
            forgotten = [each for each in self._tally.pieces if each.file == piece.file] if is_shared else [piece]
            was_verified = any(map(self.is_verified, forgotten))
            for each in forgotten:
                self._mark(each, 0)
            if was_verified:
                # Or a loss of power could find the old number beside bytes that were half written over.
                self.status.sync()

    def verify(self, piece: Piece) -> None:
        """Count the piece, which the caller has hashed, as verified.

        The disk has it a little later (`SYNC_EVERY`), and at the latest on leaving: data first, then the status.

        Raises:
            NotEnoughSpace: the disk could not take the data after all; the pieces concerned are forgotten.
            ValueError: the piece is not fully written.
        """
        with self._guard:
            if self.is_verified(piece):
                return
            if self.written(piece) != piece.length:
                raise ValueError(f"{piece} cannot be verified: {self.written(piece)} bytes are there")
            is_due = self._count_as_verified([piece])
        self.files.start_writing(piece.file, piece.offset, piece.length)
        if is_due:
            self._settle()

    def publish(self) -> Path:
        """Move the model to its final name, record it, and return its path. Safe to call again, also after a crash.

        Raises:
            WrongState: some pieces are not verified.
            NotEnoughSpace: the disk is full.
        """
        if self._published is None:
            count = len(self.missing())
            if count:
                raise WrongState(self.manifest.model, f"not whole ({count} pieces are missing)", "publish")
            self._settle()
            with self._clear_errors():
                self._published = publish(
                    self.folder, self.manifest, self._models, self._record, self._keeping, self.files.synced
                )
        return self._published

    def discard(self) -> int:
        """Delete all that has arrived; return how many bytes that was. Leave the ``with`` afterwards."""
        count = self._tally.written_bytes if (self.folder / "files").exists() else 0
        with self._guard:
            self._unsettled.clear()
            self.files.clear()
            with self._keeping():
                throw_away(self.folder, self._models)
            self._tally.load([0] * len(self._tally.pieces))
        return count

    def _open(self) -> None:
        if was_published(self.folder, self.manifest, self._models):
            self._tally.load([VERIFIED] * len(self._tally.pieces))
        else:
            self._tally.load(self._marks_on_disk())
        write_whole(self.folder / "manifest.json", encode(self.manifest))
        self.status.open(self._tally.marks)
        for folder in (self.folder, self.folder.parent, self._models):
            sync_folder(folder)

    def _close(self) -> None:
        self.status.close()
        self._file_lock.release()

    def _marks_on_disk(self) -> list[int]:
        marks = read_status(self.folder / "status", self._tally.pieces)
        unsure = {piece.file for piece, mark in zip(self._tally.pieces, marks, strict=True) if mark != VERIFIED}
        found = self.files.find(unsure)
        return [mark if piece.file in found else 0 for mark, piece in zip(marks, self._tally.pieces, strict=True)]

    def _count_as_verified(self, pieces: Sequence[Piece]) -> bool:
        """Tell whether it is time to settle what was verified."""
        for piece in pieces:
            self._tally.remember(piece, VERIFIED)
            self._unsettled_bytes += piece.length
        self._unsettled += pieces
        return self._unsettled_bytes >= SYNC_EVERY

    def _mark(self, piece: Piece, mark: int) -> None:
        self.status.mark(self._tally.remember(piece, mark), mark)

    def _settle(self) -> None:
        with self._guard:
            batch, self._unsettled, self._unsettled_bytes = self._unsettled, [], 0
        with self._clear_errors():
            try:
                self.files.sync({piece.file for piece in batch})
            except BaseException:
                # After a failed sync the kernel may have dropped the data: only moving it again is sure.
                with self._guard:
                    for piece in batch:
                        self._mark(piece, 0)
                raise
        if batch:
            with self._guard:
                numbers = sorted(self._tally.number[piece] for piece in batch if self.is_verified(piece))
                self.status.mark_all(numbers, [VERIFIED] * len(numbers))
            with self._clear_errors():
                self.status.sync()

    def _clear_errors(self) -> AbstractContextManager[None]:
        def count() -> tuple[int, int]:
            return self.manifest.size - self._tally.written_bytes, self._tally.written_bytes

        return naming_full_disk(self._models, self._node, count)
