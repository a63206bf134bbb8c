"""What a stream is to get, and what it gets just now. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from stagecast.pieces import Holder, Piece
from stagecast.transfer.wanted import Wish


class Assignment(NamedTuple):
    """A piece to get. ``holder`` is None where the bytes are here, and only want checking.

    ``is_alone`` says that all of the piece has to come from this holder, so that it is clear who lied; ``wish`` what to
    say of others.
    """

    piece: Piece
    holder: Holder | None
    is_alone: bool = False
    wish: Wish = ""


@dataclass
class Batch:
    """What one stream gets at once from one holder: how many pieces of it are still on their way."""

    left: int = 0


@dataclass
class Active:
    """A piece that a stream gets: from whom, since when, and from where to where it came in this go, in bytes."""

    holder: str
    since: float
    batch: Batch
    start: int = 0
    position: int = 0
    is_unwanted: bool = False

    def rate(self, now: float) -> float:
        """Return the bytes per second so far; a piece that has just begun says little."""
        return (self.position - self.start) / max(now - self.since, 0.001)
