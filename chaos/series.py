"""What was measured of each occurrence of a fault, and seen of all of them together. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from chaos.judge import Anomaly, Lag


@dataclass(frozen=True)
class Outcome:
    """What was measured of one occurrence, in seconds and bytes; None where there was nothing to measure.

    ``takeover`` counts from when somebody could take over: the stall, or the return of the only node that can.
    ``moved_twice``: bytes that workers received beyond what the stagings of this occurrence needed; ``twice`` the same
    of an installation; ``verified_twice``: what this occurrence's own measurement says of verified bytes.
    ``not_run``: why there was nothing to break, empty where it happened.
    """

    stalled: float | None = None
    takeover: float | None = None
    agreement: float | None = None
    should_stall: bool = False
    should_resume: bool = False
    moved_twice: int | None = 0
    twice: int = 0
    verified_twice: int | None = 0
    not_run: str = ""


@dataclass
class Series:
    """Everything that was seen of one fault. ``began`` and ``finished`` bound it in time; ``piece`` is in bytes.

    ``lost``: operations that were begun and have neither a row nor an end. ``denied``: how often a replica said that it
    knows no operation which had been begun. ``failures``: operations that did not end well. ``not_run``: why the fault
    never happened though it was asked for, empty where it did.
    """

    name: str
    text: str
    began: float
    finished: float = 0.0
    outcomes: list[Outcome] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    piece: int = 0
    anomalies: list[Anomaly] = field(default_factory=list)
    lags: list[Lag] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    denied: int = 0
    not_run: str = ""

    def sort_in(self, anomalies: Iterable[Anomaly], lags: Iterable[Lag]) -> None:
        """Keep what was seen between its begin and its end."""
        self.anomalies = [each for each in anomalies if self.began <= each.time < self.finished]
        self.lags = [each for each in lags if self.began <= each.time < self.finished]

    @property
    def happened(self) -> list[Outcome]:
        """The occurrences in which there was something to break."""
        return [outcome for outcome in self.outcomes if not outcome.not_run]

    def count(self, *what: str) -> int:
        """Return in how many answers something of that kind was seen."""
        return sum(each.answers for each in self.anomalies if each.what in what)

    @property
    def stale(self) -> float:
        """The longest stale view, in seconds."""
        return max((lag.seconds for lag in self.lags), default=0.0)

    @property
    def bytes_twice(self) -> int:
        """Bytes that moved twice, in stagings and installations."""
        return sum(outcome.twice + (outcome.moved_twice or 0) for outcome in self.outcomes)

    @property
    def verified_twice(self) -> int:
        """Bytes that moved twice though they were verified, in the occurrences in which that was measured.

        Less than three quarters of a piece in one occurrence is what lay in the kernels' buffers; a piece that moves
        again costs all of it, of which the count may miss as much as those hold.
        """
        moved = [outcome.moved_twice or 0 for outcome in self.outcomes]
        again = sum(outcome.verified_twice or 0 for outcome in self.outcomes)
        return sum(twice for twice in moved if twice >= self.piece * 3 // 4) + again

    @property
    def unmeasured(self) -> int:
        """In how many occurrences it was not measured what moved twice."""
        return sum(outcome.moved_twice is None or outcome.verified_twice is None for outcome in self.outcomes)

    def longest(self, which: str) -> float | None:
        """Return the longest of one of the outcomes' times."""
        found = [getattr(outcome, which) for outcome in self.happened]
        return max((seconds for seconds in found if seconds is not None), default=None)
