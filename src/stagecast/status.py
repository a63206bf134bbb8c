"""The status of a partial: one number of 4 bytes, little endian, per piece, in a file of its own."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from stagecast.durable import write_all
from stagecast.pieces import Piece

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

    def sync(self) -> None:
        """Have all marks outlive a loss of power."""
        os.fdatasync(self.descriptor)
