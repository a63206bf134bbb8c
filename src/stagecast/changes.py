"""Changes of what a process knows: whoever waits for one, and whoever is told of each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, get_args

Topic = Literal["any", "holding", "placement", "limits", "identity"]
"""``any``: once after all changes that one turn of the loop brings. ``identity``: another stream is followed now."""


class Changes:
    """Who waits, and who listens."""

    def __init__(self) -> None:
        self._listeners: dict[Topic, list[Callable[[], None]]] = {topic: [] for topic in get_args(Topic)}
        self._waiters: dict[asyncio.Future[None], None] = {}
        self._is_telling = False

    async def until(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        """Wait until ``condition`` holds, asked anew after every change; tell whether it does."""
        try:
            async with asyncio.timeout(timeout):
                while not condition():
                    await self._change()
        except TimeoutError:
            return condition()
        return True

    @contextmanager
    def listening(self, topic: Topic, hear: Callable[[], None]) -> Iterator[None]:
        """Call ``hear`` after each change of what it concerns, and after a fresh picture, within the block."""
        self._listeners[topic].append(hear)
        try:
            yield
        finally:
            self._listeners[topic].remove(hear)

    def notify(self) -> None:
        """Wake whoever waits for a change. They run once this turn of the loop is over, and see all that it brought."""
        if self._waiters:
            waiters, self._waiters = self._waiters, {}
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)
        if self._listeners["any"] and not self._is_telling:
            self._is_telling = True
            asyncio.get_running_loop().call_soon(self._tell_any)

    def tell(self, *topics: Topic) -> None:
        """Call whoever listens to these topics."""
        for topic in topics:
            for hear in list(self._listeners[topic]):
                hear()

    def _tell_any(self) -> None:
        self._is_telling = False
        self.tell("any")

    async def _change(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = None
        try:
            await waiter
        finally:
            self._waiters.pop(waiter, None)
