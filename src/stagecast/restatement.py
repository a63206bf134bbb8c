"""What a process knew when the log came back as another one, and puts back there until it stands again (law L8).

Every process puts back what it knows, at once and without asking the others: the greater of two words on an operation
wins, whoever writes first. Until all of it stands the new log is not shown, so that nothing that people saw vanishes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress

import msgspec

from stagecast import broadcast, operations, subjects
from stagecast.bus import Log
from stagecast.errors import AppendConflict, BusUnavailable
from stagecast.fold import Fold
from stagecast.messages import Placement, Record
from stagecast.ownership import RETRY_INTERVAL, standing_record


class Restatement:
    """The words that a new log lacks. ``folds``: what was known, also what was heard but not shown yet."""

    def __init__(self, log: Log, folds: Iterable[Fold] = (), missing: Iterable[Record] = ()) -> None:
        self._log = log
        self.is_over = False
        """Set where the log that it is for was lost as well."""
        self._missing: dict[str, Record] = {}
        self._placements: dict[str, Placement] = {}
        for record in missing:
            self._know(record)
        for fold in folds:
            for slot in fold.slots.values():
                self._know(slot.record)
            self._placements |= fold.placements

    @property
    def is_whole(self) -> bool:
        """Tell whether the new log has everything again."""
        return not self._missing

    def missing(self) -> list[Record]:
        """Return what the new log lacks still."""
        return list(self._missing.values())

    def hear(self, record: Record) -> None:
        """Take note of a word that stands in the new log."""
        known = self._missing.get(record.id)
        if known is not None and not operations.outranks(known, record):
            del self._missing[record.id]

    async def write(self) -> None:
        """Write what is missing, for as long as that takes."""
        for record in self.missing():
            await self._put_back(record)
        for placement in self._placements.values():
            with suppress(AppendConflict, BusUnavailable):
                subject = subjects.placement(placement.model)
                await self._log.append(subject, msgspec.json.encode(placement), expected=0)

    def _know(self, record: Record) -> None:
        self._missing[record.id] = operations.merge(self._missing.get(record.id), record)

    async def _put_back(self, record: Record) -> None:
        expected: int | None = 0
        while expected is not None and not self.is_over and record.id in self._missing:
            try:
                await self._log.append(subjects.operation(record), broadcast.encode(record), expected=expected)
                expected = None
            except AppendConflict:
                expected = await self._beneath(record)
            except BusUnavailable:
                await asyncio.sleep(RETRY_INTERVAL)

    async def _beneath(self, record: Record) -> int | None:
        """Return the sequence of what stands in the record's place, or None if that is as good or better."""
        while True:
            try:
                entry = await self._log.last(subjects.operation(record))
            except BusUnavailable:
                await asyncio.sleep(RETRY_INTERVAL)
                continue
            held = standing_record(entry)
            is_better = held is not None and not operations.outranks(record, held)
            return None if is_better else entry.sequence if entry else 0
