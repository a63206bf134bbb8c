"""Supervision: a backend that ends is started again with back-off, and given up where it never loads."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Literal

from stagecast.errors import StagecastError

FIRST_DELAY: Final = 0.5
LONGEST_DELAY: Final = 30.0
STEADY: Final = 60.0
"""Seconds of serving after which a backend's earlier deaths are forgotten."""
MOST_FAILURES: Final = 5
"""Starts in a row that never got ready, after which a backend is given up."""

State = Literal["loading", "ready", "restarting", "failed"]


@dataclass(frozen=True)
class Deaths:
    """How a model's backends have ended so far. Pure.

    ``in_a_row``: since one last served steadily; ``failed_loads``: starts in a row that never got ready.
    """

    in_a_row: int = 0
    failed_loads: int = 0
    has_served: bool = False

    def after(self, ready_at: float | None, now: float) -> Deaths:
        """Return the history with one more end, ``now``, of a backend that was ready at ``ready_at``, or never."""
        if ready_at is None:
            return Deaths(self.in_a_row + 1, self.failed_loads + 1, self.has_served)
        return Deaths(1 if now - ready_at >= STEADY else self.in_a_row + 1, 0, has_served=True)

    def next_delay(self, tries: int = MOST_FAILURES) -> float | None:
        """Return the seconds until the next start, or None: a model that never loaded is not tried for ever."""
        return None if not self.has_served and self.failed_loads >= tries else delay(self.in_a_row)


def delay(deaths: int) -> float:
    """Return the seconds to wait before a start that follows ``deaths`` deaths in a row."""
    return 0.0 if deaths == 0 else min(FIRST_DELAY * 2.0 ** min(deaths - 1, 16), LONGEST_DELAY)


async def keep_running(
    run: Callable[[Callable[[], None]], Awaitable[str]],
    report: Callable[[State, str], None],
    *,
    tries: int = MOST_FAILURES,
) -> None:
    """Start a backend again whenever it ends, with back-off; return when it is given up.

    ``run(ready)`` runs one backend to its end, calls ``ready`` once it serves, and returns or raises (a
    `StagecastError`) how it ended. ``report`` gets each state with its detail: the cause, the time of the next try.
    """
    loop, deaths = asyncio.get_running_loop(), Deaths()
    ready_at: float | None = None

    def ready() -> None:
        nonlocal ready_at
        ready_at = loop.time()
        report("ready", "")

    while True:
        ready_at = None
        report("loading", "")
        try:
            ending = await run(ready)
        except StagecastError as error:
            ending = error.message
        deaths = deaths.after(ready_at, loop.time())
        pause = deaths.next_delay(tries)
        if pause is None:
            report("failed", ending)
            return
        report("restarting", f"{ending}; next try in {pause:g} s")
        await asyncio.sleep(pause)
