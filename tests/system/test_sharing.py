"""Workers that receive the same model pass on what they have: the origin sends it once or twice, not once for each."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from stagecast.client import Client
from stagecast.cluster import Cluster
from tests.sample import contents_of
from tests.system.deployment import MB, deployment, lay_out_random, metric, until_ended, until_percent

pytestmark = [pytest.mark.system, pytest.mark.asyncio(loop_scope="module")]

SENT = "stagecast_file_bytes_sent_total"
SIZES = {f"part-{number:02}.bin": 2 * MB for number in range(20)}
SIZE = sum(SIZES.values())


@pytest.fixture(scope="module")
def contents(data: Path) -> dict[str, bytes]:
    return lay_out_random(data / "models" / "big", SIZES)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(data: Path, contents: dict[str, bytes]) -> AsyncIterator[Cluster]:
    async with deployment(data, replicas=1, workers=3, rate_limit=12 * MB) as running:
        yield running


async def test_three_workers_get_pieces_from_each_other_though_one_is_killed_in_the_middle(
    running: Cluster, client: Client, contents: dict[str, bytes]
) -> None:
    one, two, three = await client.stage("big", ["worker-1", "worker-2", "worker-3"])
    await until_percent(client, 50, one, two, three)
    await running.kill("worker-3")
    ended = await until_ended(client, one, two)

    assert [(row.state, row.attempt) for row in ended] == [("succeeded", one.attempt), ("succeeded", two.attempt)]
    origin = await metric(running, SENT, "replica-1")
    others = await metric(running, SENT, "worker-1", "worker-2")
    assert origin < 2 * SIZE, "less than the two got"
    assert others > SIZE / 4
    for worker in ("worker-1", "worker-2"):
        assert contents_of(running.data / worker / "models" / "big") == contents
