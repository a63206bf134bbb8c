"""No byte moves twice: a worker that is killed goes on where it was, and one bad copy costs nothing but its pieces."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from stagecast.client import Client
from stagecast.cluster import Cluster
from stagecast.manifest import PIECE_SIZE
from stagecast.store import Store
from tests.sample import contents_of
from tests.system.deployment import (
    MB,
    deployment,
    lay_out_random,
    metric,
    until_ended,
    until_known,
    until_percent,
)

pytestmark = [pytest.mark.system, pytest.mark.asyncio(loop_scope="module")]

SENT = "stagecast_file_bytes_sent_total"
SIZE = 64 * MB


@pytest.fixture(scope="module")
def contents(data: Path) -> dict[str, bytes]:
    files = {"config.json": 300, "empty": 0, "sub/a.bin": 20 * MB, "b.bin": SIZE - 20 * MB - 300}
    return lay_out_random(data / "models" / "big", files)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(data: Path, contents: dict[str, bytes]) -> AsyncIterator[Cluster]:
    async with deployment(data, replicas=2, workers=2, rate_limit=16 * MB) as running:
        yield running


async def test_a_worker_that_was_killed_half_way_goes_on_and_moves_nothing_twice(
    running: Cluster, client: Client, contents: dict[str, bytes]
) -> None:
    [row] = await client.stage("big", ["worker-1"])
    await until_percent(client, 50, row)
    await running.kill("worker-1")
    await running.restart("worker-1")
    [ended] = await until_ended(client, row)
    assert (ended.state, ended.attempt, ended.job_id) == ("succeeded", row.attempt + 1, row.job_id)
    models = running.data / "worker-1" / "models"
    assert contents_of(models / "big") == contents
    assert list((models / ".stagecast").iterdir()) == []
    assert SIZE <= await metric(running, SENT, "replica-1", "replica-2") <= 1.05 * SIZE


async def test_a_holder_that_serves_flipped_bytes_is_tried_and_another_one_used(
    running: Cluster, client: Client, contents: dict[str, bytes]
) -> None:
    await until_known(client, "big", "worker-1")
    rot(running.data / "worker-1", "big")
    before = await metric(running, SENT, "worker-1")
    [ended] = await until_ended(client, *await client.stage("big", ["worker-2"]))
    assert ended.state == "succeeded"
    assert contents_of(running.data / "worker-2" / "models" / "big") == contents
    assert contents_of(running.data / "worker-1" / "models" / "big") != contents
    assert await metric(running, SENT, "worker-1") > before


def rot(node: Path, model: str) -> None:
    """Flip a byte in each piece on a node's disk so that no time stamp tells, as a disk does that goes bad."""
    store = Store(node / "models", node)
    manifest = store.manifest(model)
    for file in manifest.files:
        with store.path(model).joinpath(file.path).open("r+b") as content:
            for start in range(0, file.size, PIECE_SIZE):
                content.seek(start)
                flipped = content.read(1)[0] ^ 1
                content.seek(start)
                content.write(bytes([flipped]))
    store.record(manifest)
