"""One process and no NATS: the same API, the page and the embeddings."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from stagecast import revision
from stagecast.client import Client
from stagecast.loopback import free_port, is_ready
from tests.system.deployment import MB, is_alive, lay_out_random, until_ended, write_backends

pytestmark = pytest.mark.system


@asynccontextmanager
async def serving(data: Path, *more: str) -> AsyncGenerator[tuple[Process, str], None]:
    """Run ``stagecast serve`` without NATS, with a model and its backend; yield the process and its URL."""
    if not (data / "models").exists():
        lay_out_random(data / "models" / "owl", {"weights.bin": MB})
    backends = write_backends(data / "backends.yaml", owl=())
    port = free_port()
    options = (
        "--listen",
        f"127.0.0.1:{port}",
        "--data",
        str(data),
        "--backends",
        str(backends),
        "--name",
        "here",
        *more,
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STAGECAST_")}
    with (data / "log").open("ab") as log:
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
            async with asyncio.timeout(20):
                assert await process.wait() == code
        assert not is_alive(backend)
    assert "Traceback" not in (tmp_path / "log").read_text()


async def test_the_next_process_knows_what_a_killed_one_knew_and_goes_on(tmp_path: Path) -> None:
    """Ended, failed, paused and cut off in the middle; and whoever watched goes on watching."""
    upstream = tmp_path / "upstream"
    lay_out_random(upstream, {"big.bin": 40 * MB, "held.bin": 40 * MB, "other.bin": MB})
    slow = ("--rate-limit", "20MB/s")
    async with serving(tmp_path, *slow) as (process, url), Client(url) as client:
        await until_ended(client, *await client.stage("owl"))
        before = (await client.embeddings("owl", ["a cat"]))[0][0]
        [failed] = await until_ended(client, await client.install(str(upstream / "other.bin"), sha256="0" * 64))
        held = await client.install(str(upstream / "held.bin"))
        paused = await client.command(held.id, "pause")
        cut_off = await client.install(str(upstream / "big.bin"))
        async with aclosing(client.stream()) as events:
            async for event in events:
                if event.event == "operation" and json.loads(event.data)["currentBytes"] > 4 * MB:
                    break
        process.kill()
        await process.wait()
        seen, history = client.revision, None
    async with serving(tmp_path, *slow) as (_, url), Client(url) as client:
        client.revision = seen
        listed = {row.id: row for row in (await client.operations()).operations}
        assert revision.parse(client.revision).identity == revision.parse(seen).identity  # type: ignore[union-attr]
        assert (listed[failed.id].state, listed[failed.id].error) == ("failed", failed.error)
        assert (listed[held.id].state, listed[held.id].job_id) == ("paused", paused.job_id)
        assert listed[cut_off.id].job_id == cut_off.job_id
        assert not is_alive(int(before))
        async with asyncio.timeout(60):
            while not [each for model in await client.models() for each in model.instances if each.state == "ready"]:
                await asyncio.sleep(0.05)
        async with aiohttp.ClientSession() as http, http.get(
            f"{url}/api/operations/stream", headers={"Last-Event-ID": seen}
        ) as stream:  # fmt: skip
            assert b"snapshot" not in await stream.content.readuntil(b"\n\n") + await stream.content.readuntil(b"\n\n")
        [ended] = await until_ended(client, listed[cut_off.id])
        assert (ended.state, ended.job_id) == ("succeeded", cut_off.job_id)
        history = await client.history()
        assert history[0].job_id == cut_off.job_id
        assert {(row.id, row.state) for row in history} == {
            (cut_off.id, "succeeded"), (failed.id, "failed"), ("staging:owl@here", "succeeded"),
            ("loading:owl@here", "succeeded"),
        }  # fmt: skip
        went_on = history[0]
        assert isinstance(went_on.attempts, list)
        assert went_on.attempts[0].state == "replaced"
        assert isinstance(went_on.bytes_moved, int)
        assert 0 < went_on.bytes_moved < 40 * MB, "what had arrived did not move again"
        await client.command(failed.id, "dismiss")
        await client.command(held.id, "cancel")
    async with serving(tmp_path, *slow) as (process, url), Client(url) as client:
        assert [row.id for row in (await client.operations()).operations if row.task_type != "loading"] == []
        assert [row.state for row in await client.history(state="cancelled")] == ["cancelled"]
        assert (await client.operation(cut_off.job_id)).state == "succeeded"
        assert (await client.operation(failed.id)).error == failed.error
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    assert "Traceback" not in (tmp_path / "log").read_text()


async def test_two_processes_do_not_share_a_data_folder(tmp_path: Path) -> None:
    async with serving(tmp_path):
        command = (sys.executable, "-m", "stagecast", "serve", "--listen", "127.0.0.1:0", "--data", str(tmp_path))
        second = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
        _, said = await second.communicate()
    assert second.returncode == 1
    assert said.decode().splitlines()[-1] == (
        f"error: the log {tmp_path}/log.sqlite3 cannot be used: another `stagecast serve` has it; "
        "end that one, or give this one a folder of its own with --data"
    )
