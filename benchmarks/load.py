"""The load: a process that owns operations, begins them in the log, and lets each tick once a second."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import nats
import uvloop
from nats.aio.client import Client

from records import OWNER, event, record, ticked
from stagecast import subjects
from stagecast.bus.nats import connect
from stagecast.messages import Beat, Record

AT_ONCE = 500
"""Appends under way at a time."""


@asynccontextmanager
async def alive(client: Client) -> AsyncIterator[None]:
    """Keep the lease of the operations' owner for as long as the block lasts."""

    async def beat() -> None:
        while True:
            await client.publish(subjects.BEAT, msgspec.json.encode(Beat(process=OWNER)))
            await asyncio.sleep(1.0)

    task = asyncio.create_task(beat())
    try:
        yield
    finally:
        task.cancel()


async def begin(client: Client, count: int) -> list[Record]:
    """Write the first records of that many operations."""
    stream = client.jetstream(timeout=10)
    records = [record(number) for number in range(count)]
    for first in range(0, count, AT_ONCE):
        await asyncio.gather(*(stream.publish(*event(each)) for each in records[first : first + AT_ONCE]))
    return records


async def tick(client: Client, records: list[Record]) -> None:
    """Let each operation tick once a second, at a moment of its own."""
    loop = asyncio.get_running_loop()
    order = sorted(range(len(records)), key=lambda _: random.random())
    period, began = 0, loop.time()
    while True:
        for place, number in enumerate(order):
            due = began + period + place / len(order)
            while (left := due - loop.time()) > 0:
                await asyncio.sleep(left)
            records[number] = ticked(records[number])
            await client.publish(*event(records[number]))
        period += 1


async def _main(url: str) -> None:
    async with connect(url, "load"):
        pass  # the streams are there now
    client = await nats.connect(url)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    records: list[Record] = []
    ticking: asyncio.Task[None] | None = None
    print(json.dumps("up"), flush=True)
    async with alive(client):
        while line := await reader.readline():
            command = json.loads(line)
            if command["do"] == "begin":
                records = await begin(client, command["count"])
            elif command["do"] == "tick":
                ticking = asyncio.create_task(tick(client, records))
            elif ticking is not None:
                ticking.cancel()
                await asyncio.wait([ticking])
            print(json.dumps("done"), flush=True)


if __name__ == "__main__":
    uvloop.run(_main(sys.argv[1]))
