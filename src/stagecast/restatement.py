"""What a process knew when the log came back as another one, and puts back there until it stands again (law L8).

Every process puts back what it knows, at once and without asking the others: the greater of two words on an operation
wins, whoever writes first. Until all of them stand the new log is not shown, so that nothing that people saw vanishes.
Wishes are put back too, and nodes: what waits for a node that is away would else wait for ever. So is what foreign
publishers have said last, who may say nothing more for a minute.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import msgspec

from stagecast import broadcast, operations, subjects
from stagecast.bus import Log
from stagecast.errors import AppendConflict, BusUnavailable
from stagecast.fold import Fold
from stagecast.messages import Entry, Horizon, Limits, NodeRecord, Placement, Record
from stagecast.mirror import Mirror
from stagecast.ownership import RETRY_INTERVAL, horizon_in, standing_record


class Restatement:
    """The words that a new log lacks. ``folds``: what was known, also what was heard but not shown yet.

    ``before``: one for a log that was lost as well, maybe before all that is not waited for stood there.
    """

    def __init__(
        self, log: Log, folds: Iterable[Fold] = (), missing: Iterable[Record] = (), before: Restatement | None = None
    ) -> None:
        self._log = log
        self.is_over = False
        """Set where the log that it is for was lost as well."""
        self._missing: dict[str, Record] = {}
        self.placements: dict[str, Placement] = before.placements.copy() if before else {}
        self.nodes: dict[str, NodeRecord] = before.nodes.copy() if before else {}
        self._mirrors: dict[str, Mirror] = {}
        self.era: int = before.era if before else 0
        self.limits: Limits = before.limits if before else Limits()
        for record in missing:
            self._know(record)
        for fold in folds:
            for slot in fold.slots.values():
                self._know(slot.record)
            self._know_mirrors(fold)
            self.placements |= fold.placements
            self.nodes |= fold.nodes
            self.era = max(self.era, fold.horizon.number)
            self.limits = max(self.limits, fold.limits, key=lambda limits: limits.generation)

    @property
    def is_needed(self) -> bool:
        """Tell whether there is anything to write."""
        return bool(
            self._missing or self._mirrors or self.placements or self.nodes or self.era or self.limits.generation
        )

    @property
    def is_whole(self) -> bool:
        """Tell whether the new log has every operation again."""
        return not self._missing and not self._mirrors

    def missing(self) -> list[Record]:
        """Return the words on operations that the new log lacks still."""
        return list(self._missing.values())

    def hear(self, record: Record) -> None:
        """Take note of a word that stands in the new log."""
        known = self._missing.get(record.id)
        if known is not None and not operations.is_later(known, record):
            del self._missing[record.id]

    def hear_foreign(self, identifier: str) -> None:
        """Take note that the new log tells of a foreign operation."""
        self._mirrors.pop(identifier, None)

    async def write(self) -> None:
        """Write what is missing, for as long as that takes."""
        for record in self.missing():
            if record.id in self._missing:
                await self._put_back(subjects.operation(record), broadcast.encode(record), _outranking(record))
        for mirror in list(self._mirrors.values()):
            if mirror.id in self._mirrors:
                subject = subjects.mirror(mirror.subject.partition(".")[0], mirror.id)
                await self._put_back(subject, mirror.payload, lambda _: False)
        for name, node in self.nodes.items():
            await self._put_back(subjects.node(name), msgspec.json.encode(node), lambda _: False)
        for model, placement in self.placements.items():
            await self._put_back(subjects.placement(model), msgspec.json.encode(placement), _newer_than(placement))
        if self.era:
            # Of the horizon only its number is true of another log: no era may come twice.
            horizon = msgspec.json.encode(Horizon(number=self.era))
            await self._put_back(subjects.HORIZON, horizon, lambda entry: horizon_in(entry).number < self.era)
        if self.limits.generation:
            await self._put_back(subjects.LIMITS, msgspec.json.encode(self.limits), _newer_than(self.limits))

    def _know(self, record: Record) -> None:
        self._missing[record.id] = operations.merge(self._missing.get(record.id), record)

    def _know_mirrors(self, fold: Fold) -> None:
        """Take over which foreign operations the list showed; of two folds the later one says which have ended."""
        for mirror in fold.mirrors.values():
            if mirror.done or fold.is_shadowed(mirror):
                self._mirrors.pop(mirror.id, None)
            else:
                self._mirrors[mirror.id] = mirror

    async def _put_back(self, subject: str, payload: bytes, is_better: Callable[[Entry], bool]) -> None:
        """Write where nothing stands, or what this ``is_better`` than."""
        expected = 0
        while not self.is_over:
            try:
                await self._log.append(subject, payload, expected=expected)
                break
            except AppendConflict:
                standing = await self._standing(subject)
                if standing is not None and not is_better(standing):
                    break
                expected = standing.sequence if standing else 0
            except BusUnavailable:
                await asyncio.sleep(RETRY_INTERVAL)

    async def _standing(self, subject: str) -> Entry | None:
        while True:
            try:
                return await self._log.last(subject)
            except BusUnavailable:
                await asyncio.sleep(RETRY_INTERVAL)


def _outranking(record: Record) -> Callable[[Entry], bool]:
    def is_better(standing: Entry) -> bool:
        held = standing_record(standing)
        return held is None or operations.is_later(record, held)

    return is_better


def _newer_than(wanted: Placement | Limits) -> Callable[[Entry], bool]:
    def is_better(standing: Entry) -> bool:
        try:
            held = msgspec.json.decode(standing.payload, type=type(wanted))
        except msgspec.DecodeError:
            return True
        return wanted.generation > held.generation

    return is_better
