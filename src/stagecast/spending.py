"""Spending: on what the time of an installation goes. It has one stream, so the parts add up to nearly all of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from stagecast.address import is_local
from stagecast.draft_file import DraftFile
from stagecast.messages import Bottleneck
from stagecast.transfer.waits import Waits


class Spending:
    """Adds it up; ``spent`` is told, in seconds since the beginning, by what they went on."""

    def __init__(self, spent: Callable[[Mapping[Bottleneck, float]], None]) -> None:
        self._spent = spent
        self._waits = Waits()

    def came(self, uri: str, seconds: float) -> None:
        """Note that a chunk of a source came after ``seconds``. One on another machine does not say what it was at."""
        self._waits += Waits(source=seconds) if is_local(uri) else Waits(remote=seconds)

    def was_held_back(self, seconds: float) -> None:
        """Note that the rate limit let nothing move for ``seconds``."""
        self._waits += Waits(limit=seconds)

    def tell(self, file: DraftFile) -> None:
        """Take over what a file has counted, and say how it stands."""
        self._waits += Waits(hash=file.hashing, disk=file.writing)
        file.hashing = file.writing = 0.0
        self._spent(self._waits.seconds())
