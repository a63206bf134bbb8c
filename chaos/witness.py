"""A witness on the bus: how far the log stands, and which process speaks for a node, read from NATS itself."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import msgspec
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.errors import APIError

from chaos.judge import Judge
from stagecast import subjects
from stagecast.messages import NodeRecord

INTERVAL: Final = 0.05
_TIMEOUT: Final = 0.5
_CLOSING: Final = 5.0
_STREAM: Final = "STAGECAST"
_GONE: Final = (NatsError, APIError, OSError, TimeoutError, asyncio.TimeoutError)


class Witness:
    """Made by `witness`."""

    def __init__(self, client: Client, judge: Judge) -> None:
        self._client = client
        self._stream = client.jetstream(timeout=_TIMEOUT)
        self._judge = judge
        self._created: list[object] = []
        self._is_over = False

    async def process_of(self, node: str) -> str:
        """Return the process (name/token) that speaks for a node, empty if it cannot be had now."""
        with contextlib.suppress(*_GONE):
            message = await self._stream.get_last_msg(_STREAM, subjects.node(node))
            return msgspec.json.decode(message.data or b"", type=NodeRecord).process
        return ""

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Tell the judge how far the log stands, for as long as the block lasts."""
        task = asyncio.create_task(self._watch(), name="witness")
        try:
            yield
        finally:
            # A cancel alone may be lost: Python 3.11's `wait_for` swallows one that comes together with an answer.
            self._is_over = True
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._is_over:
            with contextlib.suppress(*_GONE):
                info = await self._stream.stream_info(_STREAM)
                if info.created not in self._created:
                    self._created.append(info.created)
                self._judge.log_stands(loop.time(), self._created.index(info.created), info.state.last_seq)
            await asyncio.sleep(INTERVAL)


@asynccontextmanager
async def witness(url: str, judge: Judge) -> AsyncIterator[Witness]:
    """Watch the log for as long as the block lasts."""
    client = Client()

    async def ignore(_: Exception) -> None:
        pass

    await client.connect(
        url, connect_timeout=1, max_reconnect_attempts=-1, reconnect_time_wait=0.1, ping_interval=1,  # type: ignore[arg-type]
        max_outstanding_pings=2, error_cb=ignore,
    )  # fmt: skip
    made = Witness(client, judge)
    try:
        async with made.watching():
            yield made
    finally:
        with contextlib.suppress(*_GONE):
            async with asyncio.timeout(_CLOSING):
                await client.close()
