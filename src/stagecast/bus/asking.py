"""Questions to the server, and the two ways in which waiting for an answer ends early."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import TypeVar

_Result = TypeVar("_Result")


async def cancellable(work: Awaitable[_Result]) -> _Result:
    """Await the client, and do not lose a cancellation that comes together with its answer.

    The client waits by `asyncio.wait_for`, which before Python 3.12 then returns the answer as if nothing had been.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0
    try:
        return await work
    finally:
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError


class Interruptions:
    """What is waited for on a connection that may be gone: the answer to what was asked there never comes."""

    def __init__(self) -> None:
        self._limits: set[asyncio.Timeout] = set()

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Raise `TimeoutError` in the block as soon as the connection changes."""
        async with asyncio.timeout(None) as limit:
            self._limits.add(limit)
            try:
                yield
            finally:
                self._limits.discard(limit)

    def interrupt(self) -> None:
        """Say that the connection has changed."""
        now = asyncio.get_running_loop().time()
        for limit in self._limits:
            limit.reschedule(now)
        self._limits.clear()
