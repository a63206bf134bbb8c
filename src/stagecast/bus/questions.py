"""Questions to the server that are not answered yet, and no longer than the connection lasts that carried them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

_Result = TypeVar("_Result")


class Questions:
    """What was asked through one connection.

    The client waits for all of its time, also where the connection is a new one by then, on which no answer can come: a
    log would be followed again only that much after the bus is back.
    """

    def __init__(self) -> None:
        self._waiting: set[asyncio.Timeout] = set()

    @property
    def count(self) -> int:
        """How many wait for their answer."""
        return len(self._waiting)

    async def answered(self, work: Awaitable[_Result]) -> _Result:
        """Await an answer. Raises `ConnectionError` where it was given up meanwhile."""
        waiting = asyncio.timeout(None)
        try:
            async with waiting:
                self._waiting.add(waiting)
                return await cancellable(work)
        except TimeoutError:
            if waiting.expired():
                raise ConnectionError("the connection was lost") from None
            raise
        finally:
            self._waiting.discard(waiting)

    def abandon(self) -> None:
        """Give up all of them: the connection has changed."""
        for waiting in self._waiting:
            if not waiting.expired():
                waiting.reschedule(asyncio.get_running_loop().time())


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
