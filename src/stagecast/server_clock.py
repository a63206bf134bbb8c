"""The server's clock, as far as its messages tell: what the latest one was dated with, and what passed here since.

Never the latest date of all: a server's clock that ran ahead and was put right would be ahead for life here.
"""

from __future__ import annotations

from collections.abc import Callable


class ServerClock:
    """The clock by which a log dates its messages. ``monotonic`` gives local seconds."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._ahead: float | None = None

    def hear(self, time: float) -> None:
        """Note the date of a message that is received now, in the log's order; 0 is none."""
        if time:
            self._ahead = time - self._monotonic()

    def forget(self) -> None:
        """Know nothing until the next message: another server dates them."""
        self._ahead = None

    def now(self) -> float:
        """Return the time there, in seconds since 1970; 0 while no message has told it."""
        return 0.0 if self._ahead is None else self._monotonic() + self._ahead
