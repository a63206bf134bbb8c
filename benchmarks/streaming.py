"""Event-stream clients of one replica: memory of each and delay to it, against a bare fan-out by the same server."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from dataclasses import dataclass
from functools import partial

import msgspec
import nats
import uvloop

from latency import Spread, spread
from load import alive
from processes import Child, child, resident_bytes
from records import event, record, ticked
from served import FAN_OUT
from stagecast import rows
from stagecast.bus.nats import connect

CLIENTS = 1000
ROUNDS = 40
PAUSE = 0.15
STREAM, BARE = "/api/operations/stream", "/api/bare"
_MOMENT = re.compile(rb'"currentBytes":(\d+)')


@dataclass(frozen=True)
class Streamed:
    """Bytes of memory for each client, and how long a word takes to reach them."""

    memory: float
    delay: Spread


async def measure(url: str) -> tuple[Streamed, Streamed]:
    """Return what the event stream costs, and what the bare fan-out does."""
    with child("served.py", url) as served:
        address = str(served.said).removeprefix("http://")
        with child("streaming.py", address) as listener:
            memory = [await asyncio.to_thread(_gather, listener, served.pid, path) for path in (STREAM, BARE)]
            delays = await _say(url, listener)
    return Streamed(memory[0], delays[0]), Streamed(memory[1], delays[1])


def _gather(listener: Child, pid: int, path: str) -> float:
    listener.ask("gather", path=path, count=10)  # what only the first ones cost
    before = resident_bytes(pid)
    listener.ask("gather", path=path, count=CLIENTS)
    return (resident_bytes(pid) - before) / CLIENTS


async def _say(url: str, listener: Child) -> tuple[Spread, Spread]:
    async with connect(url, "owner") as bus:
        client = await nats.connect(url)
        async with alive(client):
            held = record(0)
            sequence = await bus.log.append(*event(held))
            await asyncio.sleep(1.0)
            await asyncio.to_thread(listener.ask, "delays")
            for _ in range(ROUNDS):
                held = ticked(held)
                subject, payload = event(held)
                sequence = await bus.log.append(subject, payload, expected=sequence)
                await asyncio.sleep(PAUSE)
                frame = _frame(sequence, msgspec.json.encode(rows.row(ticked(held))))
                await client.publish(FAN_OUT, frame)
                await asyncio.sleep(PAUSE)
            found = await asyncio.to_thread(listener.ask, "delays")
        await client.close()
    return spread(found[STREAM]), spread(found[BARE])


def _frame(sequence: int, data: bytes) -> bytes:
    return b"id: 0123456789abcdef-%d\nevent: operation\ndata: %s\n\n" % (sequence, data)


class Listener(asyncio.Protocol):
    """One client. It notes when each word came that carries the moment at which it was said."""

    def __init__(self, path: str, delays: list[int], begun: asyncio.Event) -> None:
        self._path = path
        self._delays = delays
        self._begun = begun

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(f"GET {self._path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        self._begun.set()
        self._delays += [now - int(said) for said in _MOMENT.findall(data) if said != b"0"]


async def _main(address: str) -> None:
    host, _, port = address.partition(":")
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    delays: dict[str, list[int]] = {STREAM: [], BARE: []}
    print(json.dumps("up"), flush=True)
    while line := await reader.readline():
        command = json.loads(line)
        if command["do"] == "gather":
            path, count = command["path"], command["count"]
            begun = [asyncio.Event() for _ in range(count)]
            for each in begun:
                await loop.create_connection(partial(Listener, path, delays[path], each), host, int(port))
            await asyncio.gather(*(each.wait() for each in begun))
            print(json.dumps("done"), flush=True)
        else:
            print(json.dumps(delays), flush=True)
            for found in delays.values():
                found.clear()


if __name__ == "__main__":
    uvloop.run(_main(sys.argv[1]))
