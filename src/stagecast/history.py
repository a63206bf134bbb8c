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
Key = tuple[str, int]


class History:
    """The ended operations that this process knows of."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._kept: dict[Key, Record] = {}
        self._lost: dict[Key, Record] = {}
        self._written: set[Key] = set()
        self.caught_up = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[History, None]:
        """Follow and write for as long as the block lasts."""
        tasks = [asyncio.create_task(self._follow()), asyncio.create_task(self._write())]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def newest(
        self, *, kind: Kind | None = None, model: str | None = None, before: float | None = None, limit: int = 100
    ) -> list[Record]:
        """Return ended operations, newest first; ``before`` is a time in seconds since 1970."""
        known = self._lost | self._kept | {_key(slot.record): slot.record for slot in self._ended()}
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

    async def _follow(self) -> None:
        async with aclosing(self._tracker.bus.history.follow()) as heard:
            async for each in heard:
                if isinstance(each, Entry):
                    self._keep(each)
                elif isinstance(each, Anew):
                    self._written.clear()
                    self._lost, self._kept = self._lost | self._kept, {}
                else:
                    self.caught_up.set()

    def _keep(self, entry: Entry) -> None:
        try:
            record = msgspec.json.decode(entry.payload, type=Record)
        except msgspec.DecodeError:
            _logger.warning("history: cannot read %s", entry.subject)
            return
        self._kept[_key(record)] = record
        self._lost.pop(_key(record), None)
        while len(self._kept) > KEPT_IN_MEMORY:
            self._kept.pop(next(iter(self._kept)))

    async def _write(self) -> None:
        await self.caught_up.wait()
        while True:
            seen = self._tracker.revision
            # What a log that came back empty has lost is written again, like an end that was just seen.
            for record in [*self._lost.values(), *(slot.record for slot in self._ended())]:
                await self._record(record)
            await self._tracker.changed(seen)

    async def _record(self, record: Record) -> None:
        key = _key(record)
        if key in self._written or key in self._kept:
            return
        subject = subjects.history(record.job, record.attempt)
        try:
            with suppress(AppendConflict):
                await self._tracker.bus.history.append(subject, msgspec.json.encode(record), expected=0)
            self._written.add(key)
        except BusUnavailable as error:
            _logger.debug("history of %s is written later: %s", record.id, error.message)


def _key(record: Record) -> Key:
    return (record.job, record.attempt)
