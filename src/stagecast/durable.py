"""Writes that a crash, or a loss of power, finds done or not begun, never half done."""

from __future__ import annotations

import ctypes
import fcntl
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_SYNCS: Final = 8
"""Files that are synced at the same time, where that takes longer than `_QUICK` a file."""
_FEW: Final = 4
_QUICK: Final = 0.0001
"""Seconds per file below which threads would cost more than the disk does; looked at after `_FEW`."""
_AT_ONCE: Final = 256 * 1024
"""Bytes that one call writes. For more of them the kernel takes larger blocks of memory, and in a virtual machine those
are the ones that went back to the host: having them again doubles what a written byte costs.
"""
_WRITE: Final = 2
"""SYNC_FILE_RANGE_WRITE of sync_file_range(2), which only Linux has."""
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)


@contextmanager
def opened(path: Path | str, flags: int) -> Iterator[int]:
    """Open a file descriptor and close it again. Files that are made get mode 0644 less the umask."""
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def write_all(descriptor: int, buffer: bytes | bytearray | memoryview, offset: int) -> None:
    """Write the whole buffer at ``offset``, however many calls that takes."""
    view = memoryview(buffer).cast("B")
    while view:
        count = os.pwrite(descriptor, view[:_AT_ONCE], offset)
        view, offset = view[count:], offset + count


def start_writing(path: Path | str, offset: int, length: int) -> None:
    """Have the kernel begin to write these bytes of a file to its disk, without waiting: a later sync finds little."""
    if _sync_file_range is not None:
        with opened(path, os.O_RDONLY) as descriptor:
            # A hint; whoever syncs hears of errors.
            _sync_file_range(descriptor, ctypes.c_int64(offset), ctypes.c_int64(length), ctypes.c_uint(_WRITE))


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that a reader, and a crash, find the old content or the new one, never a part."""
    beside = path.with_name(f".{secrets.token_hex(8)}")
    try:
        with opened(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as descriptor:
            write_all(descriptor, data, 0)
            os.fsync(descriptor)
        beside.rename(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(path: Path | str) -> None:
    """Make the names in a folder survive a loss of power."""
    with opened(path, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
        os.fsync(descriptor)


def sync_files(paths: Sequence[Path | str], sync: Callable[[int], None]) -> None:
    """Call ``sync``, `os.fsync` or `os.fdatasync`, for each of these files; many at a time where that takes long.

    A disk that is flushed for one file is flushed for all: 2,000 small files took 5.5 s one after the other on a
    virtual disk, and 0.4 s like this.
    """
    left, began = iter(paths), time.monotonic()

    def settle() -> None:
        for path in left:
            _sync_file(path, sync)

    for count, path in enumerate(left, 1):
        _sync_file(path, sync)
        if _FEW <= count < len(paths) - 1 and time.monotonic() - began > _QUICK * count:
            break
    else:
        return
    with ThreadPoolExecutor(_SYNCS, thread_name_prefix="sync") as executor:
        for done in [executor.submit(settle) for _ in range(_SYNCS)]:
            done.result()


def _sync_file(path: Path | str, sync: Callable[[int], None]) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder, and those above it that are missing, so that they survive a loss of power."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


class Lock:
    """A file that one holder at a time has locked, over all processes and threads; a process that dies lets go.

    The file tells who has it. Only its holder may move or delete it, or a folder above it, and lets go by that.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def take(self) -> bool:
        """Take the lock and return True, or return False when somebody has it. Makes the folders above it."""
        while True:
            descriptor = self._opened()
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(descriptor)
                if isinstance(error, BlockingIOError):
                    return False
                raise
            if self._is_current(descriptor):
                self._descriptor = descriptor
                self._sign()
                return True
            os.close(descriptor)

    def release(self) -> None:
        """Let go. Fine when the lock is not held."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def holder(self) -> str:
        """Return who has the lock, for people: ``process 71 on rack-2``."""
        try:
            return self._path.read_text(errors="replace").strip() or "another process"
        except OSError:
            return "another process"

    def _opened(self) -> int:
        while True:
            # Whether the folder is there is only ever asked by using it: a holder may move it away at any moment.
            try:
                with suppress(FileExistsError):
                    self._path.parent.mkdir(parents=True)
                return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except FileNotFoundError:
                if self._path.parent.is_symlink():
                    raise  # it leads nowhere, and will not by waiting

    def _is_current(self, descriptor: int) -> bool:
        # Whoever had the lock may have deleted the file between our opening and our locking it.
        try:
            return os.path.samestat(os.fstat(descriptor), self._path.stat())
        except FileNotFoundError:
            return False

    def _sign(self) -> None:
        # Only a courtesy to people; a full disk must not keep anyone from resuming.
        try:
            os.ftruncate(self._descriptor, 0)
            write_all(self._descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        except OSError:
            pass
