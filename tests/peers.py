"""Trackers that share one bus, in memory or on a real nats-server, and records to try them with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from typing import Any

import msgspec
import pytest
from hypothesis import settings

from stagecast import rows
from stagecast.bus import Bus
from stagecast.bus.memory import MemoryBus
from stagecast.bus.nats import connect
from stagecast.errors import AppendConflict
from stagecast.messages import Entry, Record
from stagecast.operations import operation_id
from stagecast.tracker import Tracker
from tests.conftest import eventually

settings.register_profile("stagecast", deadline=None, derandomize=True)
settings.load_profile("stagecast")


def a_record(**changes: Any) -> Record:
    """Return a running staging of model ``m`` to node ``n``, changed as told."""
    values = {"kind": "staging", "model": "m", "node": "n", "job": "j", "owner": "a", "attempt": 1, "state": "running"}
    values |= changes
    return Record(**({"id": operation_id(values["kind"], values["model"], values["node"])} | values))


def listed(tracker: Tracker) -> bytes:
    """Return what people see of a tracker's fold, as bytes."""
    return msgspec.json.encode(rows.listed(tracker.fold))


class SimulatedLog:
    """A log without a bus: compare-and-set writers, and only the last message of each subject for who comes late."""

    def __init__(self) -> None:
        self.last: dict[str, Entry] = {}
        self.sequence = 0

    def append(self, subject: str, payload: bytes, expected: int | None = None) -> Entry:
        held = self.last.get(subject)
        if expected is not None and expected != (held.sequence if held else 0):
            raise AppendConflict(subject, expected)
        self.sequence += 1
        entry = Entry(subject, self.sequence, payload, 1.7e9 + self.sequence)
        self.last[subject] = entry
        return entry

    def standing(self) -> list[Entry]:
        return sorted(self.last.values(), key=lambda entry: entry.sequence)


class Peers:
    """Processes of one cluster: each has its own connection, all share one log."""

    def __init__(self, stack: AsyncExitStack, dial: Callable[[str], AbstractAsyncContextManager[Bus]]) -> None:
        self._stack = stack
        self._dial = dial

    async def bus(self, name: str) -> Bus:
        return await self._stack.enter_async_context(self._dial(name))

    async def tracker(self, name: str, **options: Any) -> Tracker:
        tracker = Tracker(await self.bus(name), name, **options)
        await self._stack.enter_async_context(tracker.running())
        await eventually(tracker.caught_up.is_set)
        return tracker

    @asynccontextmanager
    async def passing(self, name: str, **options: Any) -> AsyncIterator[Tracker]:
        """Yield a tracker that ends with the block, without a goodbye."""
        async with self._dial(name) as bus, Tracker(bus, name, **options).running() as tracker:
            await eventually(tracker.caught_up.is_set)
            yield tracker


@asynccontextmanager
async def gathered(request: pytest.FixtureRequest) -> AsyncIterator[Peers]:
    """Yield peers on the bus that the fixture's parameter names, ``memory`` or ``nats``."""
    async with AsyncExitStack() as stack:
        if request.param == "memory":
            bus = MemoryBus()
            yield Peers(stack, lambda _: nullcontext(bus))
        else:
            server = request.getfixturevalue("nats_server")
            yield Peers(stack, lambda name: connect(server.url, name))


async def agree(*trackers: Tracker) -> None:
    """Wait until all trackers stand at the same revision and show the same bytes."""
    await eventually(lambda: len({(each.revision, listed(each), each.is_degraded) for each in trackers}) == 1)
