"""What has arrived of a model that is not whole yet.

Lies in ``<models>/.stagecast/partial-<start of the digest>-<model>``: ``manifest.json``, ``files/<path>``, ``lock``,
and ``status``, which holds one number of 4 bytes, little endian, per piece in the order of `pieces_of`: the bytes of
the piece written so far, or 0xFFFFFFFF once it is verified. A byte is written before ``status`` counts it, so after
``kill -9`` nothing that was verified moves again, and a piece that was cut off goes on where it stopped. After a loss
of power what counts as verified is there, and right: its bytes and names are synced before its number says so, that
number after, and the number that takes it back before a byte of it is written again.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from stagecast.disk import naming_full_disk
from stagecast.durable import Lock, opened, sync_folder, write_all, write_whole
from stagecast.errors import Busy, InvalidManifest, WrongState
from stagecast.manifest import Manifest, check, check_name, encode
from stagecast.pieces import Piece, pieces_of
from stagecast.publication import WORKSHOP, publish, throw_away, was_published

VERIFIED: Final = 0xFFFFFFFF
PREFIX: Final = "partial-"
SYNC_EVERY: Final = 128 * 1024 * 1024
"""Bytes that are verified before one fdatasync settles them; after a loss of power so many are hashed again."""
_CHUNK: Final = 1024 * 1024


def read_status(path: Path, pieces: list[Piece]) -> list[int]:
    """Return the bytes that ``status`` counts per piece, or `VERIFIED`; 0 wherever it is missing, cut off or wrong."""
    try:
        data = path.read_bytes()
    except OSError:
        data = b""
    if len(data) > 4 * len(pieces):
        data = b""
    marks = [number for (number,) in struct.iter_unpack("<I", data[: len(data) // 4 * 4])]
    marks += [0] * (len(pieces) - len(marks))
    return [mark if mark == VERIFIED or mark <= piece.length else 0 for mark, piece in zip(marks, pieces, strict=True)]


class Partial:
    """Use as ``with store.partial(manifest) as partial``; safe to share between threads while inside.

    A piece is written by one thread at a time, from its start on. ``record`` is called with the manifest when the
    model has been published.

    Entering raises:
        Busy: another process or thread has this very revision open.
        InvalidManifest: the manifest's parts do not fit together.
        NotEnoughSpace: no room even for the status.
    """

    def __init__(self, models: Path, manifest: Manifest, record: Callable[[Manifest], None], node: str = "") -> None:
        check(manifest)
        check_name(manifest.model)
        if manifest.piece_size >= VERIFIED:
            raise InvalidManifest(manifest.model, f"piece_size is {manifest.piece_size}; less than 4 GiB is possible")
        self.manifest = manifest
        self._models = models
        self._record = record
        self._node = node
        self.folder = models / WORKSHOP / f"{PREFIX}{manifest.digest[:16]}-{manifest.model}"
        self._file_lock = Lock(self.folder / "lock")
        self._guard = threading.Lock()
        self._pieces = list(pieces_of(manifest))
        self._number = {piece: number for number, piece in enumerate(self._pieces)}
        self._marks = [0] * len(self._pieces)
        self._unsettled: list[Piece] = []
        self._unsettled_bytes = 0
        self._prepared: set[int] = set()
        self._new_names: set[Path] = set()
        self._verified_bytes = 0
        self._published: Path | None = None
        self._status = -1

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
            if self._status >= 0:
                self._settle()
        finally:
            self._close()

    @property
    def verified_bytes(self) -> int:
        """Bytes of all verified pieces."""
        return self._verified_bytes

    def written(self, piece: Piece) -> int:
        """Return the bytes of the piece on disk, from its start on; a verified piece has all of them."""
        return min(self._marks[self._number[piece]], piece.length)

    def is_verified(self, piece: Piece) -> bool:
        """Return whether the piece was verified."""
        return self._marks[self._number[piece]] == VERIFIED

    def missing(self) -> list[Piece]:
        """Return the pieces that are not verified, in order."""
        return [piece for piece, mark in zip(self._pieces, self._marks, strict=True) if mark != VERIFIED]

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
            self._prepare(piece.file)
            with opened(self._path(piece), os.O_WRONLY) as descriptor:
                write_all(descriptor, buffer, piece.offset + offset)
            with self._guard:
                self._mark(piece, max(stop, self.written(piece)))

    def read(self, piece: Piece, length: int) -> Iterator[memoryview]:
        """Yield the first ``length`` bytes of the piece, in chunks that are valid until the next one is asked for.

        Raises:
            OSError: the file ends before that.
        """
        buffer = memoryview(bytearray(min(_CHUNK, length)))
        with opened(self._path(piece), os.O_RDONLY) as descriptor:
            done = 0
            while done < length:
                count = os.preadv(descriptor, [buffer[: length - done]], piece.offset + done)
                if count == 0:
                    raise OSError(errno.EIO, "the file ends too early", str(self._path(piece)))
                yield buffer[:count]
                done += count

    def forget(self, piece: Piece) -> None:
        """Count nothing of the piece as written any more."""
        with self._guard:
            was_verified = self.is_verified(piece)
            self._mark(piece, 0)
            if was_verified:
                # Or a loss of power could find the old number beside bytes that were half written over.
                os.fdatasync(self._status)

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
            self._remember(piece, VERIFIED)
            self._unsettled.append(piece)
            self._unsettled_bytes += piece.length
            is_due = self._unsettled_bytes >= SYNC_EVERY
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
                self._published = publish(self.folder, self.manifest, self._models, self._record)
        return self._published

    def discard(self) -> int:
        """Delete all that has arrived; return how many bytes that was. Leave the ``with`` afterwards."""
        count = sum(self.written(piece) for piece in self._pieces) if (self.folder / "files").exists() else 0
        with self._guard:
            self._unsettled.clear()
            self._new_names.clear()
            throw_away(self.folder, self._models)
            self._load([0] * len(self._pieces))
        return count

    def _open(self) -> None:
        was_moved = was_published(self.folder, self.manifest, self._models)
        if was_moved:
            self._load([VERIFIED] * len(self._pieces))
        else:
            self._load(self._marks_on_disk())
        write_whole(self.folder / "manifest.json", encode(self.manifest))
        self._status = os.open(self.folder / "status", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        # Written in full, so that counting a byte later on never needs room that a full disk has not.
        write_all(self._status, struct.pack(f"<{len(self._marks)}I", *self._marks), 0)
        os.ftruncate(self._status, 4 * len(self._marks))
        os.fdatasync(self._status)
        for folder in (self.folder, self.folder.parent, self._models):
            sync_folder(folder)

    def _close(self) -> None:
        if self._status >= 0:
            os.close(self._status)
            self._status = -1
        self._file_lock.release()

    def _marks_on_disk(self) -> list[int]:
        marks = read_status(self.folder / "status", self._pieces)
        for number, file in enumerate(self.manifest.files):
            path = self.folder / "files" / file.path
            if path.is_file() and path.stat().st_size == file.size:
                self._prepared.add(number)
        return [mark if piece.file in self._prepared else 0 for mark, piece in zip(marks, self._pieces, strict=True)]

    def _load(self, marks: list[int]) -> None:
        self._marks = marks
        self._verified_bytes = sum(
            piece.length for piece, mark in zip(self._pieces, marks, strict=True) if mark == VERIFIED
        )

    def _remember(self, piece: Piece, mark: int) -> None:
        was_verified = self._marks[self._number[piece]] == VERIFIED
        self._verified_bytes += piece.length * ((mark == VERIFIED) - was_verified)
        self._marks[self._number[piece]] = mark

    def _mark(self, piece: Piece, mark: int) -> None:
        self._remember(piece, mark)
        write_all(self._status, struct.pack("<I", mark), 4 * self._number[piece])

    def _settle(self) -> None:
        with self._guard:
            batch, self._unsettled, self._unsettled_bytes = self._unsettled, [], 0
            folders, self._new_names = self._new_names, set()
        try:
            with self._clear_errors():
                for number in sorted({piece.file for piece in batch}):
                    with opened(self.folder / "files" / self.manifest.files[number].path, os.O_WRONLY) as descriptor:
                        os.fdatasync(descriptor)
                for folder in sorted(folders, reverse=True):
                    sync_folder(folder)
        except BaseException:
            # After a failed sync the kernel may have dropped the data: only moving it again is sure.
            with self._guard:
                for piece in batch:
                    self._mark(piece, 0)
            raise
        if batch:
            with self._guard:
                for piece in batch:
                    if self.is_verified(piece):
                        self._mark(piece, VERIFIED)
            with self._clear_errors():
                os.fdatasync(self._status)

    def _prepare(self, number: int) -> None:
        with self._guard:
            if number in self._prepared:
                return
            path = self.folder / "files" / self.manifest.files[number].path
            path.parent.mkdir(parents=True, exist_ok=True)
            with opened(path, os.O_WRONLY | os.O_CREAT) as descriptor:
                os.ftruncate(descriptor, self.manifest.files[number].size)
            self._prepared.add(number)
            self._new_names.update(above for above in path.parents if above.is_relative_to(self.folder))

    def _path(self, piece: Piece) -> Path:
        return self.folder / "files" / self.manifest.files[piece.file].path

    def _clear_errors(self) -> AbstractContextManager[None]:
        def count() -> tuple[int, int]:
            return self.manifest.size - self._verified_bytes, self._verified_bytes

        return naming_full_disk(self._models, self._node, count)
