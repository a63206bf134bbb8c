"""Loading and routing: one load however many ask, served when ready, and a clear word where it is not."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from stagecast.answers import RunningInstance
from stagecast.client import Client
from stagecast.cluster import Cluster
from stagecast.session import ApiError
from tests.system.deployment import MB, deployment, is_alive, lay_out_random, write_backends

pytestmark = [pytest.mark.system, pytest.mark.asyncio(loop_scope="module")]

TEXTS = ["a cat", "a dog", "a bird", "a fish", "a bee"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(data: Path) -> AsyncIterator[Cluster]:
    for model in ("together", "gated", "streaming", "broken"):
        lay_out_random(data / "models" / model, {"weights.bin": MB})
    backends = write_backends(
        data / "backends.yaml",
        gated=("--gate", str(data / "gate")),
        streaming=("--streams", "--gate", str(data / "stream-gate")),
        broken=("--starts", str(data / "starts"), "--fail", "tensor wte has the wrong shape"),
        together=(),
    )
    async with deployment(data, backends=backends) as running:
        yield running


async def test_fifty_requests_on_three_replicas_make_one_load(running: Cluster, client: Client) -> None:
    async def ask(number: int) -> list[list[float]]:
        async with Client(running.replicas[number % 3].url) as direct:
            return await direct.embeddings("together", [TEXTS[number % 5]])

    answers = await asyncio.gather(*map(ask, range(50)))
    assert all(answers[number] == answers[number % 5] for number in range(50))
    assert len({answer[0][0] for answer in answers}) == 1, "more than one process has answered"
    assert await loads(client, "together") == ["succeeded"]
    assert [instance.state for instance in await instances(client, "together")] == ["ready"]


async def test_a_backend_that_dies_is_seen_and_started_again(client: Client) -> None:
    pid = int((await client.embeddings("together", ["a cat"]))[0][0])
    [before] = await instances(client, "together")
    os.kill(pid, signal.SIGKILL)
    states = set()
    async with asyncio.timeout(60):
        while (now := (await instances(client, "together"))[0]).id in {before.id, ""} or now.state != "ready":
            states.add(now.state)
    assert "restarting" in states
    assert now.node == before.node
    assert int((await client.embeddings("together", ["a cat"]))[0][0]) != pid


async def test_a_request_during_the_restart_is_served_by_the_new_instance(client: Client) -> None:
    pid = int((await client.embeddings("together", ["a cat"]))[0][0])
    os.kill(pid, signal.SIGKILL)
    while is_alive(pid):
        await asyncio.sleep(0)
    assert int((await client.embeddings("together", ["a cat"]))[0][0]) != pid


async def test_a_client_that_leaves_does_not_stop_the_load(data: Path, client: Client) -> None:
    asking = asyncio.create_task(client.embeddings("gated", ["a cat"]))
    async with asyncio.timeout(60):
        while [each.state for each in await instances(client, "gated")] != ["loading"]:
            await asyncio.sleep(0.02)
    asking.cancel()
    await asyncio.wait([asking])
    (data / "gate").touch()
    assert await loads(client, "gated") == ["succeeded"]
    assert [each.state for each in await instances(client, "gated")] == ["ready"]


async def test_a_streaming_response_arrives_chunk_by_chunk(
    running: Cluster, data: Path, http: aiohttp.ClientSession
) -> None:
    body = {"model": "streaming", "stream": True}
    async with http.post(f"{running.url}/v1/chat/completions", json=body) as response:
        assert (response.status, response.content_type) == (200, "text/event-stream")
        assert await response.content.readany() == b"data: one\n\n"
        (data / "stream-gate").touch()  # only now does the backend say more
        rest = [chunk async for chunk in response.content.iter_any()]
    assert rest == [b"data: two\n\n", b"data: three\n\n", b"data: [DONE]\n\n"]


async def test_a_model_that_nobody_has_is_not_found_in_the_shape_of_openai(
    running: Cluster, http: aiohttp.ClientSession
) -> None:
    async with http.post(f"{running.url}/v1/embeddings", json={"model": "nope", "input": ["x"]}) as response:
        assert response.status == 404
        error = (await response.json())["error"]
    assert error.pop("message").startswith("no model 'nope' is known; known: broken, ")
    assert error == {"type": "invalid_request_error", "param": None, "code": "not_found"}


async def test_a_model_that_cannot_load_says_why_and_is_not_tried_for_ever(
    running: Cluster, data: Path, client: Client
) -> None:
    for _ in range(3):
        with pytest.raises(ApiError, match="tensor wte has the wrong shape") as failed:
            await client.embeddings("broken", ["a cat"])
        assert (failed.value.status, failed.value.code) == (502, "backend_failed")
    assert (data / "starts").read_text().count("started") == len(running.workers)
    assert await loads(client, "broken") == ["failed"] * len(running.workers)


async def test_a_request_that_has_waited_long_enough_hears_where_the_load_stands(
    tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    lay_out_random(tmp_path / "models" / "big", {"weights.bin": 20 * MB})
    backends = write_backends(tmp_path / "backends.yaml", big=())
    options = {"replicas": 1, "workers": 1, "rate_limit": 4 * MB, "wait_budget": 1.5}
    async with deployment(tmp_path, backends=backends, **options) as running:
        asked = {"model": "big", "input": ["a cat"]}
        async with http.post(f"{running.url}/v1/embeddings", json=asked) as response:
            assert response.status == 503
            assert 1 <= int(response.headers["Retry-After"]) <= 10
            said = await response.json()
        assert said["error"].pop("message").startswith("big is loading")
        assert said["error"] == {"type": "model_loading", "code": "model_loading"}
        loading = said["loading"]
        assert 0 < loading.pop("bytes_sent") < 20 * MB
        assert 0 < loading.pop("progress") < 100
        assert 0 < loading.pop("eta_seconds", 2.0) < 10
        assert loading == {
            "model": "big", "state": "transferring", "node": "worker-1", "total_bytes": 20 * MB,
            "file_index": 1, "total_files": 1,
        }  # fmt: skip
        async with Client(running.url) as client, asyncio.timeout(60):
            while [each.state for each in await instances(client, "big")] != ["ready"]:
                await asyncio.sleep(0.05)
            assert len(await client.embeddings("big", ["a cat"])) == 1


async def instances(client: Client, model: str) -> list[RunningInstance]:
    """Return the backends that serve a model, or are about to."""
    [found] = [each for each in await client.models() if each.name == model]
    return found.instances


async def loads(client: Client, model: str) -> list[str]:
    """Return how each load of a model has ended, once none is under way any more."""
    async with asyncio.timeout(60):
        while not (ended := await client.history(kind="loading", model=model)) or await _is_loading(client, model):
            await asyncio.sleep(0.02)
    return [row.state for row in ended]


async def _is_loading(client: Client, model: str) -> bool:
    shown = (await client.operations()).operations
    return any((row.task_type, row.name) == ("loading", model) and row.state == "running" for row in shown)
