"""Presence: renews this process's own lease, keeps everybody else's, and publishes what time alone has decided.

Whichever process first sees a lease run out says so with a compare-and-set, so exactly one wins and all fold the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

import msgspec

from stagecast import leases, subjects, turns
from stagecast.errors import AppendConflict, BusUnavailable
from stagecast.fold import FOREIGN_LIFETIME
from stagecast.leases import Leases
from stagecast.messages import Beat, GalleryEvent, GalleryStatus, Kind, StagingEvent
from stagecast.mirror import Mirror
from stagecast.tracker import Tracker

SWEEP: Final = 0.5
"""Seconds between two looks at the leases."""


class Presence:
    """Who is alive, as this process sees it. Only a process that ``judges`` publishes what it sees."""

    def __init__(
        self, tracker: Tracker, *, judges: bool, performs: tuple[Kind, ...] = (),
        monotonic: Callable[[], float] | None = None, clock: Callable[[], float] | None = None,
    ) -> None:  # fmt: skip
        self.leases = Leases()
        self._tracker = tracker
        self._judges = judges
        self._performs = performs
        self._monotonic = monotonic or asyncio.get_running_loop().time
        self._clock = clock or tracker.now
        self._deaf_since: float | None = None

    def is_alive(self, process: str) -> bool:
        """Tell whether a process holds its lease; this one always does."""
        return process == self._tracker.process or self.leases.is_alive(process, self.now())

    def has_heard_of(self, kind: Kind) -> bool:
        """Tell whether this process, or any that was heard here, takes work of this kind."""
        return kind in self._performs or any(kind in kinds for kinds in self.leases.performs.values())

    def is_node_alive(self, name: str) -> bool:
        """Tell whether a node's process holds its lease and the node has not left."""
        node = self._tracker.fold.nodes.get(name)
        return node is not None and not node.left and self.is_alive(node.process)

    def now(self) -> float:
        """Return the time that leases run by: local and monotonic, and still while the log cannot be heard (law L8)."""
        if self._tracker.is_degraded:
            if self._deaf_since is None:
                self._deaf_since = self._monotonic()
            return self._deaf_since
        if self._deaf_since is not None:
            self._deaf_since = None
            self.leases.forgive(self._monotonic())
        return self._monotonic()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Presence, None]:
        """Renew and judge for as long as the block lasts; say goodbye at its end."""
        await self._tracker.bus.subscribe(subjects.BEAT, self._hear)
        await self._beat()
        tasks = [asyncio.create_task(self._renew()), asyncio.create_task(self._sweep())]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._beat(leaving=True)

    async def sweep(self, now: float, server_now: float) -> None:
        """Publish what follows at ``now``: stalled and failed operations, expired mirrors (law L7, WIRE section 1).

        So that what is queued shows a sign of life, too, it says what that waits for.
        """
        fold, heard = self._tracker.fold, self.leases.performed(now)
        performed = frozenset(self._performs) | (heard or frozenset())
        for slot, record in list(leases.verdicts(fold, self.leases, now, self._clock(), performed)):
            with suppress(AppendConflict, BusUnavailable):
                await self._tracker.write(record, slot.sequence)
        if heard is not None:
            signs = turns.signs(fold, performed, server_now, self._clock(), SWEEP, self.is_alive)
            for slot, record in [*leases.unattended(fold, performed, self._clock()), *signs]:
                with suppress(AppendConflict, BusUnavailable):
                    await self._tracker.write(record, slot.sequence)
        for mirror in list(fold.expired(server_now)):
            with suppress(AppendConflict, BusUnavailable):
                await self._tracker.say(mirror.subject, goodbye(mirror), expected=mirror.sequence)

    def _hear(self, _subject: str, payload: bytes) -> None:
        with suppress(msgspec.DecodeError):
            beat = msgspec.json.decode(payload, type=Beat)
            if beat.leaving:
                self.leases.leave(beat.process)
            else:
                self.leases.renew(beat.process, self._monotonic(), beat.performs)

    async def _beat(self, *, leaving: bool = False) -> None:
        beat = Beat(process=self._tracker.process, leaving=leaving, performs=self._performs)
        await self._tracker.bus.publish(subjects.BEAT, msgspec.json.encode(beat))

    async def _renew(self) -> None:
        while True:
            await self._beat()
            await asyncio.sleep(leases.RENEWAL)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP)
            now, server_now = self.now(), self._tracker.server_clock.now()
            if not self._tracker.is_degraded:
                self.leases.look(now)
                self.leases.forget(self._tracker.fold, now)
                if self._judges:
                    await self.sweep(now, server_now)


def goodbye(mirror: Mirror) -> bytes:
    """Return the event that ends a foreign operation's row: its ``done``, or for an installation ``processed``.

    What became of it nobody knows; that it has succeeded is not to be said (law L3).
    """
    cause = f"its publisher has said nothing for {FOREIGN_LIFETIME:.0f} s"
    if isinstance(mirror.status, GalleryStatus):
        status = msgspec.structs.replace(mirror.status, processed=True, error=mirror.status.error or cause)
        return msgspec.json.encode(GalleryEvent(job_id=mirror.job, status=status))
    return msgspec.json.encode(StagingEvent(model_id=mirror.model, status=mirror.status, done=True, error=cause))
