"""What a file server sends just now, and to what it has sent lately: so it knows when it has enough to do.

Where many receive the same, whoever has a piece can pass it on. So a holder sends few pieces at a time, each as fast as
it can: the sooner one is whole somewhere else, the sooner that one's uplink works too. Others are told at once to look
elsewhere. And who wants the first copy of a piece is told at once that somebody has it already: news that cost nothing.
That holds for requests that say so (`stagecast.transfer.wanted.SHARED`); nobody else is ever refused.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Final, Literal

AT_ONCE: Final = 4.0
"""Shared pieces that are sent at a time, a slow one counting less: see `full_streams`."""

FOR_NEED: Final = 2.0
"""How many more are sent to those who have nothing to do: whoever just got a piece asks for the next one in the moment
when there is room, and without these, somebody who asks now and then would find none until the others have all."""

SMALL: Final = 1024 * 1024
"""Bytes below which a range is not worth a refusal."""

LATELY: Final = 30.0
"""Seconds for which a piece counts as being on its way to somebody, who then says so himself."""

_SETTLED: Final = 0.5
"""Seconds after which the rate of a send says something."""


class Declined(Exception):
    """A range is not sent, because of others; ``status`` is how HTTP says so."""

    def __init__(self, status: Literal[409, 503], code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


def full_streams(rates: Iterable[float]) -> float:
    """Return as how many streams these count, each measured by the fastest one; rates in bytes per second.

    Receivers that are ten times slower than others do not keep them from being served.
    """
    known = list(rates)
    fastest = max(known, default=0.0)
    return sum(rate / fastest for rate in known) if fastest else float(len(known))


class Sending:
    """One range on its way to somebody."""

    def __init__(self, now: float) -> None:
        self.since = now
        self.sent = 0

    def rate(self, now: float) -> float | None:
        """Return the bytes per second so far; None while it is too early to say."""
        return self.sent / (now - self.since) if now - self.since >= _SETTLED else None


class Sends:
    """Safe to share between threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.bytes_sent = 0
        """Bytes of files that were handed to the network; only ever grows."""
        self._clock = clock
        self._guard = threading.Lock()
        self._shared: set[Sending] = set()
        self._lately: dict[tuple[str, int], tuple[int, float]] = {}

    def begin(self, digest: str, start: int, stop: int, wish: str = "") -> Sending:
        """Note that a range of a file is about to be sent, for a request with that `wanted.Wish`. Raises `Declined`."""
        is_shared = wish in {"yes", "first", "need"}
        with self._guard:
            now = self._clock()
            self._forget(now)
            if is_shared and stop - start >= SMALL:
                if self._is_busy(now, AT_ONCE + FOR_NEED * (wish == "need")):
                    raise Declined(503, "busy", "others are served just now; ask another holder")
                if wish == "first" and (digest, start) in self._lately:
                    raise Declined(409, "given", "somebody else just got it; ask for another piece")
            sending = Sending(now)
            if is_shared:
                self._lately.pop((digest, start), None)
                self._lately[digest, start] = stop, now
                if stop - start >= SMALL:
                    self._shared.add(sending)
            return sending

    def count(self, sending: Sending, sent: int) -> None:
        """Count bytes that have left."""
        with self._guard:
            sending.sent += sent
            self.bytes_sent += sent

    def end(self, sending: Sending) -> None:
        """Note that nothing more of it will be sent."""
        with self._guard:
            self._shared.discard(sending)

    def lately(self, digest: str) -> list[tuple[int, int]]:
        """Return the ranges of a file, as (start, stop) in bytes, that somebody who shares it began to get lately."""
        with self._guard:
            self._forget(self._clock())
            return [(start, stop) for (file, start), (stop, _) in self._lately.items() if file == digest]

    def _is_busy(self, now: float, most: float) -> bool:
        rates = [sending.rate(now) for sending in self._shared]
        known = [rate for rate in rates if rate is not None]
        # One that has just begun is taken for as fast as the fastest.
        fresh = max(known, default=1.0)
        return full_streams(fresh if rate is None else rate for rate in rates) > most - 0.5

    def _forget(self, now: float) -> None:
        for key, (_, since) in list(self._lately.items()):
            if now - since < LATELY:
                return
            del self._lately[key]
