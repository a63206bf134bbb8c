"""What was served, asked of a real server that stands for a replica: 0 is said only where everything was counted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from chaos.series import told
from chaos.served import Served, served_connections


class Process:
    """A process that serves its metric, as long as it wants to; ``pid`` and ``url`` as of a `Child`."""

    name, pid, is_running = "replica-1", 1, True

    def __init__(self) -> None:
        self.sent = 0
        self.is_well = True
        self.url = ""

    async def answer(self, _: web.Request) -> web.Response:
        """Say the metric."""
        if not self.is_well:
            raise web.HTTPServiceUnavailable
        return web.Response(text=f"stagecast_file_bytes_sent_total {self.sent}\n")


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
    settings = SimpleNamespace(api_key="key")
    return SimpleNamespace(replicas=[process], workers=[], children={"replica-1": process}, settings=settings)


async def test_a_look_tells_what_was_served_since_the_last(process: Process, cluster: Any) -> None:
    async with Served(cluster, None).open() as served:
        assert await served.look() is None, "there was none before"
        process.sent = 7
        assert await served.look() == 7
        assert await served.look() == 0


async def test_who_does_not_answer_makes_both_sides_of_the_look_unknown(process: Process, cluster: Any) -> None:
    async with Served(cluster, None).open() as served:
        await served.look()
        process.is_well = False
        assert await served.look() is None
        process.is_well, process.sent = True, 7
        assert await served.look() is None, "some of it may be of before"
        assert await served.look() == 0


async def test_the_end_of_a_process_is_counted_by_its_network_alone(process: Process, cluster: Any) -> None:
    async with Served(cluster, None).open() as served:
        await served.look()
        async with served.ending("replica-1"):
            pass
        assert await served.look() is None
        assert await served.look() == 0
    counts = iter([100, 130])
    network: Any = SimpleNamespace(sent=lambda _: next(counts))
    async with Served(cluster, network).open() as served:
        await served.look()
        async with served.ending("replica-1"):
            process.is_running = False
        assert await served.look() == 30


SOCKETS = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100000A:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 1
   1: 0100000A:2328 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 2
   2: 0100000A:1F90 0200000A:9999 01 00000000:00000000 00:00000000 00000000 0 0 3
   3: 0100000A:2328 0200000A:9998 01 00000000:00000000 00:00000000 00000000 0 0 4
   4: 0100000A:2328 0300000A:9998 01 00000000:00000000 00:00000000 00000000 0 0 5
   5: 0100000A:2328 0300000A:9997 06 00000000:00000000 00:00000000 00000000 0 0 6
   6: 0100000A:8888 0400000A:1F90 01 00000000:00000000 00:00000000 00000000 0 0 7
"""


def test_only_connections_over_which_files_go_out_are_counted() -> None:
    assert served_connections(SOCKETS, 0x1F90) == 2


@pytest.mark.parametrize(
    ("twice", "short", "said"), [(-3, 0, -3), (-3, 12, -3), (-3, 13, None), (9, 0, 9), (9, 1, None), (10, 99, 10)]
)
def test_a_count_that_a_piece_could_hide_behind_is_none(twice: int, short: int, said: int | None) -> None:
    assert told(twice, short, 10) == said
