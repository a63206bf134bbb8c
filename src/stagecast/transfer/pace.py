"""Whether a holder still gives enough to be waited for. Pure."""

from __future__ import annotations

from typing import Final, NamedTuple

LEAST: Final = 4096
"""Bytes per second of waiting below which a stream counts as stuck: at this rate a piece would take more than an hour.

Two hundred streams that share an uplink of 10 Mbit/s still have more than this each.
"""


class Pace(NamedTuple):
    """What came within a window: ``came`` in bytes, for ``waited`` seconds of nothing but waiting for it.

    ``silence`` are the seconds since the last byte. Time in which nobody waited does not count: whoever receives slowly
    must not take that for the holder's fault.
    """

    waited: float = 0.0
    came: int = 0
    silence: float = 0.0

    def after(self, seconds: float, count: int, window: float) -> Pace:
        """Return the pace after ``count`` more bytes, for which ``seconds`` were waited; a window that is over is left.

        Ask for the complaint first.
        """
        held = self if self.waited < window else Pace(silence=self.silence)
        return Pace(held.waited + seconds, held.came + count, 0.0 if count else held.silence + seconds)

    def complaint(self, window: float) -> str:
        """Return in what a holder fell short within ``window`` seconds; nothing as long as it has not."""
        if self.silence > window:
            return f"sent no byte for {window:g} s"
        if self.waited >= window and self.came < LEAST * window:
            return f"sent only {self.came:,} bytes within {window:g} s"
        return ""
