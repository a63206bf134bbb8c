"""The disk that holds the models: how much room it has, and how much of that is promised."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from stagecast import reservation
from stagecast.errors import Busy, NotEnoughSpace
from stagecast.neighbours import Neighbours
from stagecast.publication import WORKSHOP
from stagecast.reservation import Promise, Reservation


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


class Disk:
    """The disk under ``path``; ``node`` names its machine in errors.

    Promises are kept in the workshop there (`stagecast.reservation`). They hold for every process that shares ``path``,
    and for those of this machine and user with another models folder on its file system (`stagecast.neighbours`).
    """

    def __init__(self, path: Path, node: str = "") -> None:
        self._path = path
        self._node = node
        self._neighbours = Neighbours(path)

    def space(self) -> Space:
        """Return what is free and what there is, now."""
        return space_of(self._path)

    def promises(self) -> list[Promise]:
        """Return what living processes have promised of the free room, from this folder and from others beside it."""
        found = reservation.standing(self._path / WORKSHOP)
        for folder in self._neighbours.folders():
            found += reservation.standing_beside(folder / WORKSHOP)
        return found

    def tidy(self) -> None:
        """Clear away the promises of dead processes; whoever makes one does that, too."""
        self._neighbours.register()
        with suppress(Busy, OSError), reservation.deciding(self._path / WORKSHOP):
            reservation.clear(self._path / WORKSHOP)

    @contextmanager
    def reserve(self, needed: int, present: int = 0, purpose: str = "") -> Iterator[Reservation]:
        """Promise ``needed`` bytes for the time of the ``with``; ``present`` bytes are there already, for the message.

        Raises:
            Busy: somebody else has been at a promise of his own for seconds: a process that sleeps.
            NotEnoughSpace: less than that is free and not promised yet.
        """
        if needed <= 0:
            yield Reservation(0)  # a full disk has room for that, and for no file
            return
        with ExitStack() as stack:
            with naming_full_disk(self._path, self._node, lambda: (needed, present)):
                made = self._promise(stack, needed, present, purpose)
            yield made

    def _promise(self, stack: ExitStack, needed: int, present: int, purpose: str) -> Reservation:
        with self._deciding():
            # Promises first: what lands in between is then counted twice, never not at all.
            promised = sum(promise.left for promise in self.promises())
            space = self.space()
            if needed > space.free - promised:
                raise NotEnoughSpace(
                    self._node, str(self._path), needed, space.free, present, promised, total=space.total
                )
            return stack.enter_context(reservation.promised(self._path / WORKSHOP, needed, purpose))

    @contextmanager
    def _deciding(self) -> Iterator[None]:
        """Be the only one on this file system who makes a promise, with what the dead have left cleared away."""
        with ExitStack() as stack:
            shared = self._neighbours.register()
            if shared is not None:
                with suppress(OSError):  # where that is full, the folder's own lock has to do
                    stack.enter_context(reservation.deciding(shared))
            stack.enter_context(reservation.deciding(self._path / WORKSHOP))
            self._neighbours.clear()
            reservation.clear(self._path / WORKSHOP)
            yield
