"""A limit on the rate at which bytes move, shared by all threads that move them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from math import inf
from typing import Final, NamedTuple

SMOOTHNESS: Final = 0.05
"""Seconds of the rate that move in one go: small enough that progress looks steady, large enough to cost nothing."""

_LOOK_AGAIN: Final = 0.1
"""Seconds after which a wait looks whether the rate was changed."""


class Bucket(NamedTuple):
    """A token bucket: ``rate`` in bytes per second, and the ``level`` in bytes that it had at ``since`` (seconds).

    The level falls below zero, because bytes are counted once they have come; whoever took them waits until it is
    back at zero. It rises to `SMOOTHNESS` seconds' worth at most, so a pause is not made up for by a burst.
    """

    rate: float
    level: float
    since: float

    def at(self, now: float) -> Bucket:
        """Return the bucket as it is at ``now``."""
        if self.rate == inf:
            return self._replace(level=0.0, since=max(now, self.since))
        risen = self.level + self.rate * max(0.0, now - self.since)
        return self._replace(level=min(risen, self.rate * SMOOTHNESS), since=max(now, self.since))

    def less(self, count: int, now: float) -> Bucket:
        """Return the bucket after ``count`` bytes were taken at ``now``."""
        bucket = self.at(now)
        return bucket._replace(level=bucket.level - count)

    def wait(self, now: float) -> float:
        """Return the seconds from ``now`` until the level is no longer below zero."""
        return max(0.0, -self.at(now).level / self.rate)


class RateLimit:
    """At most so many bytes per second, `inf` for any, over all threads that call `take`.

    The rate may be set at any time, and those who wait go by it within a tenth of a second.

    Raises:
        ValueError: a rate that is not positive.
    """

    def __init__(self, bytes_per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._guard = threading.Lock()
        self._bucket = Bucket(_checked(bytes_per_second), 0.0, clock())

    @property
    def rate(self) -> float:
        """Bytes per second."""
        return self._bucket.rate

    @rate.setter
    def rate(self, bytes_per_second: float) -> None:
        with self._guard:
            self._bucket = self._bucket.at(self._clock())._replace(rate=_checked(bytes_per_second))

    def portion(self, most: int, streams: int = 1) -> int:
        """Return how many bytes each of ``streams`` is to move before its next `take`: at least 1, at most ``most``."""
        return max(1, int(min(most, self.rate * SMOOTHNESS / streams)))

    def take(self, count: int, stop: threading.Event) -> None:
        """Count ``count`` bytes that have moved, and return when more may; at once when ``stop`` is set."""
        if self._bucket.rate == inf:
            return
        with self._guard:
            self._bucket = self._bucket.less(count, self._clock())
        while (seconds := self._bucket.wait(self._clock())) > 0 and not stop.wait(min(seconds, _LOOK_AGAIN)):
            pass


def _checked(bytes_per_second: float) -> float:
    if bytes_per_second <= 0:
        raise ValueError(f"a rate of {bytes_per_second} bytes per second moves nothing; leave the limit out instead")
    return float(bytes_per_second)
