"""What the demo measures: a poller that asks as a browser does, and a judge of what it was answered.

The judge is pure. It holds the picture to what nobody should ever see: an operation that runs and is not there
(a flicker), progress that falls, a revision that falls, two bodies at one revision, a row of something that has ended.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import msgspec

from stagecast import operations, revision
from stagecast.answers import Operations
from stagecast.client import Client
from stagecast.errors import StagecastError
from stagecast.rows import Row

BALANCER: Final = "balancer"
"""The source whose polls a person sees."""


class Tick(NamedTuple):
    """At ``time``, ``bytes`` over all the operations shown had come."""

    time: float
    bytes: int


@dataclass(frozen=True)
class Verdict:
    """What was seen. ``compared``: revisions at which at least two replicas answered; ``gap``: seconds at most."""

    polls: int
    failed: int
    flickers: int
    backward: int
    compared: int
    answers_compared: int
    distinct_bodies: int
    phantoms: int
    hertz: float
    gap: float


@dataclass
class _View:
    """What one source has shown so far."""

    polls: int = 0
    failed: int = 0
    flickers: int = 0
    backward: int = 0
    began: float | None = None
    latest: float | None = None
    gap: float = 0.0
    revision: revision.Revision | None = None
    held: dict[str, Row] = field(default_factory=dict)
    missing: Counter[str] = field(default_factory=Counter)


class Judge:
    """Hears every answer, in the order in which it came, and says at the end what was wrong with them."""

    def __init__(self) -> None:
        self._views: dict[str, _View] = defaultdict(_View)
        self._bodies: dict[str, Counter[bytes]] = defaultdict(Counter)
        self._replicas: dict[str, set[str]] = defaultdict(set)
        self._ended: dict[str, revision.Revision] = {}
        self._phantoms: set[tuple[str, str]] = set()
        self.ticks: list[Tick] = []
        """Whenever the balancer's polls showed other bytes than before."""
        self.rows: dict[str, list[Row]] = {}
        """What each source showed last."""
        self.shown_by: dict[str, set[str]] = defaultdict(set)
        """The kinds of operations that each source has shown."""

    def heard(self, source: str, replica: str, time: float, body: bytes) -> None:
        """Take one answer. Raises `msgspec.DecodeError` if it is none."""
        answer = msgspec.json.decode(body, type=Operations)
        view = self._views[source]
        view.polls += 1
        view.began = time if view.began is None else view.began
        view.gap = max(view.gap, time - view.latest) if view.latest is not None else 0.0
        view.latest = time
        self.rows[source] = answer.operations
        self.shown_by[source] |= {row.task_type for row in answer.operations}
        self._bodies[answer.revision][body] += 1
        self._replicas[answer.revision].add(replica)
        self._compare(view, answer)
        if source == BALANCER:
            self._note_tick(time, answer.operations)

    def missed(self, source: str) -> None:
        """Take note of a poll that was not answered: the source shows nothing now."""
        self._views[source].failed += 1
        self.rows[source] = []

    @property
    def flickers(self) -> int:
        """Polls so far in which something that ran was not there, and then was again; steps backward too."""
        return sum(view.flickers + view.backward for view in self._views.values())

    def polls(self, source: str = BALANCER) -> int:
        """Return how often a source has answered."""
        return self._views[source].polls

    @property
    def jobs(self) -> set[str]:
        """Every run (jobID) that any source has shown."""
        return {job for view in self._views.values() for job in view.held}

    @property
    def is_quiet(self) -> bool:
        """Whether no source shows anything under way."""
        return not any(True for _ in self._under_way())

    def verdict(self, ended: Iterable[str]) -> Verdict:
        """Return what was seen, where the runs (jobIDs) in ``ended`` are known to have ended.

        One that was no longer shown, and has not ended, has flickered to the last.
        """
        known, views, seen = set(ended), self._views.values(), self._views[BALANCER]
        vanished = sum(count for view in views for job, count in view.missing.items() if job not in known)
        left = {(source, row.job_id) for source, row in self._under_way() if row.job_id in known}
        compared = [text for text, replicas in self._replicas.items() if len(replicas) > 1]
        span = (seen.latest or 0.0) - (seen.began or 0.0)
        return Verdict(
            polls=seen.polls,
            failed=seen.failed,
            flickers=sum(view.flickers for view in views) + vanished,
            backward=sum(view.backward for view in views),
            compared=len(compared),
            answers_compared=sum(self._bodies[text].total() for text in compared),
            distinct_bodies=max((len(bodies) for bodies in self._bodies.values()), default=0),
            phantoms=len(self._phantoms | left),
            hertz=(seen.polls - 1) / span if span > 0 else 0.0,
            gap=seen.gap,
        )

    def _under_way(self) -> Iterator[tuple[str, Row]]:
        for source, rows in self.rows.items():
            yield from ((source, row) for row in rows if row.state not in operations.ENDED)

    def _compare(self, view: _View, answer: Operations) -> None:
        now = {row.job_id: row for row in answer.operations}
        at = revision.parse(answer.revision)
        if at is not None and view.revision is not None and not view.revision.reached_by(at):
            view.backward += 1
        view.revision = at or view.revision
        for job, row in now.items():
            # Shown again: each poll without it was one in which it should have been there.
            view.flickers += view.missing.pop(job, 0)
            view.backward += _fell(view.held.get(job), row)
        for job, row in view.held.items():
            if job not in now and row.state not in operations.ENDED:
                view.missing[job] += 1
        view.held |= now
        self._look_for_phantoms(view, now, at)

    def _look_for_phantoms(self, view: _View, now: dict[str, Row], at: revision.Revision | None) -> None:
        if at is None:
            return
        for job in view.held.keys() - now.keys():
            first = self._ended.get(job)
            if first is None or not first.reached_by(at):
                self._ended[job] = at
        for job in now:
            # Gone at one revision and there at a later one: somebody shows what is not.
            if job in self._ended and self._ended[job].reached_by(at):
                self._phantoms.add((job, str(at)))

    def _note_tick(self, time: float, rows: list[Row]) -> None:
        count = sum(row.current_bytes for row in rows)
        if not self.ticks or self.ticks[-1].bytes != count:
            self.ticks.append(Tick(time, count))


def _fell(before: Row | None, after: Row) -> int:
    if before is None:
        return 0
    if after.attempt != before.attempt:
        return int(after.attempt < before.attempt)
    return int(after.current_bytes < before.current_bytes or after.progress < before.progress)


async def poll(
    client: Client, source: str, judge: Judge, interval: float, until: Callable[[], bool] = lambda: False
) -> None:
    """Ask for the operations every ``interval`` seconds, and have the judge hear each answer."""
    loop = asyncio.get_running_loop()
    due = loop.time()
    while not until():
        try:
            answer = await client.operations_as_sent()
            judge.heard(source, client.replica, loop.time(), answer.body)
        except (StagecastError, msgspec.DecodeError):
            judge.missed(source)
        # A slow answer delays the next question, but no burst makes up for it.
        due = max(due + interval, loop.time())
        await asyncio.sleep(due - loop.time())
