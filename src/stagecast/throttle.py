"""The throttle: keeps this process's rate limit at what the log allows it, while transfers run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from math import inf
from typing import Final

from stagecast import limits
from stagecast.tracker import Tracker
from stagecast.transfer import RateLimit

LOOK_AFTER: Final = 0.05
"""Seconds for which changes are gathered before one look at all of them: a busy log must cost little (law L14)."""
SETTLING: Final = 0.5
"""Seconds that a process which begins to move bytes leaves the others to hear of it and use less (docs/limits.md)."""
_NOTHING: Final = 1.0
"""Bytes per second while a process has no share: a rate cannot be 0."""


class Throttle:
    """``limit`` is to be shared by all that this process moves. ``own``: its most bytes per second, 0 for any.

    Of the cluster's limit a process has a share from `SETTLING` seconds after the log first showed it moving, or at
    once where no other one moves.
    """

    def __init__(self, tracker: Tracker, own: int = 0) -> None:
        self.own = own
        self.limit = RateLimit(own or inf)
        self._tracker = tracker
        self._since: float | None = None
        self._due: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Throttle, None]:
        """Follow the log for as long as the block lasts."""
        with self._tracker.listening("any", self._hear), self._tracker.listening("limits", self._look):
            self._look()
            try:
                yield self
            finally:
                if self._due is not None:
                    self._due.cancel()

    def _hear(self) -> None:
        if self._due is None:
            self._due = asyncio.get_running_loop().call_later(LOOK_AFTER, self._look)

    def _look(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None
        fold, process, now = self._tracker.fold, self._tracker.process, asyncio.get_running_loop().time()
        rate = limits.allowed(fold, process, self.own)
        if fold.limits.rate:
            left = self._settling(now)
            if left > 0:
                rate = 0.0
                self._due = asyncio.get_running_loop().call_later(left, self._look)
        self._set(rate or _NOTHING)

    def _settling(self, now: float) -> float:
        """Return for how many seconds the others may not know yet that this process moves."""
        moving = self._tracker.fold.moving()
        if self._tracker.process not in moving:
            self._since = None
        elif self._since is None:
            self._since = now if len(moving) > 1 else now - SETTLING
        return 0.0 if self._since is None else self._since + SETTLING - now

    def _set(self, rate: float) -> None:
        if self.limit.rate != rate:
            self.limit.rate = rate
