"""Footprint: what files take of a disk, and what of that goes with them. A file may have names elsewhere that stay.

By inode and number of names: what a file system shares by blocks (reflink) counts for each file that has it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

Key = tuple[int, int]
"""By what a file is told from others, whatever its names: device and inode."""


class Stored(NamedTuple):
    """A file: ``size`` in bytes, those that it has ``taken`` of the disk, and how many of ``links`` names were met."""

    size: int
    taken: int
    names: int
    links: int

    @property
    def is_alone(self) -> bool:
        """Whether it has no other name, so that it goes with these."""
        return self.names >= self.links


def stored(path: Path) -> dict[Key, Stored]:
    """Return what lies at or under ``path``, folders left out; what is gone meanwhile, or unreadable, is none."""
    found: dict[Key, Stored] = {}
    for each in _found(os.fspath(path)):
        if not stat.S_ISDIR(each.st_mode):
            key = each.st_dev, each.st_ino
            names = found[key].names + 1 if key in found else 1
            # A link to a file has the length of its text, which nobody means.
            size = each.st_size if stat.S_ISREG(each.st_mode) else 0
            found[key] = Stored(size, each.st_blocks * 512, names, each.st_nlink)
    return found


def freed(path: Path) -> int:
    """Return the bytes of files that go when all at or under ``path`` is deleted."""
    return sum(each.size for each in stored(path).values() if each.is_alone)


def shared(path: Path) -> int:
    """Return the bytes of files at or under ``path`` that stay when all there is deleted, by other names."""
    return sum(each.size for each in stored(path).values() if not each.is_alone)


def taken(path: Path) -> int:
    """Return what the disk has for all at or under ``path``, folders too, and gets back when that is deleted.

    Files may be made whole at their start, and filled later.
    """
    folders = sum(each.st_blocks * 512 for each in _found(os.fspath(path)) if stat.S_ISDIR(each.st_mode))
    return folders + sum(each.taken for each in stored(path).values() if each.is_alone)


def _found(path: str) -> Iterator[os.stat_result]:
    with suppress(OSError):
        own = os.lstat(path)
        yield own
        if stat.S_ISDIR(own.st_mode):
            with os.scandir(path) as entries:
                names = [entry.path for entry in entries]
            for name in names:
                yield from _found(name)
