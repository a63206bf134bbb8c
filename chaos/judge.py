"""Judges what replicas have answered. Pure: answers in, anomalies out; every time is an argument, in seconds.

A *source* is one reader's view: a browser that carries the highest revision it has seen and is answered by any replica,
a page that follows the event stream, or a newcomer that carries nothing and always asks the same replica. To each of
them nobody may ever show

- a **flicker**: something under way that is missing from an answer of a replica that is not degraded, and then is back;
- a step **backward**: an older revision, an earlier attempt, or less progress within one attempt;
- a **phantom**: something that runs, while its owner has been dead for `PHANTOM_AGE` seconds;
- two different **bodies** at one revision (law L1; this one is held between all sources).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from stagecast import operations
from stagecast.revision import Revision
from stagecast.rows import Row

PHANTOM_AGE: Final = 20.0
"""Seconds after its owner's death at which something that still runs is a phantom."""
_BODIES: Final = 2_000

What = Literal["flicker", "backward", "phantom", "bodies", "failed poll"]


class Answer(NamedTuple):
    """One answer to ``GET /api/operations``. ``asked`` and ``answered``: when its reader did and was."""

    source: str
    replica: str
    asked: float
    answered: float
    revision: Revision
    degraded: bool
    rows: tuple[Row, ...]
    body: bytes = b""


class Anomaly(NamedTuple):
    """What nobody should have been shown. ``answers``: in how many."""

    time: float
    what: What
    source: str
    replica: str
    text: str
    answers: int = 1


class Lag(NamedTuple):
    """At ``time`` a replica that did not say `degraded` answered what had been out of date for ``seconds``."""

    time: float
    replica: str
    seconds: float


@dataclass
class _Absence:
    since: float
    replica: str
    answers: int = 0


@dataclass
class _View:
    """What one source has been shown so far."""

    place: tuple[int, int] = (-1, -1)
    held: dict[str, Row] = field(default_factory=dict)
    missing: dict[str, _Absence] = field(default_factory=dict)


