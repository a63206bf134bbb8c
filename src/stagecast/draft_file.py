"""One file of a draft: written from its start to its end, hashed on the way, and journalled piece by piece."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from blake3 import blake3

from stagecast.durable import opened, write_all
from stagecast.errors import DigestMismatch, Interrupted
from stagecast.journal import FileRecord, PieceCame, WholeCame, appended
from stagecast.manifest import PIECE_SIZE, ManifestFile, file_digest

_CHUNK: Final = 1024 * 1024


class DraftFile:
    """One file of a draft (`Draft.file`); inside ``with`` bytes are appended at ``position``, and hashed while hot.

    ``save`` writes the draft's journal anew.
    """

    def __init__(self, folder: Path, record: FileRecord, save: Callable[[], None]) -> None:
        self.position = record.position
        self.hashing = 0.0
        self.writing = 0.0
        """Seconds that `write` and `finish` have spent on either."""
        self._record = record
        self._save = save
        self._journal = folder / "journal"
        self._path = folder / "files" / record.path
        self._descriptor = -1
        self._piece = blake3()
        self._whole = hashlib.sha256()

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    @property
    def is_whole(self) -> bool:
        """Whether all of it is there and checked."""
        return self._record.is_whole

    @property
    def validator(self) -> str:
        """What upstream said the content is, when the file was begun."""
        return self._record.validator

    @property
    def size(self) -> int | None:
        """Bytes of the whole file, as upstream said when the file was begun."""
        return self._record.size

    @property
    def can_go_on(self) -> bool:
        """Whether there are bytes to go on from, and a way to tell that those to come belong to them."""
        return self.position > 0 and bool(self._record.validator or self._record.sha256)

    def begin(self, validator: str, size: int | None) -> None:
        """Start over, at byte 0, with a content that upstream describes like this."""
        self._record.begin(validator, size)
        self._save()  # before the bytes go: it must never name pieces that are not there
        if os.fstat(self._descriptor).st_nlink > 1:
            # Another model has this very file: it stays what it is, and here another one begins.
            os.close(self._descriptor)
            self._path.unlink()
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        os.ftruncate(self._descriptor, 0)
        self._go_to(0)

    def catch_up(self, stop: threading.Event, checked: Callable[[int], None] = lambda _: None) -> None:
        """Hash what had arrived before, where a SHA-256 of the whole file is to be checked. Raises `Interrupted`.

        ``checked`` gets the bytes that were hashed.
        """
        if not self._record.sha256:
            return
        self._go_to(0)
        for index, expected in enumerate(list(self._record.pieces)):
            if self._hash_piece(stop, checked) != expected:
                del self._record.pieces[index:]  # the disk lost it after all
                self._save()
                self.catch_up(stop, checked)
                return
            self._go_on()

    def write(self, chunk: bytes) -> None:
        """Append ``chunk``. Raises `OSError` where the disk does."""
        view = memoryview(chunk)
        while view:
            part = view[: PIECE_SIZE - self.position % PIECE_SIZE]
            began = time.monotonic()
            write_all(self._descriptor, part, self.position)
            written = time.monotonic()
            self._hash(part)
            self.writing += written - began
            self.hashing += time.monotonic() - written
            if self.position % PIECE_SIZE == 0:
                self._note(PieceCame(self._record.path, self._go_on()))
            view = view[len(part) :]

    def finish(self) -> None:
        """State that the last byte has been written.

        Raises:
            DigestMismatch: it is not the file that was published; all of it is forgotten.
        """
        found = self._whole.hexdigest()
        if self._record.sha256 not in {"", found}:
            expected = self._record.sha256
            self.begin("", None)
            raise DigestMismatch(self._record.path, expected, found)
        os.ftruncate(self._descriptor, self.position)
        last = self._go_on() if self.position % PIECE_SIZE else ""
        self._note(WholeCame(self._record.path, self.position, last))

    def manifest_file(self) -> ManifestFile:
        """Return the whole file as a manifest lists it."""
        pieces, size = tuple(self._record.pieces), self.position
        return ManifestFile(
            path=self._record.path,
            size=size,
            digest=file_digest(pieces, size),
            pieces=pieces,
            sha256=self._record.sha256,
        )

    def _note(self, event: PieceCame | WholeCame) -> None:
        began = time.monotonic()
        self._append(event)
        self.writing += time.monotonic() - began

    def _append(self, event: PieceCame | WholeCame) -> None:
        os.fdatasync(self._descriptor)
        self._record.apply(event)
        with opened(self._journal, os.O_WRONLY | os.O_APPEND) as journal:
            line = appended(event)
            if os.write(journal, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._journal))

    def _hash(self, part: memoryview) -> None:
        self._piece.update(part)
        if self._record.sha256:
            self._whole.update(part)
        self.position += len(part)

    def _go_on(self) -> str:
        digest, self._piece = self._piece.hexdigest(), blake3()
        return digest

    def _go_to(self, position: int) -> None:
        self.position, self._piece, self._whole = position, blake3(), hashlib.sha256()

    def _hash_piece(self, stop: threading.Event, checked: Callable[[int], None]) -> str:
        end = self.position + PIECE_SIZE
        while self.position < end:
            if stop.is_set():
                raise Interrupted("cancel")
            chunk = os.pread(self._descriptor, min(_CHUNK, end - self.position), self.position)
            if not chunk:
                break
            self._hash(memoryview(chunk))
            checked(len(chunk))
        return self._piece.hexdigest()
