"""One process and no NATS: the same API, the page and the embeddings."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from stagecast.client import Client
from stagecast.loopback import free_port, is_ready
from tests.system.deployment import MB, is_alive, lay_out_random, until_ended, write_backends

pytestmark = pytest.mark.system


@asynccontextmanager
async def serving(data: Path) -> AsyncGenerator[tuple[Process, str], None]:
    """Run ``stagecast serve`` without NATS, with a model and its backend; yield the process and its URL."""
    lay_out_random(data / "models" / "owl", {"weights.bin": MB})
    backends = write_backends(data / "backends.yaml", owl=())
    port = free_port()
    options = ("--listen", f"127.0.0.1:{port}", "--data", str(data), "--backends", str(backends), "--name", "here")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STAGECAST_")}
    with (data / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "stagecast", "serve", *options, stdout=log, stderr=log, env=environment
        )
    try:
        async with asyncio.timeout(30):
            while not await is_ready(port):
                await asyncio.sleep(0.02)
        yield process, f"http://127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize(("ending", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
async def test_all_of_it_works_in_one_process_that_ends_when_told(
    tmp_path: Path, ending: signal.Signals, code: int
) -> None:
    async with serving(tmp_path) as (process, url), Client(url) as client, aiohttp.ClientSession() as http:
        [staged] = await until_ended(client, *await client.stage("owl"))
        assert (staged.id, staged.state) == ("staging:owl@here", "succeeded")
        backend = int((await client.embeddings("owl", ["a cat"]))[0][0])
        async with http.get(f"{url}/") as response:
            assert (response.status, response.content_type) == (200, "text/html")
            assert "Stagecast" in await response.text()
        async with http.get(f"{url}/api/operations/stream") as stream:  # left open: it must not hold up the end
            assert (await stream.content.readany()).startswith(b": replica ")
            process.send_signal(ending)
            async with asyncio.timeout(3):
                assert await process.wait() == code
        assert not is_alive(backend)
    assert "Traceback" not in (tmp_path / "log").read_text()
