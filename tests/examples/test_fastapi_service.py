"""The FastAPI example as three real processes behind a real balancer, alone too."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from types import ModuleType
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from yarl import URL

from stagecast import Client, Row
from stagecast.following import follow

pytestmark = [pytest.mark.system, pytest.mark.asyncio(loop_scope="module")]

ROOT = Path(__file__).parents[2]


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Any]:
    async with example("fastapi_cluster").cluster(tmp_path_factory.mktemp("fastapi")) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
        yield session


async def submitted(http: aiohttp.ClientSession, running: Any, name: str, frames: int) -> tuple[Any, Client]:
    """Submit a job through the balancer; return its row, and a client that has seen where the log has it."""
    async with http.post(f"{running.url}/render/{name}", params={"frames": str(frames)}) as response:
        assert response.status == 200
        client = Client(f"{running.url}/jobs")
        client.revision = response.headers["Stagecast-Revision"]
        return await response.json(), client


def owner(running: Any, row: Row) -> Any:
    """Return the process that a row names as its owner: its name ends in the process id."""
    return next(child for child in running.replicas if f"-{child.pid}/" in row.owner)


async def test_a_job_given_to_one_is_watched_on_another_and_goes_on_when_its_process_is_killed(
    running: Any, http: aiohttp.ClientSession
) -> None:
    given, anywhere = await submitted(http, running, "film", 60)
    assert (given["id"], given["taskType"], given["totalBytes"]) == ("render:film", "render", 60)
    async with anywhere:
        row = await anywhere.operation(given["jobID"])
        while not row.owner or row.current_bytes < 10:
            row = await anywhere.operation(row.job_id)
    dying = owner(running, row)
    watching = next(child for child in running.replicas if child is not dying)
    told: list[Row] = []
    there = Client(f"{watching.url}/jobs")
    there.revision = anywhere.revision
    async with there, aclosing(follow(there, [row])) as words:
        async with asyncio.timeout(60):
            async for word in words:
                if not told:
                    await dying.kill()
                told.append(word)
    assert [told[0].state, told[-1].state] == ["running", "succeeded"]
    assert (told[0].attempt, told[-1].attempt, told[-1].current_bytes) == (1, 2, 60)
    assert owner(running, told[-1]) is not dying
    counts = [word.current_bytes for word in told]
    assert counts == sorted(counts), "what the first attempt did is not done again"
    assert told[-1].message == "Render film: succeeded"
    await dying.restart()
    async with Client(f"{dying.url}/jobs") as back:
        assert [each.job_id for each in await back.history(kind="render")] == [given["jobID"]]


async def test_all_replicas_answer_the_same_bytes_and_any_of_them_cancels(
    running: Any, http: aiohttp.ClientSession
) -> None:
    given, anywhere = await submitted(http, running, "endless", 100_000)
    async with anywhere:
        assert [row.id for row in (await anywhere.operations()).operations] == [given["id"]]
    bodies: dict[str, set[bytes]] = {}

    async def agree() -> bool:
        for child in running.replicas:
            async with http.get(
                f"{child.url}/jobs/", headers={"Stagecast-Min-Revision": anywhere.revision}
            ) as response:
                bodies.setdefault(response.headers["Stagecast-Revision"], set()).add(body := await response.read())
                assert json.loads(body)["operations"][0]["id"] == "render:endless"
        return any(len(each) == 1 for each in bodies.values())

    async with asyncio.timeout(60):
        while not (await agree() and len(bodies) > 2):
            pass
    assert {len(each) for each in bodies.values()} == {1}
    async with http.post(f"{running.url}/jobs/{given['id']}/cancel") as response:
        assert (response.status, (await response.json())["state"]) == (200, "cancelled")
        at = response.headers["Stagecast-Revision"]
    for child in running.replicas:
        async with Client(f"{child.url}/jobs") as client:
            client.revision = at
            assert (await client.operation(given["jobID"])).state == "cancelled"


@pytest.mark.parametrize(("name", "frames"), [("film", "-1"), ("a%0Ab", "1"), ("film", "nonsense")])
async def test_what_cannot_be_meant_is_refused_with_a_reason(
    running: Any, http: aiohttp.ClientSession, name: str, frames: str
) -> None:
    async with http.post(URL(f"{running.url}/render/{name}?frames={frames}", encoded=True)) as response:
        assert 400 <= response.status < 500
        said = await response.json()
    if frames != "nonsense":  # that one is FastAPI's own
        assert said["error"]["code"] in {"bad_input", "invalid_name"}
        assert said["error"]["message"]


async def test_told_to_end_a_replica_does_so_though_a_stream_is_open_and_its_job_goes_on_at_once(
    running: Any, http: aiohttp.ClientSession
) -> None:
    given, anywhere = await submitted(http, running, "moved", 60)
    async with anywhere:
        row = await anywhere.operation(given["jobID"])
        while not row.owner:
            row = await anywhere.operation(row.job_id)
        leaving = owner(running, row)
        async with http.get(f"{leaving.url}/jobs/stream") as stream:
            assert (await stream.content.readline()).startswith(b": replica ")
            await leaving.stop()
            await stream.content.read()  # to its end
        assert "Finished server process" in leaving.tail(), "it ended by itself"
        async with asyncio.timeout(60), aclosing(follow(anywhere, [row])) as words:
            last = [word async for word in words][-1]
    assert (last.state, last.attempt) == ("succeeded", 2)
    await leaving.restart()


async def test_alone_it_is_the_same_without_nats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NATS_URL", raising=False)
    module = example("fastapi_service")
    async with module.progress.lifespan():
        row = await module.progress.submit("render", "short", total=2)
        assert (await module.progress.ended(row.job_id)).state == "succeeded"
