"""Staging as everybody sees it at once: through the balancer, on each replica, on one that starts in the middle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from stagecast import operations
from stagecast.client import Client
from stagecast.cluster import Cluster
from stagecast.demo_checks import BALANCER, Judge, poll
from tests.conftest import eventually
from tests.system.deployment import MB, deployment, lay_out_random, until_ended, until_percent

pytestmark = [pytest.mark.system, pytest.mark.asyncio(loop_scope="module")]

MODELS = {
    "watched": {"config.json": 300, "sub/a.bin": 11 * MB, "b.bin": 44 * MB},
    "agreed": {"a.bin": 60 * MB},
    "late": {"a.bin": 120 * MB},
    "wanted": {"a.bin": 30 * MB},
    "small": {"a.bin": 1000},
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(data: Path) -> AsyncIterator[Cluster]:
    for model, files in MODELS.items():
        lay_out_random(data / "models" / model, files)
    async with deployment(data, rate_limit=10 * MB) as running:
        yield running


async def test_nothing_flickers_while_one_replica_is_killed_and_another_one_added(
    running: Cluster, client: Client
) -> None:
    judge = Judge()
    async with Client(running.url, patience=0) as browser:
        polling = asyncio.create_task(poll(browser, BALANCER, judge, 1 / 50))
        rows = await client.stage("watched")
        taken_by = client.replica
        await until_percent(client, 10, *rows)
        adding = asyncio.create_task(running.add_replica())
        await until_percent(client, 40, *rows)
        await running.kill(taken_by)
        added, added_at = await adding, judge.polls()
        assert {row.state for row in (await client.operations()).operations} == {"running"}
        ended = await until_ended(client, *rows)
        await eventually(lambda: judge.is_quiet)
        polling.cancel()
        await asyncio.wait([polling])
    assert {row.state for row in ended} == {"succeeded"}
    verdict = judge.verdict({row.job_id for row in ended})
    assert (verdict.failed, verdict.flickers, verdict.backward, verdict.phantoms) == (0, 0, 0, 0)
    assert verdict.polls > added_at > 100
    assert verdict.distinct_bodies == 1
    assert added.name in set.union(*judge._replicas.values())
    await running.restart(taken_by)


async def test_two_replicas_agree_byte_for_byte_at_every_revision(running: Cluster, client: Client) -> None:
    judge, is_over = Judge(), asyncio.Event()
    one, other = running.replicas[:2]
    async with Client(one.url) as asking, Client(other.url) as asking_too:
        polling = [
            asyncio.create_task(poll(each, name, judge, 0, is_over.is_set))
            for each, name in ((asking, one.name), (asking_too, other.name))
        ]
        ended = await until_ended(client, *await client.stage("agreed"))
        jobs = {row.job_id for row in ended}
        await eventually(lambda: judge.verdict(jobs).answers_compared >= 1000)  # a busy machine answers less often
        is_over.set()
        await asyncio.gather(*polling)
    assert {row.state for row in ended} == {"succeeded"}
    verdict = judge.verdict(jobs)
    assert verdict.compared > 10
    assert verdict.distinct_bodies == 1


async def test_a_replica_started_in_the_middle_shows_it_as_soon_as_it_is_ready(
    running: Cluster, client: Client, http: aiohttp.ClientSession
) -> None:
    [row] = await client.stage("late", ["worker-1"])
    count = len(running.replicas)
    adding = asyncio.create_task(running.add_replica())
    await eventually(lambda: len(running.replicas) > count)
    url = running.replicas[-1].url
    while await _status(http, f"{url}/readyz") != 200:
        await asyncio.sleep(0.005)
    async with Client(url, patience=0) as direct:
        shown = (await direct.operations()).operations
    assert [(each.job_id, each.state) for each in shown] == [(row.job_id, "running")]
    await adding
    await client.command(row.id, "cancel")


async def test_who_starts_or_cancels_sees_it_wherever_the_next_poll_lands(running: Cluster, client: Client) -> None:
    [row] = await client.stage("wanted", ["worker-2"])
    shown = await _polled(client, len(running.replicas))
    assert [[each.job_id for each in rows] for rows in shown] == [[row.job_id]] * len(shown)
    cancelled = await client.command(row.id, "cancel")
    assert cancelled.state == "cancelled"
    assert await _polled(client, len(running.replicas)) == [[]] * len(shown)
    assert (await client.operation(row.job_id)).state == "cancelled"
    models = running.data / "worker-2" / "models"
    assert not (models / "wanted").exists()
    assert list((models / ".stagecast").iterdir()) == []


async def test_a_retry_right_after_a_cancel_is_taken_up(client: Client) -> None:
    [row] = await client.stage("wanted", ["worker-2"])
    for _ in range(20):
        await client.command(row.id, "cancel")
        row = await client.command(row.id, "retry")
        async with asyncio.timeout(60):
            while (await client.operation(row.id)).state == "queued":
                await asyncio.sleep(0.01)
    assert (await client.command(row.id, "cancel")).state == "cancelled"


async def test_a_deletion_answers_when_the_files_are_gone_however_often(running: Cluster, client: Client) -> None:
    path = running.data / "worker-1" / "models" / "small"
    for _ in range(10):
        [ended] = await until_ended(client, *await client.stage("small", ["worker-1"]))
        assert ended.state == "succeeded"
        assert path.exists()
        await client.remove("small", "worker-1")
        assert not path.exists()


async def _polled(client: Client, replicas: int) -> list[list[object]]:
    """Return what is under way as twice as many polls through the balancer show it as there are replicas."""
    answers, answered_by = [], set()
    for _ in range(2 * replicas):
        shown = (await client.operations()).operations
        answers.append([row for row in shown if row.state not in operations.ENDED])
        answered_by.add(client.replica)
    assert len(answered_by) == replicas
    return answers


async def _status(http: aiohttp.ClientSession, url: str) -> int:
    try:
        async with http.get(url) as response:
            return response.status
    except aiohttp.ClientConnectionError:
        return 0
