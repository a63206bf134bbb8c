"""History: what has ended, newest first, the same on every replica and through every restart.

Each end has a subject of its own on a second log. Every replica that folds an end writes it there, provided that
nothing stands there yet: so exactly one is kept, and no death of a single process loses it. Where all of them die
before they have, the end still stands in the first log, and whoever comes next writes it: nothing is written over an
end before it is kept (`stagecast.archive`). Bounded by the stream, and by the same bounds here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing, asynccontextmanager
from math import inf
from typing import Final

import msgspec

from stagecast import archive, operations
from stagecast.bus import Anew, CaughtUp
from stagecast.errors import BusUnavailable
from stagecast.messages import Entry, Record
from stagecast.past import Key, Page, Past, Place, Sought, key_of
from stagecast.revision import is_one_stream
from stagecast.server_clock import ServerClock
from stagecast.settings import Bounds
from stagecast.tracker import Tracker

_logger = logging.getLogger(__name__)

RETRY_INTERVAL: Final = 0.5


class History:
    """The ended attempts that this process knows of: those in the second log, and those that are due there."""

    def __init__(self, tracker: Tracker, bounds: Bounds | None = None) -> None:
        self.caught_up = asyncio.Event()
        self._tracker = tracker
        self._clock = ServerClock(asyncio.get_running_loop().time)
        self._past = Past(bounds or Bounds())
        self._kept: set[Key] = set()
        self._due: dict[Key, Record] = {}
        self._acknowledged: set[Key] = set()
        """What the second log has taken, and was not heard from there yet."""
        self.position = 0
        """How far this process has read the second log."""
        self._woken = asyncio.Event()

    def __len__(self) -> int:
        """Return how many are known."""
        return len(self._past)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[History, None]:
        """Follow and write for as long as the block lasts."""
        self._tracker.hearers.append(self._hear)
        for slot in list(self._tracker.fold.slots.values()):
            self._take(slot.record, slot.time)
        tasks = [asyncio.create_task(self._follow()), asyncio.create_task(self._write())]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._tracker.hearers.remove(self._hear)

    def page(self, sought: Sought | None = None, *, limit: int = 100, before: Place | None = None) -> Page:
        """Return ended attempts, newest first, that stand before a place."""
        self._forget(self._past.expire(self._now()))
        return self._past.page(sought or Sought(), limit, before)

    def find(self, operation: str) -> Record | None:
        """Return the latest end of an operation, by its id or its job, or None."""
        self._forget(self._past.expire(self._now()))
        return self._past.find(operation)

    def end_of(self, record: Record) -> Record | None:
        """Return the end of the very attempt that a record is of, where one is known."""
        return self._past.get(key_of(record))

    def lacks(self, record: Record) -> bool:
        """Tell whether the second log may not have an end yet, although its bounds leave room for it."""
        key = key_of(record)
        return not self.caught_up.is_set() or key in self._due or key in self._acknowledged

    @property
    def is_behind(self) -> bool:
        """Tell whether this process has forgotten operations of which it has yet to read how they ended."""
        wanted = self._tracker.fold.horizon.history
        # The one after it: a stream in which nothing stands ends before its first number.
        return self.position < wanted and (not self.position or is_one_stream(self.position + 1, wanted))

    def _hear(self, record: Record) -> None:
        if operations.is_ended(record):
            self._take(record, self._now())

    def _take(self, record: Record, written: float) -> None:
        """Let an end be known, and be due in the second log unless it stands there."""
        end, key = operations.undismissed(record), key_of(record)
        if operations.is_ended(end) and key not in self._kept and key not in self._due:
            self._due[key] = end
            # Of a time that nobody knows only this is known: it is not long ago.
            self._forget(self._past.add(end, written or inf))
            self._woken.set()

    async def _follow(self) -> None:
        async with aclosing(self._tracker.bus.history.follow()) as heard:
            async for each in heard:
                if isinstance(each, Entry):
                    self._keep(each)
                    self.position = each.sequence
                elif isinstance(each, Anew):
                    # What a log that came back empty has lost is due again, like an end that was just seen.
                    self._clock.forget()
                    self.position = 0
                    self._kept.clear()
                    self._acknowledged.clear()
                    self._due = {key_of(record): record for record in self._past}
                elif isinstance(each, CaughtUp):
                    self.position = each.sequence
                    self.caught_up.set()
                    self._woken.set()

    def _keep(self, entry: Entry) -> None:
        try:
            record = msgspec.json.decode(entry.payload, type=Record)
        except msgspec.DecodeError:
            _logger.warning("history: cannot read %s", entry.subject)
            return
        self._clock.hear(entry.time)
        self._due.pop(key_of(record), None)
        self._acknowledged.discard(key_of(record))
        self._kept.add(key_of(record))
        self._forget(self._past.add(record, entry.time))

    def _forget(self, dropped: Iterable[Key]) -> None:
        for key in dropped:
            self._kept.discard(key)
            self._acknowledged.discard(key)
            self._due.pop(key, None)

    async def _write(self) -> None:
        await self.caught_up.wait()
        while True:
            await self._woken.wait()
            self._woken.clear()
            self._forget(self._past.expire(self._now()))
            for key, record in list(self._due.items()):
                await self._record(key, record)

    async def _record(self, key: Key, record: Record) -> None:
        while key in self._due:
            try:
                await archive.keep(self._tracker.bus.history, record)
                if self._due.pop(key, None) is not None:
                    self._acknowledged.add(key)
            except BusUnavailable:
                await asyncio.sleep(RETRY_INTERVAL)

    def _now(self) -> float:
        """Return the server's clock by the first log, which has more messages; where that is empty, by the second."""
        return self._tracker.server_clock.now() or self._clock.now()
