"""A process with nothing but nats-py in it: hears core NATS, and the log through a consumer of JetStream."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import nats
import uvloop
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from records import moment

BARE = "bench.bare"


async def _main(url: str) -> None:
    client = await nats.connect(url)
    core: list[tuple[int, bytes]] = []
    stream: list[tuple[int, bytes]] = []

    async def hear_core(message: Any) -> None:
        core.append((time.monotonic_ns(), message.data))

    async def hear_stream(message: Any) -> None:
        stream.append((time.monotonic_ns(), message.data))

    inbox = client.new_inbox()
    await client.subscribe(BARE, cb=hear_core)
    await client.subscribe(inbox, cb=hear_stream)
    config = ConsumerConfig(deliver_subject=inbox, deliver_policy=DeliverPolicy.NEW, ack_policy=AckPolicy.NONE)
    await client.jetstream().add_consumer("STAGECAST", config)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    print(json.dumps("up"), flush=True)
    while await reader.readline():
        print(json.dumps([[now - moment(data) for now, data in heard] for heard in (core, stream)]), flush=True)


if __name__ == "__main__":
    uvloop.run(_main(sys.argv[1]))
