"""How the holders of one pull do. Pure; ``now`` is an argument, in seconds."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from stagecast.pieces import Standing

DULL: Final = 8.0
"""How many times slower than the fastest a holder must be to be asked no more while others have what is wanted.

One that sends four pieces at a time is up to four times slower than one that sends a single one, and still worth it."""

TRIED: Final = 2
"""Holders of unknown speed that are tried at a time, once any speed is known: each may hold up a stream for long."""

LASTS: Final = 30.0
"""Seconds for which a speed that was measured is taken for what it is."""


class Standings:
    """Each holder's `Standing`, by its name; one that is new has a clean one."""

    def __init__(self) -> None:
        self.all: dict[str, Standing] = {}
        self._measured: dict[str, float] = {}

    def of(self, name: str) -> Standing:
        """Return one holder's."""
        return self.all.get(name, Standing())

    def opened(self, name: str) -> None:
        """Note one more stream to a holder."""
        self.all[name] = self.of(name).opened()

    def closed(self, name: str) -> None:
        """Note one stream less."""
        self.all[name] = self.of(name).closed()

    def failed(self, name: str, now: float, weight: float) -> None:
        """Note a failure that weighs as much as so many streams."""
        self.all[name] = self.of(name).failed(now, weight)

    def measured(self, name: str, rate: float, now: float) -> None:
        """Note that a stream got so many bytes per second of a holder."""
        self.all[name] = self.of(name).measured(rate)
        self._measured[name] = now

    def dull(self, holders: Mapping[str, bool], now: float) -> Collection[str]:
        """Return those who are, or may be, so slow that it is better to wait until another one has time for a piece.

        ``holders`` says of each whether it has something that is wanted.
        """
        rates = {name: self._known(name, now) for name in holders}
        best = max((rates[name] for name, is_useful in holders.items() if is_useful), default=0.0)
        slow = {name for name, rate in rates.items() if 0 < rate < best / DULL}
        unknown = {name for name, rate in rates.items() if not rate}
        is_trying = sum(self.of(name).streams > 0 for name in unknown) >= TRIED
        return slow | unknown if best and is_trying else slow

    def _known(self, name: str, now: float) -> float:
        return self.of(name).rate if now - self._measured.get(name, now) < LASTS else 0.0
