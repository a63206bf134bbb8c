"""What each stream of a pull waits for, and where its time went so far. Pure: who a stream is, is an argument."""

from __future__ import annotations

from stagecast.messages import Hindrance
from stagecast.transfer.waits import Waits


class Whereabouts:
    """Of streams that are known by a number; one that computes, or has nothing to do, waits for nothing."""

    def __init__(self) -> None:
        self._standing: dict[int, Hindrance] = {}
        self._spent: dict[int, Waits] = {}
        self._ended = Waits()
        self._failed_at: Hindrance = "source"

    def at(self, stream: int, what: Hindrance) -> None:
        """Note for what a stream waits next."""
        self._standing[stream] = what

    def idle(self, stream: int) -> None:
        """Note that a stream has nothing to do."""
        self._standing.pop(stream, None)

    def failed(self, stream: int) -> None:
        """Note that a stream's holder failed at what it waited for."""
        self._failed_at = self._standing.get(stream) or "source"

    def spent(self, stream: int, waits: Waits) -> None:
        """Note where all of a stream's time went so far."""
        self._spent[stream] = waits

    def ended(self, stream: int, waits: Waits) -> None:
        """Note that a stream has ended, and where its time went."""
        self._ended += waits
        self._spent.pop(stream, None)
        self.idle(stream)

    @property
    def waits(self) -> Waits:
        """Where the time of all streams went so far."""
        return sum(list(self._spent.values()), self._ended)

    @property
    def hindrance(self) -> Hindrance:
        """For what the streams wait, which is nothing if one computes: the disk, a byte, or a connection."""
        standing = list(self._standing.values()) or [self._failed_at]
        order: tuple[Hindrance, ...] = ("", "target disk", "source", "network")
        return next(each for each in order if each in standing)
