"""A consumer: what one JetStream consumer delivers, on its way from the connection to the task that takes it.

A burst is taken without giving way in between: only when nothing is left does the taker wait, and it is woken once for
whatever comes then. Where messages come on each other's heels for long, they are taken in gulps: to wake for each costs
more than the message. Silence is noticed by one timer for all messages, not by one for each.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from nats.aio.msg import Msg

from stagecast.bus import CaughtUp
from stagecast.bus.connection import DELIVERY
from stagecast.bus.whole import Whole
from stagecast.messages import Entry

BUSY: Final = 0.002
"""Seconds between two messages, on average, below which they are taken in gulps."""
GULP: Final = 0.01
"""Seconds for which messages are let come then, after each gulp."""
_LULL: Final = 0.02
_LAST: Final = ".0"
"""How a delivery's reply subject ends where nothing more is pending: who has all that there is."""
_WEIGHT: Final = 1 / 16


class Consumer:
    """Deliveries in order, up to the first gap. Those up to ``target`` stood in the log when it was made."""

    def __init__(self, held: int, target: int, rest: Callable[[float], None] = lambda _: None) -> None:
        """``rest`` lets the connection read nothing for so many seconds, where it can."""
        self.is_spent = False
        """Nothing more can be had: a delivery is missing, or the connection has changed."""
        self._rest = rest
        self._is_resting = False
        self._loop = asyncio.get_running_loop()
        self._heard = self._loop.time()
        self._gap = _LULL
        self._arrived: deque[Msg] = deque()
        self._owed: list[Msg] = []
        self._waiter: asyncio.Future[None] | None = None
        self._is_ended = False
        self._delivered = 0
        self._whole = Whole(held, target)

    def hear(self, message: Msg) -> None:
        """Take a message in, as the connection reads it."""
        self._arrived.append(message)
        now = self._loop.time()
        self._gap += (min(now - self._heard, _LULL) - self._gap) * _WEIGHT
        self._heard = now
        if self._is_resting:
            return
        self._wake()
        if self._gap < BUSY and message.reply.endswith(_LAST):
            self._is_resting = True
            self._loop.call_later(GULP, self._go_on)
            self._rest(GULP)

    def end(self) -> None:
        """Be spent once everything that has come is taken."""
        self._is_ended = True
        self._wake()

    def next(self) -> Entry | CaughtUp | None:
        """Return what is there already, the next in order, or None: then `bridge` it if it is torn, else let it `come`.

        What is returned without a wait in between belongs together.
        """
        while not self._whole.ready and self._arrived and not (self.is_spent or self.is_torn):
            message = self._arrived.popleft()
            if message.reply.startswith(DELIVERY):
                self._deliver(message)
            else:
                self._heed(message)
        if self._whole.ready:
            return self._whole.ready.popleft()
        self.is_spent = self.is_spent or self._is_ended
        return None

    @property
    def is_torn(self) -> bool:
        """Tell whether it takes nothing more before it was told how far the log goes."""
        return self._whole.is_torn

    def bridge(self, last: int) -> None:
        """Learn the log's last sequence of just now."""
        self._whole.bridge(last)

    async def come(self) -> None:
        """Wait until there may be something to take.

        Raises:
            TimeoutError: nothing came for as long as `watched` says.
        """
        while self._owed:
            # The server goes on once everything before its question has been taken.
            await self._owed.pop(0).respond(b"")
        while not (self._arrived or self._is_ended or self.is_spent):
            self._waiter = self._loop.create_future()
            await self._waiter

    @contextlib.contextmanager
    def watched(self, patience: float) -> Iterator[None]:
        """Let `come` raise, within the block, once nothing has come for ``patience`` seconds."""

        def look() -> None:
            left = self._heard + patience - self._loop.time()
            if left <= 0 and self._waiter is not None and not self._waiter.done():
                self._waiter.set_exception(TimeoutError(f"nothing came for {patience:g} s"))
            self._timer = self._loop.call_later(left if left > 0 else patience, look)

        self._heard = self._loop.time()
        self._timer = self._loop.call_later(patience, look)
        try:
            yield
        finally:
            self._timer.cancel()

    def _go_on(self) -> None:
        self._is_resting = False
        if self._arrived:
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _deliver(self, message: Msg) -> None:
        sequence, in_consumer, moment = position(message.reply)
        self._delivered += 1
        if in_consumer == self._delivered:
            self._whole.take(Entry(message.subject, sequence, message.data, moment))
        else:
            self.is_spent = True

    def _heed(self, status: Msg) -> None:
        """Note a question of flow control; a heartbeat must count as many deliveries as have come."""
        if status.reply:
            self._owed.append(status)
            return
        headers = status.headers or {}
        counted = int(headers.get("Nats-Last-Consumer", self._delivered))
        self.is_spent = headers.get("Status") not in {None, "100"} or counted != self._delivered
        if not self.is_spent:
            self._whole.settle()


def position(reply: str) -> tuple[int, int, float]:
    """Return (stream sequence, consumer sequence, server's time) from a delivery's reply subject."""
    tokens = reply.split(".")
    sequence, in_consumer, nanoseconds = tokens[5:8] if len(tokens) == 9 else tokens[7:10]
    return int(sequence), int(in_consumer), int(nanoseconds) / 1e9
