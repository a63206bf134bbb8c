"""What was arrivals, asked of a real server that stands for a replica: 0 is said only where everything was counted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from chaos.arrivals import Arrivals


class Process:
    """A process that serves its metric, as long as it wants to; ``pid`` and ``url`` as of a `Child`."""

    name, pid, is_running = "worker-1", 1, True

    def __init__(self) -> None:
        self.received = 0
        self.is_well = True
        self.url = ""

    async def answer(self, _: web.Request) -> web.Response:
        """Say the metric."""
        if not self.is_well:
            raise web.HTTPServiceUnavailable
        return web.Response(text=f"stagecast_file_bytes_received_total {self.received}\n")


@pytest.fixture
async def process() -> AsyncIterator[Process]:
    made, app = Process(), web.Application()
    app.router.add_get("/metrics", made.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()


@pytest.fixture
async def cluster(process: Process) -> Any:
    return SimpleNamespace(workers=[process], children={"worker-1": process}, token="secret")


async def test_a_look_tells_what_has_arrived_since_the_last(process: Process, cluster: Any) -> None:
    async with Arrivals(cluster, None).open() as arrivals:
        assert await arrivals.look() is None, "there was none before"
        process.received = 7
        assert await arrivals.look() == 7
        assert await arrivals.look() == 0


async def test_who_does_not_answer_makes_both_sides_of_the_look_unknown(process: Process, cluster: Any) -> None:
    async with Arrivals(cluster, None).open() as arrivals:
        await arrivals.look()
        process.is_well = False
        assert await arrivals.look() is None
        process.is_well, process.received = True, 7
        assert await arrivals.look() is None, "some of it may be of before"
        assert await arrivals.look() == 0


async def test_the_end_of_a_process_is_counted_by_its_network_alone(process: Process, cluster: Any) -> None:
    async with Arrivals(cluster, None).open() as arrivals:
        await arrivals.look()
        async with arrivals.ending("worker-1"):
            pass
        assert await arrivals.look() is None
        assert await arrivals.look() == 0
    counts = iter([100, 130])
    network: Any = SimpleNamespace(received=lambda _: next(counts))
    async with Arrivals(cluster, network).open() as arrivals:
        await arrivals.look()
        async with arrivals.ending("worker-1"):
            process.is_running = False
        assert await arrivals.look() == 30


async def test_the_end_of_a_holder_leaves_everything_known(process: Process, cluster: Any) -> None:
    cluster.children["replica-1"] = SimpleNamespace(name="replica-1", pid=2)
    async with Arrivals(cluster, None).open() as arrivals:
        await arrivals.look()
        async with arrivals.ending("replica-1"):
            process.received = 5
        assert await arrivals.look() == 5
