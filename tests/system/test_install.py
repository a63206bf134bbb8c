"""Installing from a gallery: seen on every replica, cancelled from any, taken over from a dead one."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
import yaml

from stagecast.client import Client
from stagecast.cluster import Cluster
from tests.sample import contents_of
from tests.system.deployment import MB, deployment, until_ended, until_percent
from tests.upstream_server import UpstreamServer

pytestmark = [pytest.mark.system, pytest.mark.asyncio(loop_scope="module")]


# Small files, since what a killed owner had of an unfinished piece (16 MiB, or a whole smaller file) moves again.
def contents() -> dict[str, bytes]:
    """Return files that no other model has: those would not be fetched."""
    parts = {f"sub/part-{number:02}.bin": os.urandom(2 * MB) for number in range(12)}
    return parts | {"config.json": os.urandom(300)}


MODELS = {name: contents() for name in ("seen", "unwanted", "inherited")}
SIZE = sum(map(len, MODELS["seen"].values()))
WRONG = "0" * 64


@pytest.fixture(scope="module")
def upstream() -> Iterator[UpstreamServer]:
    files = {f"/files/{name}/{path}": content for name, model in MODELS.items() for path, content in model.items()}
    server = UpstreamServer(files)
    server.rate = 6 * MB
    index = [entry(server, name, model) for name, model in MODELS.items()]
    forged = entry(server, "seen", {"config.json": MODELS["seen"]["config.json"]}, sha256=WRONG)
    index.append(forged | {"name": "forged"})
    server.contents["/index.yaml"] = yaml.safe_dump(index).encode()
    with server.running():
        yield server


def entry(server: UpstreamServer, name: str, contents: dict[str, bytes], sha256: str = "") -> dict[str, object]:
    """Return a gallery's entry in LocalAI's format."""
    files = [
        {
            "filename": path,
            "sha256": sha256 or hashlib.sha256(content).hexdigest(),
            "uri": f"{server.url}/files/{name}/{path}",
        }
        for path, content in contents.items()
    ]
    return {"name": name, "files": files}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(data: Path, upstream: UpstreamServer) -> AsyncIterator[Cluster]:
    async with deployment(data, workers=0, galleries=(f"{upstream.url}/index.yaml",)) as running:
        yield running


async def test_its_progress_shows_on_another_replica(
    running: Cluster, upstream: UpstreamServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = running.replicas[:2]
    async with Client(one.url) as asking, Client(other.url) as watching:
        row = await asking.install("seen")
        [shown] = await until_percent(watching, 20, row)
        assert (shown.id, shown.state, shown.owner.partition("/")[0]) == ("installation:seen", "running", one.name)
        assert 0 < shown.current_bytes < shown.total_bytes == SIZE
        monkeypatch.setattr(upstream, "rate", 0)
        [ended] = await until_ended(watching, row)
    assert (ended.state, ended.current_bytes) == ("succeeded", SIZE)
    assert contents_of(running.data / "models" / "seen") == MODELS["seen"]


async def test_another_replica_cancels_it_within_two_seconds(running: Cluster) -> None:
    one, other = running.replicas[:2]
    async with Client(one.url) as asking, Client(other.url) as watching:
        row = await asking.install("unwanted")
        await until_percent(watching, 10, row)
        async with asyncio.timeout(8):
            cancelled = await watching.command(row.id, "cancel")
        assert (cancelled.state, cancelled.job_id) == ("cancelled", row.job_id)
        assert (await asking.operation(row.job_id)).state == "cancelled"
    models = running.data / "models"
    assert not (models / "unwanted").exists()
    assert list((models / ".stagecast").iterdir()) == []


async def test_another_replica_goes_on_when_the_owner_is_killed(
    running: Cluster, client: Client, upstream: UpstreamServer
) -> None:
    before = upstream.sent.total()
    row = await client.install("inherited")
    owner = row.owner.partition("/")[0]
    await until_percent(client, 40, row)
    await running.kill(owner)
    async with asyncio.timeout(60):
        [ended] = await until_ended(client, row)
    # One attempt by the one who takes over, and one more where the last word told of bytes that must come again (L2).
    told = (await client.operation(row.job_id)).attempts
    assert isinstance(told, list)
    lost = [each for each in told if each.error == "bytes that had arrived were lost"]
    assert (ended.state, ended.attempt, ended.job_id) == ("succeeded", row.attempt + 1 + len(lost), row.job_id)
    assert len(lost) <= 1
    assert ended.owner.partition("/")[0] not in {"", owner}
    assert contents_of(running.data / "models" / "inherited") == MODELS["inherited"]
    assert upstream.sent.total() - before <= 1.1 * SIZE
    await running.restart(owner)


async def test_a_file_that_is_not_the_published_one_fails_with_both_digests(running: Cluster, client: Client) -> None:
    [failed] = await until_ended(client, await client.install("forged"))
    assert failed.state == "failed"
    assert isinstance(failed.error, str)
    assert hashlib.sha256(MODELS["seen"]["config.json"]).hexdigest() in failed.error
    assert WRONG in failed.error
    assert not (running.data / "models" / "forged").exists()
