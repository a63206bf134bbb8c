"""The disk that holds the models: how much room it has, and how much of that is promised."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from stagecast.errors import NotEnoughSpace


class Space(NamedTuple):
    """Bytes that are free to this user, and bytes of the disk in all."""

    free: int
    total: int


_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


def space_of(path: Path) -> Space:
    """Return what is free under ``path`` and what there is, now."""
    numbers = os.statvfs(path)
    return Space(numbers.f_bavail * numbers.f_frsize, numbers.f_blocks * numbers.f_frsize)


@contextmanager
def naming_full_disk(path: Path, node: str, count: Callable[[], tuple[int, int]]) -> Iterator[None]:
    """Turn the `OSError` of a full disk, or a used-up quota, into `NotEnoughSpace`.

    ``count`` is asked then for the bytes that are still needed and those that are present.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        needed, present = count()
        raise NotEnoughSpace(node, str(path), needed, space_of(path).free, present) from error


class Reservation:
    """Room that is promised to one transfer, and shrinks as its bytes land on the disk."""

    def __init__(self, count: int) -> None:
        self._guard = threading.Lock()
        self.left = count

    def landed(self, count: int) -> None:
        """Hand back ``count`` bytes of the promise, because they are on the disk now. Leaving it out is safe."""
        with self._guard:
            self.left = max(0, self.left - count)


class Disk:
    """The disk under ``path``; ``node`` names its machine in errors. Promises are counted in this process."""

    def __init__(self, path: Path, node: str = "") -> None:
        self._path = path
        self._node = node
        self._guard = threading.Lock()
        self._reservations: list[Reservation] = []

    def space(self) -> Space:
        """Return what is free and what there is, now."""
        return space_of(self._path)

    @contextmanager
    def reserve(self, needed: int, present: int = 0) -> Iterator[Reservation]:
        """Promise ``needed`` bytes for the time of the ``with``; ``present`` bytes are there already, for the message.

        Raises:
            NotEnoughSpace: less than that is free and not promised yet.
        """
        reservation = Reservation(needed)
        with self._guard:
            free = self.space().free - sum(other.left for other in self._reservations)
            if needed > free:
                raise NotEnoughSpace(self._node, str(self._path), needed, max(0, free), present)
            self._reservations.append(reservation)
        try:
            yield reservation
        finally:
            with self._guard:
                # By identity: two promises of the same size are not the same promise.
                self._reservations = [other for other in self._reservations if other is not reservation]
