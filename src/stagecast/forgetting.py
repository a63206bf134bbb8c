"""Forgetting: has what ended long ago leave every fold, at one place of the log, and then the log itself.

A judge that finds something old enough, and has seen all of it in the history, sets a new horizon with a
compare-and-set: one wins, and all forget the same where it stands (`stagecast.horizon`). What a horizon has made
everybody forget is taken out of the log by whoever set it, and once more by whoever sets the next one, should that
process have died on its way; a process that starts does so with what it finds beyond the horizon. To take out what
is out already changes nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Final

import msgspec

from stagecast import horizon, subjects
from stagecast.errors import AppendConflict, BusUnavailable
from stagecast.fold import Slot
from stagecast.history import History
from stagecast.horizon import Word
from stagecast.messages import Horizon
from stagecast.mirror import Mirror
from stagecast.tracker import Tracker

SWEEP: Final = 2.0
"""Seconds between two looks at what is old enough."""


class Forgetting:
    """One judge's part in it. To be made before its tracker runs: what it forgets at the start counts."""

    def __init__(self, tracker: Tracker, history: History) -> None:
        self._tracker = tracker
        self._history = history
        self._lately: deque[dict[str, int]] = deque(maxlen=2)
        self._tried: list[Horizon] = []
        """What this process has set, or has tried to, and has not heard of."""
        self._leavings: dict[str, int] = {}
        """What this process has to take out of the log: subjects, and where their last words stood."""
        tracker.forgetters.append(self._hear)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Forgetting, None]:
        """Judge for as long as the block lasts."""
        sweeping = asyncio.create_task(self._sweep(), name="forgetting")
        try:
            yield self
        finally:
            sweeping.cancel()
            await asyncio.gather(sweeping, return_exceptions=True)

    async def sweep(self, now: float) -> None:
        """Set a new horizon if one is due at ``now``, the server's clock, and take out of the log what is to be."""
        fold = self._tracker.fold
        found = horizon.due(fold, now, self._history.lacks) if now and self._history.caught_up.is_set() else None
        with suppress(AppendConflict, BusUnavailable):
            await self._end_again()
            if found is not None:
                found = msgspec.structs.replace(found, history=self._history.position)
                self._tried.append(found)
                await self._tracker.say(subjects.HORIZON, msgspec.json.encode(found), expected=fold.horizon_at)
        with suppress(BusUnavailable):
            for subject, sequence in list(self._leavings.items()):
                await self._tracker.bus.log.remove(subject, sequence)
                if self._leavings.get(subject) == sequence:  # nothing of a next run was forgotten meanwhile
                    del self._leavings[subject]

    async def _end_again(self) -> None:
        """End what the history knows to have ended: somebody says a word on it that is older than all memory."""
        for slot in list(self._tracker.fold.live_slots()):
            end = self._history.end_of(slot.record)
            if end is not None:
                await self._tracker.write(end, slot.sequence)

    def _hear(self, words: tuple[Word, ...], standing: Horizon) -> None:
        # Who slept does not know the last word on an operation, but that it stands before the horizon. A subject of
        # foreign operations may have several.
        slots = {subjects.operation(word.record): standing.through for word in words if isinstance(word, Slot)}
        leavings = slots | {word.subject: word.sequence for word in words if isinstance(word, Mirror)}
        self._lately.append(leavings)
        if standing in self._tried or not self._tracker.caught_up.is_set():
            for each in self._lately:
                self._leavings |= each
        self._tried = [each for each in self._tried if each.number > standing.number]

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP)
            if not self._tracker.is_degraded:
                await self.sweep(self._tracker.server_clock.now())
