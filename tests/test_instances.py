from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio

from tests.alone import Alone, Answer, alone
from tests.system.deployment import write_backends

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOKEN = {"Authorization": "Bearer secret"}


class Worker:
    """A worker's own listener, and the one instance that it serves."""

    def __init__(self, address: str, instance: str, http: aiohttp.ClientSession) -> None:
        self.here = Alone(address, http, None, None, None)  # type: ignore[arg-type]  # asked over HTTP alone
        self.instance = instance

    async def ask(self, method: str, path: str, **options: object) -> Answer:
        return await self.here.ask(method, path, **({"headers": TOKEN} | options))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Worker]:
    folder = tmp_path_factory.mktemp("worker")
    backends = write_backends(folder / "backends.yaml", owl=())
    async with alone(folder, backends=backends, token="secret") as here:
        assert (await here.post("/v1/embeddings", {"model": "owl", "input": ["a"]})).status == 200
        [node] = (await here.get("/api/nodes")).json["nodes"]
        [instance] = (await here.get("/api/models/owl")).json["instances"]
        yield Worker(node["address"], instance["id"], here.http)


async def test_a_request_reaches_the_instance_that_it_names(worker: Worker) -> None:
    answer = await worker.ask(
        "POST", f"/instances/{worker.instance}/v1/embeddings", json={"model": "owl", "input": ["a", "b"]}
    )
    assert answer.status == 200
    assert len(answer.json["data"]) == 2
    assert (await worker.ask("GET", f"/instances/{worker.instance}/health?deep=1")).json == {"status": "ok"}


@pytest.mark.parametrize("instance", ["0123456789abcdef", "", "owl"])
async def test_another_instance_is_refused_as_misdirected(worker: Worker, instance: str) -> None:
    answer = await worker.ask("GET", f"/instances/{instance}/health")
    assert answer.error == (421, "wrong_instance", f"instance {instance} does not run here (any more)")


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}])
async def test_who_lacks_the_cluster_s_secret_learns_nothing(worker: Worker, headers: dict[str, str]) -> None:
    for path in (f"/instances/{worker.instance}/health", "/instances/x/y", "/metrics", "/nothing"):
        answer = await worker.ask("GET", path, headers=headers)
        assert answer.error == (401, "unauthorized", "unauthorized")


async def test_health_is_for_everybody(worker: Worker) -> None:
    for path in ("/healthz", "/readyz"):
        answer = await worker.ask("GET", path, headers={})
        assert (answer.status, answer.json) == (200, {"ready": True})


async def test_metrics_are_there(worker: Worker) -> None:
    answer = await worker.ask("GET", "/metrics")
    assert (answer.status, answer.headers["Content-Type"].partition(";")[0]) == (200, "text/plain")
    assert b"stagecast_log_sequence" in answer.body


async def test_any_other_path_is_unknown(worker: Worker) -> None:
    assert (await worker.ask("GET", "/v1/models")).error == (404, "not_found", "no path '/v1/models' is known")


async def test_clients_that_leave_in_the_middle_do_not_disturb_the_others(worker: Worker) -> None:
    path = f"/instances/{worker.instance}/v1/chat/completions"
    for _ in range(3):
        async with worker.here.http.post(f"{worker.here.url}{path}", json={}, headers=TOKEN) as response:
            assert (await response.content.readany()).startswith(b"data: one")
    asked = [worker.ask("POST", path, data=json.dumps({"n": number})) for number in range(3)]
    assert all(answer.body.endswith(b"[DONE]\n\n") for answer in await asyncio.gather(*asked))