class Judge:
    """Hears every answer, each source's in the order in which they came, and what happened to the processes."""

    def __init__(self) -> None:
        self.anomalies: list[Anomaly] = []
        self.lags: list[Lag] = []
        """The longest for each replica and second."""
        self.polls: Counter[str] = Counter()
        self._views: dict[str, _View] = {}
        self._streams: list[str] = []
        self._bodies: OrderedDict[tuple[Revision, bool], bytes] = OrderedDict()
        self._dead: dict[str, float] = {}
        self._phantoms: set[tuple[str, str]] = set()
        self._reachable: dict[str, float] = {}
        self._places: list[tuple[int, int]] = []
        self._moments: list[float] = []

    def heard(self, answer: Answer) -> None:
        """Take one answer."""
        place = self._compare(answer)
        self._compare_bodies(answer)
        self._look_for_lag(answer, place)
        self.log_stands(answer.answered, *place)

    def told(self, answer: Answer) -> None:
        """Take what a reader has on the screen after an event of a stream. It was not asked for, and has no body."""
        self._compare(answer)

    def ghosts(self, time: float, source: str, rows: Iterable[Row]) -> None:
        """Take note of what a reader still shows as under way, where nothing is."""
        self.anomalies += [
            Anomaly(time, "phantom", source, "", f"{row.id} ({row.job_id}) is {row.state} there, and nowhere else")
            for row in rows
        ]

    def _compare(self, answer: Answer) -> tuple[int, int]:
        view = self._views.setdefault(answer.source, _View())
        self.polls[answer.source] += 1
        place = self._place(answer.revision)
        self._compare_places(view, answer, place)
        self._compare_rows(view, answer)
        self._look_for_phantoms(answer)
        return place

    def missed(self, source: str, time: float, why: str) -> None:
        """Take note of a poll that was not answered."""
        self.anomalies.append(Anomaly(time, "failed poll", source, "", why))

    def log_stands(self, time: float, stream: int, sequence: int) -> None:
        """Take note that the log has come so far; ``stream`` counts the streams that there were, from 0."""
        if not self._places or (stream, sequence) > self._places[-1]:
            self._places.append((stream, sequence))
            self._moments.append(time)

    def died(self, process: str, time: float) -> None:
        """Take note that a process (name/token) does nothing any more."""
        self._dead.setdefault(process, time)

    def woke(self, process: str) -> None:
        """Take note that it only slept."""
        self._dead.pop(process, None)

    def reachable(self, replica: str, time: float) -> None:
        """Take note that a replica can be asked from now on: what it missed before is not held against it."""
        self._reachable[replica] = time

    def missing(self) -> set[str]:
        """Return the jobs that were under way when some source was shown them last, and that it is shown no more."""
        return {job for view in self._views.values() for job in view.missing}

    def _place(self, at: Revision) -> tuple[int, int]:
        if at.identity not in self._streams:
            self._streams.append(at.identity)
        return (self._streams.index(at.identity), at.sequence)

    def _compare_bodies(self, answer: Answer) -> None:
        key = (answer.revision, answer.degraded)
        if self._bodies.setdefault(key, answer.body) != answer.body:
            self._add(answer, "bodies", f"not what another answer said at {answer.revision}")
        while len(self._bodies) > _BODIES:
            self._bodies.popitem(last=False)

    def _compare_places(self, view: _View, answer: Answer, place: tuple[int, int]) -> None:
        if place < view.place:
            self._add(answer, "backward", f"{answer.revision} after sequence {view.place[1]} of stream {view.place[0]}")
        view.place = place

    def _compare_rows(self, view: _View, answer: Answer) -> None:
        now = {row.job_id: row for row in answer.rows}
        for job, row in now.items():
            absence = view.missing.pop(job, None)
            if absence is not None:
                text = f"{row.id} ({job}) was not there until {answer.revision}"
                flicker = Anomaly(absence.since, "flicker", answer.source, absence.replica, text, absence.answers)
                self.anomalies.append(flicker)
            if (fall := _fall(view.held.get(job), row)) is not None:
                self._add(answer, "backward", fall)
        if not answer.degraded:
            self._note_absent(view, answer, now)
        view.held |= now

    def _note_absent(self, view: _View, answer: Answer, now: dict[str, Row]) -> None:
        for job in [job for job in view.held if job not in now]:
            if view.held[job].state in operations.ENDED:
                del view.held[job]
            else:
                view.missing.setdefault(job, _Absence(answer.answered, answer.replica)).answers += 1

    def _look_for_phantoms(self, answer: Answer) -> None:
        for row in answer.rows:
            died = self._dead.get(row.owner)
            if died is None or answer.degraded or row.state != "running" or answer.asked - died < PHANTOM_AGE:
                continue
            if (row.job_id, row.owner) not in self._phantoms:
                self._phantoms.add((row.job_id, row.owner))
                self._add(answer, "phantom", f"{row.id} runs, {answer.asked - died:.1f} s after {row.owner} died")

    def _look_for_lag(self, answer: Answer, place: tuple[int, int]) -> None:
        first_later = bisect_right(self._places, place)
        if answer.degraded or first_later == len(self._places):
            return
        since = max(self._moments[first_later], self._reachable.get(answer.replica, float("-inf")))
        if answer.asked > since:
            self.lags.append(Lag(answer.asked, answer.replica, answer.asked - since))

    def _add(self, answer: Answer, what: What, text: str) -> None:
        self.anomalies.append(Anomaly(answer.answered, what, answer.source, answer.replica, text))


def _fall(before: Row | None, after: Row) -> str | None:
    if before is None or (after.attempt > before.attempt):
        return None
    if after.attempt < before.attempt:
        return f"{after.id}: attempt {after.attempt} after attempt {before.attempt}"
    if after.current_bytes < before.current_bytes:
        return f"{after.id}: {after.current_bytes} bytes after {before.current_bytes} in attempt {after.attempt}"
    if after.progress < before.progress:
        return f"{after.id}: {after.progress} % after {before.progress} % in attempt {after.attempt}"
    return None
