"""From a process that is up to a replica that is ready, with thousands of operations, against a bare client."""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import nats
import uvloop
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from processes import child
from stagecast import composition
from stagecast.settings import ReplicaSettings

COUNT = 10_000
REPEATS = 5


async def measure(url: str) -> tuple[float, float]:
    """Return the seconds that a new replica, and that a bare client, took; the median of some new processes each."""
    ours, bare = [], []
    with child("load.py", url) as load:
        await asyncio.to_thread(load.ask, "begin", count=COUNT)
        for _ in range(REPEATS):
            ours.append(await asyncio.to_thread(_once, url, "ours"))
            bare.append(await asyncio.to_thread(_once, url, "bare"))
    return statistics.median(ours), statistics.median(bare)


def _once(url: str, which: str) -> float:
    with child("catching_up.py", url, which) as process:
        return float(process.said)


async def _ours(url: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        settings = ReplicaSettings(listen="127.0.0.1:0", nats=url, data=Path(folder), name="newcomer")
        began = time.monotonic()
        async with composition.replica(settings) as address:
            while b" 200 " not in await _get(address, "/readyz"):
                pass
            took = time.monotonic() - began
            shown = (await _get(address, "/api/operations")).partition(b"\r\n\r\n")[2]
            assert len(json.loads(shown)["operations"]) == COUNT
    return took


async def _get(address: str, path: str) -> bytes:
    host, _, port = address.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=2**26)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return answer


async def _bare(url: str) -> float:
    began = time.monotonic()
    client = await nats.connect(url)
    heard: set[str] = set()
    whole = asyncio.Event()

    async def hear(message: Msg) -> None:
        heard.add(message.subject)
        if len(heard) == COUNT:
            whole.set()

    inbox = client.new_inbox()
    await client.subscribe(inbox, cb=hear)
    config = ConsumerConfig(
        deliver_subject=inbox, deliver_policy=DeliverPolicy.LAST_PER_SUBJECT, ack_policy=AckPolicy.NONE,
        filter_subject="staging.*.progress",
    )  # fmt: skip
    await client.jetstream().add_consumer("STAGECAST", config)
    await whole.wait()
    took = time.monotonic() - began
    await client.close()
    return took


async def _main(url: str, which: str) -> None:
    print(json.dumps(await (_ours if which == "ours" else _bare)(url)), flush=True)


if __name__ == "__main__":
    uvloop.run(_main(*sys.argv[1:]))
