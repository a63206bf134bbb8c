"""Mending: what a plain publisher wrote over is put back, so that a process which starts now sees what the others see.

The log keeps one message a subject, and any client of NATS may write on any of them. What is lost by that for those who
come later is still in the fold of those who saw it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from typing import Final

from stagecast import broadcast, subjects
from stagecast.bus import Log
from stagecast.errors import AppendConflict, BusUnavailable
from stagecast.fold import Change, Fold
from stagecast.messages import Record
from stagecast.mirror import Mirror

MEND_DELAY: Final = (0.02, 0.3)
"""Seconds after which one of several processes puts right what another wrote over, if nobody else has."""
MEND_PATIENCE: Final = 1.0
"""Seconds that a process which starts gives the others to put back what somebody has just written over (law L4)."""

Repair = Coroutine[object, object, None]


class Mender:
    """One process's part in it. Who does not ``mend`` puts back only what is its own."""

    def __init__(self, log: Log, process: str, *, mends: bool, chance: random.Random) -> None:
        self._log = log
        self._process = process
        self._mends = mends
        self._chance = chance
        self._doubtful: set[str] = set()
        self._settled = asyncio.Event()

    @property
    def is_whole(self) -> bool:
        """Tell whether no subject of ours was found with another's word on it."""
        return not self._doubtful

    def look(self, change: Change, subject: str) -> None:
        """Note, while the log is read for the first time, whether a subject that is ours by its name bears our word."""
        if change.what in {"foreign", "malformed"} and subjects.is_distinct(subject):
            if subject != subjects.mirror(subject.partition(".")[0], change.id):
                self._doubtful.add(subject)
        else:
            self._doubtful.discard(subject)
        if self.is_whole:
            self._settled.set()

    async def mended(self) -> None:
        """Wait until those who know what was there have put it back; not for long, for they may be gone."""
        self._settled.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(0 if self.is_whole else MEND_PATIENCE):
                await self._settled.wait()

    def repairs(self, change: Change, sequence: int, picture: Callable[[], Fold]) -> Iterator[Repair]:
        """Yield what is to be written after a message at ``sequence`` of the log; ``picture`` is what is known then."""
        if change.displaced is not None:
            yield self._put_back(change.displaced, sequence)
        for mirror in (change.unseated, change.outlived):
            if mirror is not None:
                yield self._reseat(mirror, picture)

    async def _put_back(self, record: Record, sequence: int) -> None:
        """Write an operation's last word over what stands on its subject.

        The owner does so at once; where it does not, one of those that mend, after a moment that differs for each.
        """
        subject = subjects.operation(record)
        with suppress(AppendConflict, BusUnavailable):
            if record.owner != self._process:
                if not await self._is_my_turn():
                    return
                standing = await self._log.last(subject)
                if standing is None or standing.sequence != sequence:
                    return
            await self._log.append(subject, broadcast.encode(record), expected=sequence)

    async def _reseat(self, mirror: Mirror, picture: Callable[[], Fold]) -> None:
        """Write a foreign operation's last event on a subject of its own, unless there is a later one by then."""
        subject = subjects.mirror(mirror.subject.partition(".")[0], mirror.id)
        with suppress(AppendConflict, BusUnavailable):
            if await self._is_my_turn():
                standing = await self._log.last(subject)
                if picture().mirrors.get(mirror.id) is mirror:
                    await self._log.append(subject, mirror.payload, expected=standing.sequence if standing else 0)

    async def _is_my_turn(self) -> bool:
        if self._mends:
            await asyncio.sleep(self._chance.uniform(*MEND_DELAY))  # only to be apart from the others
        return self._mends
