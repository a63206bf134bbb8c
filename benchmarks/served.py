"""A whole replica in a process of its own, with what a benchmark needs beside it.

It is put together by `stagecast.composition` like every other. Beside its own routes, on the same server and through
the same middleware, it has a constant body, a constant 304, and a bare fan-out of server-sent events.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import nats
import uvloop
from litestar import Response, asgi, get
from litestar.enums import MediaType

from plain import BARE
from records import moment
from stagecast import composition
from stagecast.frontend import application
from stagecast.frontend.replica import Replica
from stagecast.proxy import until_gone
from stagecast.settings import ReplicaSettings

FAN_OUT = "bench.fanout"


class Beside:
    """What is measured, and the peers that it is measured against."""

    def __init__(self) -> None:
        self.replica: Replica | None = None
        self.constant = b""
        self.visible: list[int] = []
        self.bare: list[tuple[int, bytes]] = []
        self.frame = b""
        self.said = asyncio.Event()

    def build(self, replica: Replica, *rest: Any, **options: Any) -> Any:
        """Build the application of a replica, and register the peers' routes in it."""
        self.replica = replica
        gate = application.build(replica, *rest, **options)

        @get("/api/constant", media_type=MediaType.JSON, include_in_schema=False)
        async def constant() -> Response[bytes]:
            return Response(self.constant, media_type=MediaType.JSON)

        @get("/api/constant304", media_type=MediaType.JSON, include_in_schema=False)
        async def unchanged() -> Response[bytes]:
            return Response(b"", status_code=304, media_type=MediaType.JSON)

        @asgi("/api/bare", copy_scope=True)
        async def bare(scope: Any, receive: Any, send: Any) -> None:
            del scope
            task, watcher = asyncio.current_task(), asyncio.create_task(until_gone(receive))
            assert task is not None
            watcher.add_done_callback(lambda _: task.cancel())
            headers = [(b"content-type", b"text/event-stream")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b": hello\n\n", "more_body": True})
            with suppress(asyncio.CancelledError):
                while True:
                    await self.said.wait()
                    await send({"type": "http.response.body", "body": self.frame, "more_body": True})

        for handler in (constant, unchanged, bare):
            gate._app._app.register(handler)  # type: ignore[attr-defined]  # the application behind gate and segments
        return gate

    async def watch(self, identifier: str) -> None:
        """Note how long each word on an operation took from its owner to whoever waits for it here."""
        assert self.replica is not None
        tracker, seen = self.replica.tracker, 0
        while True:
            revision = tracker.revision
            await tracker.changed(revision)
            now, held = time.monotonic_ns(), tracker.fold.record(identifier)
            if held is not None and held.bytes_done != seen:
                seen = held.bytes_done
                self.visible.append(now - seen)

    async def hear_bare(self, message: Any) -> None:
        self.bare.append((time.monotonic_ns(), message.data))

    def latencies(self) -> tuple[list[int], list[int]]:
        """Return what was noted, and begin anew."""
        found = (self.visible, [now - moment(data) for now, data in self.bare])
        self.visible, self.bare = [], []
        return found

    async def fan_out(self, message: Any) -> None:
        self.frame = message.data
        self.said.set()
        self.said = asyncio.Event()


async def _answer(beside: Beside, command: dict[str, Any], tasks: list[asyncio.Task[None]]) -> Any:
    assert beside.replica is not None
    if command["do"] == "watch":
        tasks.append(asyncio.create_task(beside.watch(command["id"])))
    elif command["do"] == "latencies":
        return beside.latencies()
    elif command["do"] == "freeze":
        beside.constant = beside.replica.participant.view.body
        return len(beside.constant)
    elif command["do"] == "held":
        return len(beside.replica.fold.slots)
    return "done"


async def _main(url: str) -> None:
    beside = Beside()
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    with tempfile.TemporaryDirectory() as folder, patch.object(composition, "build", beside.build):
        settings = ReplicaSettings(listen="127.0.0.1:0", nats=url, data=Path(folder), name="served")
        async with composition.replica(settings) as address:
            client = await nats.connect(url)
            await client.subscribe(BARE, cb=beside.hear_bare)
            await client.subscribe(FAN_OUT, cb=beside.fan_out)
            await client.flush()
            print(json.dumps(address), flush=True)
            tasks: list[asyncio.Task[None]] = []
            while line := await reader.readline():
                print(json.dumps(await _answer(beside, json.loads(line), tasks)), flush=True)


if __name__ == "__main__":
    uvloop.run(_main(sys.argv[1]))
