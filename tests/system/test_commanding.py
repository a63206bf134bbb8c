"""Commands reach whoever works on it, from any replica: one that sleeps, and one that is started anew meanwhile."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from stagecast.client import Client
from stagecast.cluster import NATS, Cluster
from stagecast.store import Store
from tests.conftest import eventually
from tests.sample import contents_of
from tests.system.deployment import MB, deployment, lay_out_random, metric, until_ended, until_percent

pytestmark = [pytest.mark.system, pytest.mark.asyncio(loop_scope="module")]

SENT = "stagecast_file_bytes_sent_total"
REPLICAS = ("replica-1", "replica-2")
SIZE = 40 * MB


@pytest.fixture(scope="module")
def contents(data: Path) -> dict[str, bytes]:
    return lay_out_random(data / "models" / "big", {"a.bin": 15 * MB, "b.bin": SIZE - 15 * MB})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(data: Path, contents: dict[str, bytes]) -> AsyncIterator[Cluster]:
    async with deployment(data, replicas=2, workers=2, rate_limit=12 * MB) as running:
        yield running


def partial_bytes(running: Cluster, worker: str) -> int:
    folder = running.data / worker
    return Store(folder / "models", folder, worker).partial_bytes("big")


async def test_a_pause_outlives_every_process_and_a_resume_moves_only_the_rest(
    running: Cluster, client: Client, contents: dict[str, bytes]
) -> None:
    [row] = await client.stage("big", ["worker-1"])
    await until_percent(client, 40, row)
    paused = await client.command(row.id, "pause")
    assert paused.state == "paused"
    sent = await metric(running, SENT, *REPLICAS)
    for name in ("worker-1", NATS, *REPLICAS):
        await running.kill(name)
        await running.restart(name)
    again = await client.operation(row.id)
    assert (again.state, again.current_bytes, again.attempt) == ("paused", paused.current_bytes, 1)
    resumed = await client.command(row.id, "resume")
    assert (resumed.job_id, resumed.attempt) == (row.job_id, 2)
    [ended] = await until_ended(client, resumed)
    assert (ended.state, ended.current_bytes) == ("succeeded", SIZE)
    assert contents_of(running.data / "worker-1" / "models" / "big") == contents
    assert SIZE <= sent + await metric(running, SENT, *REPLICAS) <= 1.05 * SIZE


async def test_an_owner_that_sleeps_is_overruled_in_two_seconds_and_obeys_when_it_wakes(
    running: Cluster, client: Client
) -> None:
    [row] = await client.stage("big", ["worker-2"])
    await until_percent(client, 10, row)
    worker = running.children["worker-2"].pid
    os.kill(worker, signal.SIGSTOP)
    try:
        async with asyncio.timeout(8):
            paused = await client.command(row.id, "pause")
    finally:
        os.kill(worker, signal.SIGCONT)
    assert paused.state == "paused"
    resumed = await client.command(row.id, "resume")
    await until_percent(client, 40, resumed)
    os.kill(worker, signal.SIGSTOP)
    try:
        async with asyncio.timeout(8):
            cancelled = await client.command(row.id, "cancel")
    finally:
        os.kill(worker, signal.SIGCONT)
    assert (cancelled.state, cancelled.attempt, cancelled.job_id) == ("cancelled", 2, row.job_id)
    assert cancelled.message.endswith(" MB freed once worker-2 is back")
    await eventually(lambda: partial_bytes(running, "worker-2") == 0)
    assert (await client.operation(row.id)).state == "cancelled"


async def test_a_cancel_that_keeps_the_partial_saves_the_next_staging_those_bytes(
    running: Cluster, client: Client, contents: dict[str, bytes]
) -> None:
    before = await metric(running, SENT, *REPLICAS, "worker-1")
    [row] = await client.stage("big", ["worker-2"])
    await until_percent(client, 40, row)
    kept = await client.command(row.id, "cancel", keep_partial=True)
    assert isinstance(kept.kept_bytes, int)
    assert kept.kept_bytes == partial_bytes(running, "worker-2") >= 0.4 * SIZE
    [ended] = await until_ended(client, *await client.stage("big", ["worker-2"]))
    assert (ended.state, ended.attempt) == ("succeeded", kept.attempt + 1)
    assert ended.job_id != row.job_id
    assert contents_of(running.data / "worker-2" / "models" / "big") == contents
    assert SIZE <= await metric(running, SENT, *REPLICAS, "worker-1") - before <= 1.05 * SIZE
