"""How many streams a pull should have. Pure: what has been received in, a number out, and ``now`` is an argument."""

from __future__ import annotations

from typing import Final, NamedTuple

FIRST: Final = 2
"""Streams to start with: one receives while the other hashes and writes."""

MOST: Final = 16
"""Streams beyond which none is added."""

WINDOW: Final = 0.3
"""Seconds over which a rate is measured before the next step."""

GAIN: Final = 1.08
"""What a rate must rise by for the added streams to stay. Less is noise, and each stream costs memory and switches."""

FALL: Final = 0.7
"""A rate that falls below this part of what it was says that the network is another one now: worth a new try."""

REST: Final = 5.0
LONGEST_REST: Final = 60.0
"""Seconds for which a number that was found good is kept before more are tried: at first, doubled by each vain try."""


class Ramp(NamedTuple):
    """``streams`` is how many there should be now; ``kept`` is the number that was found good, ``rate`` what it gave.

    Rates are bytes per second. Between two windows nothing changes. While ``streams`` exceeds ``kept`` a try is on.
    """

    streams: int
    most: int
    kept: int
    rate: float
    since: float
    received: int
    until: float = 0.0
    rest: float = REST

    @classmethod
    def start(cls, now: float, first: int = FIRST, most: int = MOST) -> Ramp:
        """Return the ramp of a pull that starts now, with ``first`` streams or fewer."""
        return cls(min(first, most), most, 0, 0.0, now, 0)

    def after(self, received: int, now: float) -> Ramp:
        """Return what follows from all bytes that were ``received`` until now."""
        seconds = now - self.since
        if seconds < WINDOW:
            return self
        rate = (received - self.received) / seconds
        return self._judge(rate, now)._replace(since=now, received=received)

    def _judge(self, rate: float, now: float) -> Ramp:
        if self.streams > self.kept:
            return self._more(rate) if rate >= self.rate * GAIN and rate else self._back(now)
        if rate < self.rate * FALL:
            return self._more(rate)._replace(rest=REST)
        if now >= self.until:
            return self._more(rate)
        # The rate of a rest is the best that it had, but one lucky window is forgotten in time.
        return self._replace(rate=max(rate, self.rate * 0.95 + rate * 0.05))

    def _more(self, rate: float) -> Ramp:
        """Keep this number, and try half as many more."""
        streams = min(self.most, self.streams + max(1, self.streams // 2))
        return self._replace(streams=streams, kept=self.streams, rate=rate)

    def _back(self, now: float) -> Ramp:
        """Go back to the number before, and leave it at that for a while."""
        kept = self.kept or self.streams
        return self._replace(streams=kept, kept=kept, until=now + self.rest, rest=min(LONGEST_REST, 2 * self.rest))
