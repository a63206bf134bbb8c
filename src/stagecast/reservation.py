"""Room on a disk that is promised to a transfer before its first byte, as a lease that all processes see.

Lies in ``<models>/.stagecast/reserved-<id>``: the bytes that are still to land, and who they are for. Its holder keeps
the file locked, so a promise dies with its process, and whoever looks next clears it away. Promises are made one at a
time, under ``reserving``, which is there for that moment only: two that each fit, but not both, are never both made.
Who decides has that of the file system (`stagecast.neighbours`) and that of his folder, which other machines see, too.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from stagecast.durable import Lock, opened, write_all
from stagecast.errors import Busy

_PREFIX: Final = "reserved-"
_STEP: Final = 1024 * 1024
"""Bytes that land at most before the file says so. Until then they count twice, as used and as promised: that is safe.
"""
_PATIENCE: Final = 5.0
"""Seconds for which somebody else may be at a decision that takes microseconds."""
_POLL: Final = 0.002


class Promise(NamedTuple):
    """Bytes that are still to land, and the work they are for; ``is_here``: in the folder of whoever looks."""

    left: int
    purpose: str
    is_here: bool = True


class Reservation:
    """Room that is promised to one transfer, and shrinks as its bytes land on the disk."""

    def __init__(self, count: int, descriptor: int = -1) -> None:
        self._guard = threading.Lock()
        self._descriptor = descriptor
        self._step = min(_STEP, count // 16 + 1)
        self._written = count
        self.left = count

    def landed(self, count: int) -> None:
        """Hand back ``count`` bytes of the promise, because they are on the disk now. Leaving it out is safe."""
        with self._guard:
            self.left = max(0, self.left - count)
            if self._written - self.left >= self._step:
                self._write()

    def _write(self) -> None:
        # A full disk that copies what it changes may refuse even this; too large a promise only errs to the safe side.
        if self._descriptor >= 0:
            with suppress(OSError):
                write_all(self._descriptor, _number(self.left), 0)
        self._written = self.left


@contextmanager
def deciding(workshop: Path) -> Iterator[None]:
    """Be the only one, over all processes and threads, who makes a promise. Raises `Busy`."""
    lock, deadline = Lock(workshop / "reserving"), time.monotonic() + _PATIENCE
    while not lock.take():
        if time.monotonic() > deadline:
            raise Busy(f"the reserving of room in {workshop}", lock.holder())
        time.sleep(_POLL)
    try:
        yield
    finally:
        (workshop / "reserving").unlink(missing_ok=True)
        lock.release()


@contextmanager
def promised(workshop: Path, count: int, purpose: str) -> Iterator[Reservation]:
    """Hold a promise of ``count`` bytes; for use within `deciding`, which may be left before this is."""
    path = workshop / f"{_PREFIX}{secrets.token_hex(8)}"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        write_all(descriptor, _number(count) + f" {purpose}\n".encode(), 0)
        yield Reservation(count, descriptor)
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def standing(workshop: Path) -> list[Promise]:
    """Return the promises of living processes, in no order. What another user lets nobody read is none."""
    return _promises(_files(workshop), PermissionError)


def standing_beside(workshop: Path) -> list[Promise]:
    """Return those in the workshop of another folder on the same file system; what cannot be read there is none."""
    with suppress(OSError):
        return [promise._replace(is_here=False) for promise in _promises(_files(workshop), OSError)]
    return []


def clear(workshop: Path) -> None:
    """Remove the promises of dead processes; for use within `deciding`, so that none is met while it is being made."""
    for path in _files(workshop):
        with suppress(PermissionError):
            if _read(path) is None:
                path.unlink(missing_ok=True)


def _files(workshop: Path) -> Iterator[Path]:
    with suppress(FileNotFoundError):
        for path in workshop.iterdir():
            if path.name.startswith(_PREFIX) and path.is_file() and not path.is_symlink():
                yield path


def _promises(paths: Iterable[Path], passed_over: type[OSError]) -> list[Promise]:
    found = []
    for path in paths:
        with suppress(passed_over):
            promise = _read(path)
            if promise is not None:
                found.append(promise)
    return found


def _read(path: Path) -> Promise | None:
    """Return what is promised, or None where nobody holds it any more."""
    try:
        with opened(path, os.O_RDONLY) as descriptor:
            try:
                # Shared, so that two who look at once do not take each other for its holder.
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                left, _, purpose = os.pread(descriptor, 4096, 0).decode(errors="replace").strip().partition(" ")
                return Promise(int(left) if left.isdecimal() else 0, purpose)
    except FileNotFoundError:
        pass
    return None


def _number(count: int) -> bytes:
    return b"%020d" % count  # of one length, so that a smaller one covers a larger one
