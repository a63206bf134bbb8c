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
from stagecast.bus import Log
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


class Owned:
    """Operations of one owner, and where the log has the last word on each."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._records: list[Record] = []
        self._sequences: list[int] = []

    async def begin(self, count: int) -> None:
        """Write the first records of that many operations."""
        self._records = [record(number) for number in range(count)]
        for first in range(0, count, AT_ONCE):
            some = self._records[first : first + AT_ONCE]
            self._sequences += await asyncio.gather(*(self._log.append(*event(each)) for each in some))

    async def tick(self) -> None:
        """Let each operation tick once a second, at a moment of its own."""
        loop = asyncio.get_running_loop()
        order = sorted(range(len(self._records)), key=lambda _: random.random())
        period, began = 0, loop.time()
        async with asyncio.TaskGroup() as ticks:
            while True:
                for place, number in enumerate(order):
                    due = began + period + place / len(order)
                    while (left := due - loop.time()) > 0:
                        await asyncio.sleep(left)
                    ticks.create_task(self._say(number))
                period += 1

    async def _say(self, number: int) -> None:
        """Write the next record as every owner does, with a compare-and-set."""
        said = self._records[number] = ticked(self._records[number])
        self._sequences[number] = await self._log.append(*event(said), expected=self._sequences[number])


async def _main(url: str) -> None:
    client = await nats.connect(url)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with connect(url, "load") as bus, alive(client):
        owned, ticking = Owned(bus.log), asyncio.create_task(asyncio.sleep(0))
        print(json.dumps("up"), flush=True)
        while line := await reader.readline():
            command = json.loads(line)
            if command["do"] == "begin":
                await owned.begin(command["count"])
            elif command["do"] == "tick":
                ticking = asyncio.create_task(owned.tick())
            else:
                ticking.cancel()
                await asyncio.wait([ticking])
            print(json.dumps("done"), flush=True)
        ticking.cancel()
        await asyncio.wait([ticking])


if __name__ == "__main__":
    uvloop.run(_main(sys.argv[1]))
