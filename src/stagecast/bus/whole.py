"""Whole pictures from a log that keeps the last word on each subject only.

What is overwritten before it was delivered is never delivered. So a follower that lags can hold message 9 and not
message 8, for whose subject message 10 speaks by now: the log never looked like that. Such a gap is seen in the
sequences, and it is bridged once everything has come that was in the log when it was seen. Until then nothing is passed
on; then all of it, to be taken with no turn of the event loop in between. Whoever looks between two turns sees what the
log was at one moment, and two followers at one sequence see the same (law L1).
"""

from __future__ import annotations

from collections import deque

from stagecast.bus import CaughtUp
from stagecast.messages import Entry


class Whole:
    """What has come after ``held``, and may be passed on. Everything up to ``target`` was in the log at the start."""

    def __init__(self, held: int, target: int) -> None:
        self.ready: deque[Entry | CaughtUp] = deque()
        self.is_behind = True
        """Not everything has come yet that was in the log at the start."""
        self._waiting: list[Entry] = []
        self._position = held
        self._needed = self._target = target
        self._has_gap = False
        self._release()

    @property
    def is_torn(self) -> bool:
        """Tell whether nothing is passed on before `bridge` was told how far the log goes by now."""
        return self._has_gap and self._position >= self._needed

    def take(self, entry: Entry) -> None:
        """Take the next delivery."""
        self._has_gap = self._has_gap or entry.sequence != self._position + 1
        self._position = entry.sequence
        self._waiting.append(entry)
        self._release()

    def bridge(self, last: int) -> None:
        """Learn the log's last sequence, asked for since the gap was seen: what spans it stands no later than there."""
        self._needed, self._has_gap = last, False
        self._release()

    def settle(self) -> None:
        """Learn that the server has nothing more: nothing is missing."""
        self.bridge(self._position)

    def _release(self) -> None:
        if self._position < self._needed or self._has_gap:
            return
        self.ready.extend(self._waiting)
        self._waiting.clear()
        if self.is_behind:
            self.is_behind = False
            self.ready.append(CaughtUp(max(self._position, self._target)))
