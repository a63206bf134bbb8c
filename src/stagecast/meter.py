"""What the work on an operation reports of itself, from any thread, and what can be told from that."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from stagecast.messages import Bottleneck, Hindrance, Record
from stagecast.quantities import format_size

RATE_WINDOW: Final = 5.0
"""Seconds of real bytes over which a rate is taken."""
_SHORTEST: Final = 0.2
"""Seconds below which nothing is said of a rate."""


class Wait(NamedTuple):
    """What the work waits for, what becomes of that, and since when in seconds of the meter's clock."""

    on: Hindrance
    then: str
    since: float


Spent = Mapping[Bottleneck, float]
"""Seconds of the streams of a transfer so far, by what they went on."""


class Meter:
    """Counts for one operation. ``wake`` is called, from any thread, when there is something to say.

    ``now`` is a monotonic clock in seconds.
    """

    def __init__(self, record: Record, now: Callable[[], float], wake: Callable[[], object]) -> None:
        self._now = now
        self._rouse = wake
        self._counting = threading.Lock()
        self._awake = False
        self._bytes_done = record.bytes_done
        self._bytes_present = record.bytes_present
        self._bytes_moved = 0
        self._bytes_checked = 0
        self._is_checking = False
        self._waits: Wait | None = None
        self._file: tuple[int, str] = (record.file_index, record.file_name)
        self._note = record.note
        self._turns: deque[dict[str, object]] = deque()
        self._samples: deque[tuple[float, int]] = deque([(now(), 0)])
        self._spent: Spent = {}
        self._spendings: deque[tuple[float, Spent]] = deque([(now(), {})])

    @property
    def bytes_done(self) -> int:
        """Bytes reported so far, the ones that were there before included."""
        return self._bytes_done

    def advance(self, count: int) -> None:
        """Count ``count`` more bytes that moved; costs well under a microsecond once awake."""
        with self._counting:
            self._bytes_done += count
            self._bytes_moved += count
            self._waits = None
            if self._is_checking:
                self._is_checking, self._note = False, ""
                self._turns.append({"phase": "transferring"})
            if self._awake:
                return
            self._awake = True
        self._rouse()

    def find(self, count: int) -> None:
        """Count ``count`` more bytes that turned out to be here already: done, but not moved."""
        with self._counting:
            self._bytes_done += count
            self._bytes_present += count
        self._wake()

    def check(self, count: int, total: int) -> None:
        """Say that ``count`` more of ``total`` bytes that are here already were read again; 0 where nobody can tell.

        The operation is verifying until the next byte moves. Nothing is counted: they were, or are by `find`.
        """
        with self._counting:
            self._bytes_checked += count
            self._waits = None
            of = f" of {format_size(total)}" if total else ""
            self._note = f"{format_size(self._bytes_checked)}{of} checked"
            if not self._is_checking:
                self._is_checking = True
                self._turns.append({"phase": "verifying"})
        self._wake()

    def wait(self, on: Hindrance, then: str = "") -> None:
        """Say what the work waits for, and what becomes of that; with nothing, that it no longer waits.

        It may be said again and again: the wait lasts from the first time, until the next byte. Costs nothing.
        """
        before = self._waits
        self._waits = Wait(on, then, before.since if before else self._now()) if on else None

    def spend(self, spent: Spent) -> None:
        """Say on what the streams' time went so far. Told with what is told anyway; costs nothing."""
        self._spent = spent

    def enter(self, index: int, name: str) -> None:
        """Say which file moves now; ``index`` counts from 1."""
        self._file = (index, name)
        self._wake()

    def tell(self, note: str) -> None:
        """Say one line on what the phase is at. A sign of life, sent like a byte tick."""
        self._note = note
        self._wake()

    def complete(self, index: int, name: str) -> None:
        """Say that a file is whole. Always told, however soon after the last tick."""
        self._turns.append({"file_index": index, "file_name": name})
        self._rouse()

    def _begin(self, bytes_done: int | None, bytes_present: int | None) -> None:
        """Count on from other numbers than before."""
        self._waits = None
        if bytes_done is not None:
            self._bytes_done = bytes_done
            self._bytes_present = min(self._bytes_present, bytes_done)
            self._samples = deque([(self._now(), self._bytes_moved)])
        if bytes_present is not None:
            self._bytes_present = bytes_present

    def _turn(self, phase: object) -> None:
        """Forget what was said of an earlier phase."""
        self._note, self._is_checking, self._bytes_checked = "", phase == "verifying", 0

    def _counted(self) -> dict[str, object]:
        """Return the fields of the record that are known here."""
        index, name = self._file
        return {
            "bytes_done": self._bytes_done, "bytes_present": self._bytes_present, "file_index": index,
            "file_name": name, "note": self._note, "spent": {on: round(each, 3) for on, each in self._spent.items()},
        }  # fmt: skip

    def _rate(self, now: float) -> float | None:
        """Return bytes per second over the window, or None where too little was seen to say."""
        moved = self._bytes_moved
        self._samples.append((now, moved))
        while len(self._samples) > 2 and self._samples[0][0] < now - RATE_WINDOW:
            self._samples.popleft()
        began, at_start = self._samples[0]
        if now - began < _SHORTEST or moved <= at_start:
            return None
        return (moved - at_start) / (now - began)

    def _limited_by(self, now: float) -> Bottleneck:
        """Return on what most of the time went over the window."""
        spent = self._spent
        self._spendings.append((now, spent))
        while len(self._spendings) > 2 and self._spendings[0][0] < now - RATE_WINDOW:
            self._spendings.popleft()
        return bottleneck(self._spendings[0][1], spent)

    def _wake(self) -> None:
        with self._counting:
            if self._awake:
                return
            self._awake = True
        self._rouse()


def bottleneck(before: Spent, after: Spent) -> Bottleneck:
    """Return on what most of the time between two sums went; nothing where none has passed."""
    gains = {on: seconds - before.get(on, 0.0) for on, seconds in after.items()}
    return max((on for on, gain in gains.items() if gain > 0), key=lambda on: (gains[on], on), default="")
