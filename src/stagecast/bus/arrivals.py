"""Arrivals: messages on their way from the client's callback to the one task that takes them.

A burst is taken without giving way in between: only when nothing is left does the taker wait, and it is woken once for
whatever comes then. Silence is noticed by one timer for all messages, not by one for each.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterator

from nats.aio.msg import Msg


class Arrivals:
    """A queue with one taker, whose end is a message too."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._messages: deque[Msg] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._is_ended = False
        self._heard = self._loop.time()

    async def hear(self, message: Msg) -> None:
        """Take a message in; the client's callback."""
        self._messages.append(message)
        self._wake()

    def end(self) -> None:
        """Let `come` return None once everything that has come is taken."""
        self._is_ended = True
        self._wake()

    def next(self) -> Msg | None:
        """Return the next message that is there already, or None."""
        return self._messages.popleft() if self._messages else None

    async def come(self) -> Msg | None:
        """Wait for the next message and return it; None at the end.

        Raises:
            TimeoutError: nothing came for as long as `watched` says.
        """
        while not self._messages and not self._is_ended:
            self._waiter = self._loop.create_future()
            await self._waiter
        return self.next()

    @contextlib.contextmanager
    def watched(self, patience: float) -> Iterator[None]:
        """Let `come` raise, within the block, once nothing has come for ``patience`` seconds."""

        def look() -> None:
            nonlocal timer
            left = self._heard + patience - self._loop.time()
            if left <= 0 and self._waiter is not None and not self._waiter.done():
                self._waiter.set_exception(TimeoutError(f"nothing came for {patience:g} s"))
            timer = self._loop.call_later(left if left > 0 else patience, look)

        self._heard = self._loop.time()
        timer = self._loop.call_later(patience, look)
        try:
            yield
        finally:
            timer.cancel()

    def _wake(self) -> None:
        self._heard = self._loop.time()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
