"""The status of a partial: one number of 4 bytes, little endian, per piece, in a file of its own."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from stagecast.durable import write_all
from stagecast.pieces import Piece, runs

VERIFIED: Final = 0xFFFFFFFF
"""The mark of a piece that was verified; any other is the number of bytes of it that were written."""


def read_status(path: Path, pieces: Sequence[Piece]) -> list[int]:
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


class Tally:
    """The marks of all pieces, as they are in memory: what was verified counts here before the disk says so."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.pieces = pieces
        self.number = {piece: number for number, piece in enumerate(pieces)}
        self.marks = [0] * len(pieces)
        self.verified_bytes = 0

    def load(self, marks: Sequence[int]) -> None:
        """Take these for the marks of all pieces."""
        self.marks = list(marks)
        pairs = zip(self.pieces, marks, strict=True)
        self.verified_bytes = sum(piece.length for piece, mark in pairs if mark == VERIFIED)

    def remember(self, piece: Piece, mark: int) -> int:
        """Take this for the mark of a piece; return its number."""
        number = self.number[piece]
        self.verified_bytes += piece.length * ((mark == VERIFIED) - (self.marks[number] == VERIFIED))
        self.marks[number] = mark
        return number

    def written(self, piece: Piece) -> int:
        """Return the bytes of a piece that count as written: all of a verified one."""
        return min(self.marks[self.number[piece]], piece.length)

    def is_verified(self, piece: Piece) -> bool:
        """Return whether a piece was verified."""
        return self.marks[self.number[piece]] == VERIFIED

    @property
    def written_bytes(self) -> int:
        """Bytes on the disk, verified or not."""
        return sum(map(self.written, self.pieces))

    def missing(self) -> list[Piece]:
        """Return the pieces that are not verified, in order."""
        return [piece for piece, mark in zip(self.pieces, self.marks, strict=True) if mark != VERIFIED]


class Status:
    """The file at ``path``, to be written to between `open` and `close`, both of which may be called twice."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.descriptor = -1

    @property
    def is_open(self) -> bool:
        """Whether marks can be written."""
        return self.descriptor >= 0

    def open(self, marks: Sequence[int]) -> None:
        """Write every mark, synced: what an older file says that is not so must not come back."""
        self.descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        # Written in full, so that counting a byte later on never needs room that a full disk has not.
        write_all(self.descriptor, struct.pack(f"<{len(marks)}I", *marks), 0)
        os.ftruncate(self.descriptor, 4 * len(marks))
        self.sync()

    def close(self) -> None:
        """Let go of the file."""
        if self.is_open:
            os.close(self.descriptor)
            self.descriptor = -1

    def mark(self, number: int, mark: int) -> None:
        """Write one piece's mark, which a kill finds done or not begun; a loss of power may find it undone."""
        write_all(self.descriptor, struct.pack("<I", mark), 4 * number)

    def mark_all(self, numbers: Sequence[int], marks: Sequence[int]) -> None:
        """Write the marks of pieces whose numbers rise, with one call for those that follow one another.

        A kill, or a loss of power, finds each of them done or not begun.
        """
        done = 0
        for first, end in runs(numbers):
            some = marks[done : done + end - first]
            write_all(self.descriptor, struct.pack(f"<{len(some)}I", *some), 4 * first)
            done += len(some)

    def sync(self) -> None:
        """Have all marks outlive a loss of power."""
        os.fdatasync(self.descriptor)
