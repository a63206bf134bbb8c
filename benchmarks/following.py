"""The processor time of a replica that follows many operations, against a bare client that hears the same messages."""

from __future__ import annotations

import asyncio
import json
import sys
import time

import nats
import uvloop
from nats.aio.msg import Msg

from processes import child, cpu_seconds, replica

COUNT = 1000
SECONDS = 15.0
SETTLE = 3.0


async def measure(url: str) -> tuple[float, float, float]:
    """Return which part of a core a replica and a bare client used, and how many messages a second they heard."""
    with child("load.py", url) as load, child("following.py", url) as bare, replica(url) as ours:
        await asyncio.to_thread(load.ask, "begin", count=COUNT)
        await asyncio.to_thread(load.ask, "tick")
        await asyncio.sleep(SETTLE)
        heard, began = await asyncio.to_thread(bare.ask, "heard"), time.monotonic()
        before = [cpu_seconds(pid) for pid in (ours, bare.pid)]
        await asyncio.sleep(SECONDS)
        after = [cpu_seconds(pid) for pid in (ours, bare.pid)]
        heard, took = await asyncio.to_thread(bare.ask, "heard") - heard, time.monotonic() - began
        await asyncio.to_thread(load.ask, "rest")
    used = [(late - early) / took for early, late in zip(before, after, strict=True)]
    return used[0], used[1], heard / took


async def _main(url: str) -> None:
    client = await nats.connect(url)
    count = 0

    async def hear(message: Msg) -> None:
        nonlocal count
        count += len(message.data) > 0

    await client.subscribe("staging.*.progress", cb=hear)
    await client.flush()
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    print(json.dumps("up"), flush=True)
    while await reader.readline():
        print(json.dumps(count), flush=True)


if __name__ == "__main__":
    uvloop.run(_main(sys.argv[1]))
