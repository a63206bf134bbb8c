"""Limits and priorities on real processes: a change is felt while a transfer runs, and who waits goes first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
import pytest_asyncio

from stagecast.answers import Limits
from stagecast.client import Client
from stagecast.cluster import Cluster
from stagecast.following import follow
from stagecast.quantities import parse_time
from stagecast.rows import Row
from tests.system.deployment import MB, deployment, lay_out_random, until_ended, until_percent, write_backends

pytestmark = [pytest.mark.system, pytest.mark.asyncio(loop_scope="module")]

SIZES = {"big": 96 * MB, "both": 64 * MB, "other": 16 * MB, "late": 16 * MB, "wanted": 3 * MB}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(data: Path) -> AsyncIterator[Cluster]:
    for name, size in SIZES.items():
        lay_out_random(data / "models" / name, {"weights.bin": size})
    backends = write_backends(data / "backends.yaml", wanted=())
    async with deployment(data, replicas=2, workers=2, backends=backends) as running:
        yield running


async def rate_over(client: Client, row: Row, span: float) -> tuple[float, Row]:
    """Return bytes per second over so many seconds of a row's own ticks, by its owner's clock, and the last tick.

    The first word that comes may tell of the time before, so it is the next one that it begins with.
    """
    before, first = None, None
    async with asyncio.timeout(60), aclosing(follow(client, [row])) as words:
        async for word in words:
            if word.phase != "transferring" or not word.current_bytes:
                continue
            if before is None or before.updated_at == word.updated_at:
                before = word
                continue
            first = first or word
            seconds = parse_time(word.updated_at) - parse_time(first.updated_at)
            if seconds >= span:
                return (word.current_bytes - first.current_bytes) / seconds, word
    raise AssertionError("it ended")


async def limits_of(url: str, seen: Client) -> Limits:
    async with Client(url, revision=seen.revision) as direct:
        return await direct.limits()


async def test_the_rate_follows_a_change_while_a_staging_runs(running: Cluster, client: Client) -> None:
    await client.limit(rate=4 * MB)
    [row] = await client.stage("big", ["worker-1"])
    slow, word = await rate_over(client, row, 2.5)
    assert 2 * MB < slow < 8 * MB
    assert word.limited_by == "limit"
    assert word.message.endswith("limited by the rate limit")
    await client.limit(rate=0, node="worker-1", node_rate=16 * MB)
    fast, _ = await rate_over(client, row, 1.5)
    assert 2 * slow < fast < 32 * MB, "each replica and the worker heard of it"
    one, two = [await limits_of(replica.url, client) for replica in running.replicas]
    assert one == two
    assert (one.rate, one.nodes[0].rate) == (0, 16 * MB)
    await client.limit(node="worker-1", node_rate=0)
    [ended] = await until_ended(client, row)
    assert ended.state == "succeeded"
    detail = await client.operation(row.id)
    assert isinstance(detail.time_spent, dict)
    assert max(detail.time_spent, key=lambda on: detail.time_spent[on]) == "limit"  # type: ignore[index]
    [kept] = await client.history(job=row.job_id)
    assert kept.time_spent == detail.time_spent


async def test_what_a_request_waits_for_passes_the_queue_and_the_rest_goes_on_by_itself(
    running: Cluster, client: Client
) -> None:
    await client.limit(node="worker-2", node_rate=3 * MB, at_once=1)
    [other] = await client.stage("other", ["worker-2"])
    [late] = await client.stage("late", ["worker-2"], priority="low")
    await until_percent(client, 20, other)
    await client.load("wanted", "worker-2")
    assert await client.embeddings("wanted", ["a cat"])
    staged = await client.operation("staging:wanted@worker-2")
    assert (staged.state, staged.priority) == ("succeeded", "request")
    waits = await client.operation(late.id)
    assert (waits.state, waits.priority, waits.attempt) == ("queued", "low", 1)
    await client.limit(node="worker-2", node_rate=0, at_once=0)
    ended = await until_ended(client, other, late)
    assert [row.state for row in ended] == ["succeeded", "succeeded"]
    rows = [await client.operation(row.id) for row in ended]
    assert [len(row.attempts) for row in rows] == [2, 1]  # type: ignore[arg-type]
    assert rows[0].attempts[0].error == "gave way to others"  # type: ignore[index]
    assert parse_time(rows[0].updated_at) > parse_time(staged.updated_at)


async def test_the_cluster_s_rate_is_divided_over_the_workers_that_move(running: Cluster, client: Client) -> None:
    await client.limit(rate=8 * MB)
    rows = await client.stage("both", ["worker-1", "worker-2"])
    rates = await asyncio.gather(*(rate_over(client, row, 2.5) for row in rows))
    assert all(2 * MB < rate < 8 * MB for rate, _ in rates)
    assert sum(rate for rate, _ in rates) < 16 * MB
    shown = await client.limits()
    assert [(node.node, node.share) for node in shown.nodes] == [("worker-1", 4 * MB), ("worker-2", 4 * MB)]
    await asyncio.gather(*(client.command(row.id, "cancel") for row in rows))
    await client.limit(rate=0)
