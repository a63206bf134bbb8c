"""For how long a holder that failed is left alone. Pure; ``now`` is an argument, in seconds."""

from __future__ import annotations

from typing import Final

FIRST_REST: Final = 0.1
LONGEST_REST: Final = 2.0
BUSY_REST: Final = 0.5
"""Seconds for which a holder is left alone after a failure: the first one, doubled by each that follows up to the
longest, which is shorter for one that is only busy."""


class Rests:
    """The holders that rest, by name; ``first`` is how long one does at first, in seconds."""

    def __init__(self, first: float = FIRST_REST) -> None:
        self._first = first
        self._rests: dict[str, tuple[float, float]] = {}

    def begin(self, name: str, now: float, longest: float = LONGEST_REST) -> None:
        """Let a holder rest from now on."""
        until, length = self._rests.get(name, (now, self._first / 2))
        # Streams that fail together are one failure.
        if until <= now:
            length = min(longest, 2 * length)
            self._rests[name] = (now + length, length)

    def forgive(self, name: str) -> None:
        """Let a holder be as if it had never failed."""
        self._rests.pop(name, None)

    def is_on(self, name: str, now: float) -> bool:
        """Whether a holder is to be left alone."""
        return self._rests.get(name, (now, 0.0))[0] > now
