"""Two hundred clients behind the balancer: replicas die under them, the bus comes back empty, and none steps back."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from stagecast import operations, revision
from stagecast.answers import Operations
from stagecast.client import Client
from stagecast.cluster import NATS, Cluster
from stagecast.rows import Row
from tests.conftest import eventually
from tests.system.deployment import MB, deployment, lay_out_random, until_ended, until_percent

pytestmark = [pytest.mark.system, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

CLIENTS = 200
EACH_KIND = CLIENTS // 3


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(data: Path) -> AsyncIterator[Cluster]:
    for model in ("first", "second"):
        lay_out_random(data / "models" / model, {"a.bin": 40 * MB})
    async with deployment(data, rate_limit=5 * MB, workers=1) as running:
        yield running


class Memory:
    """What one client has seen, and where a later answer was older."""

    def __init__(self) -> None:
        self.revision: revision.Revision | None = None
        self.rows: dict[str, Row] = {}
        self.answers = 0
        self.faults: list[str] = []

    def at(self, text: str) -> None:
        seen = revision.parse(text)
        assert seen is not None, text
        if self.revision is not None and seen < self.revision:  # by identity, then sequence, as tuples compare
            self.faults.append(f"revision {text} after {self.revision}")
        self.revision = seen

    def listed(self, listed: Operations) -> None:
        self.answers += 1
        self.at(listed.revision)
        for row in listed.operations:
            self.row(row)

    def row(self, row: Row) -> None:
        held = self.rows.get(row.job_id)
        if held is not None and (row.attempt, _is_ended(row), row.current_bytes) < (
            held.attempt, _is_ended(held), held.current_bytes
        ):  # fmt: skip
            self.faults.append(f"{row.id}: {row.state} {row.current_bytes} after {held.state} {held.current_bytes}")
        self.rows[row.job_id] = row


def _is_ended(row: Row) -> bool:
    return row.state in operations.ENDED


async def poll(client: Client, memory: Memory) -> None:
    while True:
        memory.listed(await client.operations())
        await asyncio.sleep(0.5)


async def long_poll(client: Client, memory: Memory) -> None:
    while True:
        memory.listed(await client.operations(after=client.revision, wait=20))


async def follow(client: Client, memory: Memory) -> None:
    async with aclosing(client.stream()) as stream:
        async for event in stream:
            memory.answers += 1
            memory.at(event.id)
            if event.event == "snapshot":
                for row in msgspec.json.decode(event.data, type=Operations).operations:
                    memory.row(row)
            else:
                memory.row(msgspec.json.decode(event.data, type=Row))


@asynccontextmanager
async def crowd(url: str) -> AsyncIterator[list[Memory]]:
    """Let the clients come and yield what they see; one whose request fails for good fails the test."""
    kinds: Iterable[Callable[[Client, Memory], Coroutine[None, None, None]]] = (poll, long_poll, follow)
    memories = [Memory() for _ in range(CLIENTS)]
    async with AsyncExitStack() as stack:
        tasks = []
        for memory, kind in zip(memories, [kind for kind in kinds for _ in range(EACH_KIND + 1)], strict=False):
            client = await stack.enter_async_context(Client(url, patience=30))
            tasks.append(asyncio.create_task(kind(client, memory)))
        yield memories
        broken = [task.exception() for task in tasks if task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert broken == []


def faults(memories: list[Memory]) -> Counter[str]:
    return Counter(fault for memory in memories for fault in memory.faults)


async def test_no_client_ever_sees_an_older_state_while_replicas_die(running: Cluster, client: Client) -> None:
    async with crowd(running.url) as memories:
        await eventually(lambda: all(memory.answers for memory in memories), 30)
        rows = await client.stage("first")
        for number, replica in enumerate(running.replicas):
            await until_percent(client, 15 + 25 * number, *rows)
            await running.kill(replica.name)
            await running.restart(replica.name)
        ended = await until_ended(client, *rows)
        before = [memory.answers for memory in memories]
        other = await client.stage("second")
        await eventually(
            lambda: all(memory.answers > count for memory, count in zip(memories, before, strict=True)), 30
        )
        await client.command(other[0].id, "cancel")
    assert [row.state for row in ended] == ["succeeded"]
    assert faults(memories) == {}
    assert all(memory.rows for memory in memories)


async def test_a_bus_that_comes_back_empty_is_a_fresh_picture_for_every_client(
    running: Cluster, client: Client
) -> None:
    async with crowd(running.url) as memories:
        await eventually(lambda: all(memory.answers for memory in memories), 30)
        rows = await client.stage("second")
        await until_percent(client, 20, *rows)
        lost = revision.parse(client.revision)
        # One replica learns of it only after the others: clients that have seen the new log meet it with the old one.
        os.kill(running.replicas[-1].pid, signal.SIGSTOP)
        await running.kill(NATS)
        shutil.rmtree(running.data / NATS)
        await running.restart(NATS)
        await eventually(lambda: sum(is_later(memory, lost) for memory in memories) > CLIENTS // 3, 30)
        os.kill(running.replicas[-1].pid, signal.SIGCONT)
        ended = await until_ended(client, *rows)
        after = revision.parse(client.revision)
        await eventually(lambda: all(is_later(memory, lost) for memory in memories), 30)
    assert [row.state for row in ended] == ["succeeded"]
    assert faults(memories) == {}
    assert after is not None
    assert lost is not None
    assert after.is_after(lost)


def is_later(memory: Memory, lost: revision.Revision | None) -> bool:
    return memory.revision is not None and lost is not None and memory.revision.is_after(lost)
