"""What a worker had when it died, and whether it let any of that move again: its disk and its network say so."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

from chaos.load import FILE, SIZE
from stagecast.part_files import PREFIX
from stagecast.publication import WORKSHOP
from stagecast.status import VERIFIED

_SHARE: Final = 0.05
_NOISE: Final = 512 * 1024
"""What else may have come meanwhile: headers, the log, and what lay in buffers; far less than a piece."""


def verified_on_disk(models: Path, model: str) -> int:
    """Return how many bytes of a model of ours a dead worker's folder has in whole pieces."""
    return sum(verified_in(path.read_bytes()) for path in models.glob(f"{WORKSHOP}/{PREFIX}*-{model}/status"))


def verified_in(status: bytes) -> int:
    """Return the bytes of the whole pieces, by the status of a partial; each file of ours is one piece.

    A piece that was verified a moment ago counts as written there until it is synced to the disk.
    """
    marks: list[int] = [mark for (mark,) in struct.iter_unpack("<I", status[: len(status) // 4 * 4])]
    return FILE * sum(mark in {FILE, VERIFIED} for mark in marks)


def moved_again(received: int, verified: int) -> int:
    """Return how many verified bytes moved again, where ``received`` came between a worker's death and the end."""
    missing = SIZE - verified
    excess = received - missing
    return excess if excess > missing * _SHARE + _NOISE else 0
