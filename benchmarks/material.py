"""What the transfers move: one file, a directory of many, and eight shards; the folders for it, and an equal start."""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20

FEW = ("stagecast", "nginx + curl", "rsync")
"""Who moves what takes long; the others would say nothing new of it."""


@dataclass(frozen=True)
class Case:
    """A model: one file for each of ``sizes``, in bytes.

    ``contenders`` are those that move it, all where there are none; ``rounds`` is how often they do, without one to
    warm up, and 0 as often as was asked for.
    """

    name: str
    what: str
    sizes: tuple[int, ...]
    contenders: tuple[str, ...] = ()
    rounds: int = 0

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(self.sizes)

    @property
    def files(self) -> list[str]:
        """The names of its files."""
        return [f"part-{number:05}.bin" for number in range(len(self.sizes))]


def cases(scale: int, room: int) -> list[Case]:
    """Return what is moved; the sizes of large files are divided by ``scale``.

    ``room`` bytes are free: the largest file takes a sixth of them at most, for it lies there twice, beside others.
    """
    large = 2048 * MIB // scale
    huge = min(10_000 * MIB // scale, room // 6 // MIB * MIB)
    return [
        Case("one", f"one file of {large // MIB:,} MiB", (large,)),
        Case("many", "2,000 files of 256 KiB", (MIB // 4,) * 2000),
        Case("shards", f"eight shards of {large // 8 // MIB:,} MiB", (large // 8,) * 8, (*FEW, "cp"), 3),
        Case(
            "mixed", f"10,000 files of 16 KiB and one of {huge // MIB:,} MiB", (*(16 * 1024,) * 10_000, huge), FEW, 2,
        ),
    ]  # fmt: skip


def lay_out(folder: Path, case: Case) -> None:
    """Write a case's files; no two of them, and no two pieces, are alike."""
    noise = os.urandom(MIB)
    (folder / case.name).mkdir(parents=True)
    for number, (name, size) in enumerate(zip(case.files, case.sizes, strict=True)):
        with (folder / case.name / name).open("wb") as file:
            for start in range(0, size, MIB):
                file.write((number << 32 | start).to_bytes(8, "little") + noise[8 : min(MIB, size - start)])


@contextmanager
def workplace(medium: Path, made: list[Case]) -> Iterator[Path]:
    """Make a folder on that medium with ``models/<case>`` in it; all of it is gone afterwards."""
    with tempfile.TemporaryDirectory(dir=medium, prefix="stagecast-bench-") as name:
        for case in made:
            lay_out(Path(name) / "models", case)
        settle(Path(name))
        yield Path(name)


def settle(folder: Path) -> None:
    """Have everything that was written to the file system of that folder on the disk: syncfs(2)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor):
            raise OSError(ctypes.get_errno(), "syncfs")
    finally:
        os.close(descriptor)


def warm(count: int) -> None:
    """Have ``count`` bytes of memory at hand, or a third of what is free, before somebody is timed.

    A virtual machine gives free memory back to its host within seconds, and having it again costs more than all that a
    transfer does with it: whoever came after a pause would pay for that.
    """
    page, length = mmap.PAGESIZE, min(count, _free_memory() // 3)
    length -= length % page
    with mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        memory[::page] = bytes(length // page)


def empty(folder: Path) -> None:
    """Give back what the files under a folder hold, and leave their names.

    For five minutes ext4 passes over each file that was deleted, one by one, whenever it makes another: after some
    thousands everybody's files would be made ten times as slowly.
    """
    for path in folder.rglob("*") if folder.exists() else ():
        if path.is_file() and not path.is_symlink():
            os.truncate(path, 0)


def room(medium: Path) -> int:
    """Return the bytes that are free there, of memory no more than the machine has to give."""
    found = os.statvfs(medium)
    free = found.f_bavail * found.f_frsize
    if not is_memory(medium):
        return free
    return min(free, _free_memory())


def _free_memory() -> int:
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def is_memory(medium: Path) -> bool:
    """Return whether a folder lies on a tmpfs."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    over = [(len(mount[1]), mount[2]) for mount in mounts if medium.resolve().is_relative_to(mount[1])]
    return max(over, default=(0, ""))[1] == "tmpfs"
