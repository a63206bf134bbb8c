"""History: what has ended, newest first, the same on every replica and through every restart.

Each end has a subject of its own on a second log. Every replica that folds an end writes it there, provided that
nothing stands there yet: so exactly one is kept, and no death of a single process loses it. Bounded by the stream.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Final

import msgspec

from stagecast import operations, subjects
from stagecast.bus import Anew
from stagecast.errors import AppendConflict, BusUnavailable
from stagecast.fold import Slot
from stagecast.messages import Entry, Kind, Record
from stagecast.tracker import Tracker

_logger = logging.getLogger(__name__)

KEPT_IN_MEMORY: Final = 10_000
RETRY_INTERVAL: Final = 0.5
Key = tuple[str, int]


class History:
    """The ended operations that this process knows of."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._kept: dict[Key, Record] = {}
        self._lost: dict[Key, Record] = {}
        self._due: dict[Key, Record] = {}
        self._woken = asyncio.Event()
        self.caught_up = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[History, None]:
        """Follow and write for as long as the block lasts."""
        self._tracker.hearers.append(self._hear)
        for slot in self._ended():
            self._hear(slot.record)
        tasks = [asyncio.create_task(self._follow()), asyncio.create_task(self._write())]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._tracker.hearers.remove(self._hear)

    def newest(
        self, *, kind: Kind | None = None, model: str | None = None, before: float | None = None, limit: int = 100
    ) -> list[Record]:
        """Return ended operations, newest first; ``before`` is a time in seconds since 1970."""
        known = self._due | self._lost | self._kept | {_key(slot.record): slot.record for slot in self._ended()}
        found = [
            record
            for record in known.values()
            if (kind is None or record.kind == kind)
            and (model is None or record.model == model)
            and (before is None or record.updated_at < before)
        ]
        return sorted(found, key=lambda record: (-record.updated_at, record.id))[:limit]

    def find(self, job: str) -> Record | None:
        """Return the latest end of a job, or None."""
        found = [record for (name, _), record in (self._lost | self._kept).items() if name == job]
        return max(found, key=lambda record: record.attempt, default=None)

    def _ended(self) -> list[Slot]:
        return [slot for slot in self._tracker.fold.slots.values() if operations.is_ended(slot.record)]

    def _hear(self, record: Record) -> None:
        if operations.is_ended(record) and _key(record) not in self._kept:
            self._due[_key(record)] = record
            self._woken.set()

    async def _follow(self) -> None:
        async with aclosing(self._tracker.bus.history.follow()) as heard:
            async for each in heard:
                if isinstance(each, Entry):
                    self._keep(each)
                elif isinstance(each, Anew):
                    self._lost, self._kept = self._lost | self._kept, {}
                else:
                    self.caught_up.set()
                    self._woken.set()

    def _keep(self, entry: Entry) -> None:
        try:
            record = msgspec.json.decode(entry.payload, type=Record)
        except msgspec.DecodeError:
            _logger.warning("history: cannot read %s", entry.subject)
            return
        self._kept[_key(record)] = record
        for waiting in (self._lost, self._due):
            waiting.pop(_key(record), None)
        while len(self._kept) > KEPT_IN_MEMORY:
            self._kept.pop(next(iter(self._kept)))

    async def _write(self) -> None:
        await self.caught_up.wait()
        while True:
            await self._woken.wait()
            self._woken.clear()
            # What a log that came back empty has lost is written again, like an end that was just seen.
            for record in [*self._lost.values(), *self._due.values()]:
                await self._record(record)

    async def _record(self, record: Record) -> None:
        subject = subjects.history(record.job, record.attempt)
        while _key(record) not in self._kept:
            try:
                with suppress(AppendConflict):
                    await self._tracker.bus.history.append(subject, msgspec.json.encode(record), expected=0)
            except BusUnavailable:
                await asyncio.sleep(RETRY_INTERVAL)
            else:
                break


def _key(record: Record) -> Key:
    return (record.job, record.attempt)
