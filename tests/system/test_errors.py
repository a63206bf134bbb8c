"""What cannot be done is said clearly, and leaves nothing half done."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from stagecast.client import Client
from stagecast.cluster import Cluster
from stagecast.rows import Row
from stagecast.session import ApiError
from tests.sample import contents_of
from tests.system.deployment import MB, deployment, lay_out_random, until_ended, until_known, until_percent

pytestmark = [pytest.mark.system, pytest.mark.asyncio(loop_scope="module")]

SIZE = 20 * MB


@pytest.fixture(scope="module")
def small_disk(data: Path) -> Iterator[Path]:
    """Give worker-2 a disk of its own, with room for less than the model."""
    models = data / "worker-2" / "models"
    models.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(models)]
    is_there = os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
    yield models
    if is_there:
        subprocess.run(["umount", str(models)], check=True)


@pytest.fixture
def resized(small_disk: Path) -> Iterator[Path]:
    """Yield the small disk, small again afterwards."""
    if not os.path.ismount(small_disk):
        pytest.skip("a full disk needs a tmpfs of its own, and mounting one needs root")
    yield small_disk
    resize(small_disk, 8)


@pytest.fixture(scope="module")
def contents(data: Path) -> dict[str, bytes]:
    lay_out_random(data / "worker-1" / "models" / "lonely", {"a.bin": 1000})
    return lay_out_random(data / "models" / "big", {"a.bin": SIZE - 300, "config.json": 300})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(data: Path, contents: dict[str, bytes], small_disk: Path) -> AsyncIterator[Cluster]:
    async with deployment(data, replicas=2, rate_limit=10 * MB) as running:
        async with Client(running.url) as client:
            await until_known(client, "lonely", "worker-1")
        yield running


async def test_what_nobody_knows_is_not_found(client: Client) -> None:
    with pytest.raises(ApiError, match="no model 'nope' is known; known: big, lonely") as no_model:
        await client.stage("nope")
    with pytest.raises(ApiError, match="no worker 'worker-9' is known; known: worker-1, worker-2") as no_node:
        await client.stage("big", ["worker-1", "worker-9"])
    with pytest.raises(ApiError, match="no operation 'staging:nope@worker-1' is known") as no_operation:
        await client.command("staging:nope@worker-1", "cancel")
    with pytest.raises(ApiError, match="no command 'crash' is known; known: cancel") as no_command:
        await client.command("staging:nope@worker-1", "crash")  # type: ignore[arg-type]
    for refused in (no_model, no_node, no_operation, no_command):
        assert (refused.value.status, refused.value.code) == (404, "not_found")
    assert (await client.operations()).operations == []


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "Input data was truncated"),
        (b"", "the body is missing"),
        (b"[]", "body: Expected `object`, got `array`"),
        (b'{"nodes": 5}', "nodes: Expected `str | array`, got `int`"),
        (b'{"nodes": []}', 'say which workers: "nodes" is a list of names, or "all"'),
        (b'{"nodes": "some"}', "nodes: Invalid enum value 'some'"),
        (b'{"node": "worker-1"}', "body: Object contains unknown field `node`"),
        (b'{"dry_run": "yes"}', "dry_run: Expected `bool`, got `str`"),
    ],
)
async def test_a_body_that_cannot_be_meant_is_refused(
    running: Cluster, client: Client, http: aiohttp.ClientSession, body: bytes, said: str
) -> None:
    url, headers = f"{running.url}/api/models/big/stage", {"Content-Type": "application/json"}
    async with http.post(url, data=body, headers=headers) as response:
        assert response.status == 400
        error = (await response.json())["error"]
    assert error["code"] == "bad_input"
    assert said in error["message"]
    assert (await client.operations()).operations == []


async def test_an_operation_that_has_ended_cannot_be_cancelled(client: Client) -> None:
    [ended] = await until_ended(client, *await client.stage("lonely", ["worker-1"]))
    assert ended.state == "succeeded"
    with pytest.raises(ApiError, match="cannot cancel staging:lonely@worker-1: it is succeeded") as refused:
        await client.command(ended.id, "cancel")
    assert (refused.value.status, refused.value.code) == (409, "wrong_state")


async def test_a_disk_without_room_is_named_with_its_numbers_and_a_retry_works(
    client: Client, resized: Path, contents: dict[str, bytes]
) -> None:
    [failed] = await until_ended(client, *await client.stage("big", ["worker-2"]))
    assert failed.state == "failed"
    assert f"worker-2: {resized} has " in error_of(failed)
    assert f"bytes free, but {SIZE:,} more are needed (0 are there already)" in error_of(failed)
    assert [path.name for path in resized.iterdir()] == [".stagecast"]
    resize(resized, 64)
    [ended] = await until_ended(client, await client.command(failed.id, "retry"))
    assert (ended.state, ended.attempt) == ("succeeded", failed.attempt + 1)
    assert contents_of(resized / "big") == contents
    assert list((resized / ".stagecast").iterdir()) == []
    await client.remove("big", "worker-2")


async def test_a_disk_that_fills_up_half_way_keeps_what_came(
    client: Client, resized: Path, contents: dict[str, bytes]
) -> None:
    resize(resized, 32)
    rows = await client.stage("big", ["worker-2"])
    await until_percent(client, 20, *rows)
    ballast = resized / ".ballast"
    fill(ballast)
    [failed] = await until_ended(client, *rows)
    assert failed.state == "failed"
    assert f"worker-2: {resized} has 0 bytes free, but " in error_of(failed)
    assert {path.name for path in resized.iterdir()} == {".stagecast", ".ballast"}
    ballast.unlink()
    [ended] = await until_ended(client, await client.command(failed.id, "retry"))
    assert ended.state == "succeeded"
    assert contents_of(resized / "big") == contents
    await client.remove("big", "worker-2")


async def test_a_dead_node_is_refused_and_a_dead_holder_fails_the_staging(running: Cluster, client: Client) -> None:
    await running.kill("worker-1")
    rows = await client.stage("lonely", ["worker-2"])
    async with asyncio.timeout(60):
        while (await refusal(client)).status != 409:
            await asyncio.sleep(0.1)
    assert (await refusal(client)).message == "cannot stage to worker worker-1: it is not answering"
    async with asyncio.timeout(60):
        [failed] = await until_ended(client, *rows)
    assert failed.state == "failed"
    assert error_of(failed).startswith("no holder gave the manifest of lonely: ")
    assert not (running.data / "worker-2" / "models" / "lonely").exists()
    await running.restart("worker-1")
    [ended] = await until_ended(client, await client.command(failed.id, "retry"))
    assert ended.state == "succeeded"


async def refusal(client: Client) -> ApiError:
    """Return how a staging to worker-1 is refused; 200 while it is not."""
    try:
        await client.stage("lonely", ["worker-1"])
    except ApiError as error:
        return error
    return ApiError(200, "", "")


def error_of(row: Row) -> str:
    assert isinstance(row.error, str)
    return row.error


def resize(disk: Path, megabytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={megabytes}m", str(disk)], check=True)


def fill(ballast: Path) -> None:
    """Take all the room that is left on a disk."""
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(65536))
        except OSError:
            pass
