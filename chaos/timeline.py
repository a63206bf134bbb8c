"""What people were shown of each operation over time, and what can be measured on that. Pure; times in seconds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

from chaos.judge import Answer
from stagecast.revision import Revision
from stagecast.rows import Row

GONE = "gone"


class Step(NamedTuple):
    """How an operation was first shown at ``time``: its row's state, or ``gone`` once it was no longer listed."""

    time: float
    state: str
    owner: str = ""
    attempt: int = 0
    bytes: int = 0


class Timeline:
    """The steps of every run (jobID), as one reader was shown them."""

    def __init__(self) -> None:
        self.steps: dict[str, list[Step]] = defaultdict(list)
        self.rows: dict[str, Row] = {}
        """What is listed now, by jobID."""

    def shown(self, time: float, rows: Iterable[Row]) -> None:
        """Take what one answer listed."""
        now = {row.job_id: row for row in rows}
        for job, row in now.items():
            step = Step(time, row.state, row.owner, row.attempt, row.current_bytes)
            if not self.steps[job] or self.steps[job][-1][1:] != step[1:]:
                self.steps[job].append(step)
        for job in self.rows.keys() - now.keys():
            self.steps[job].append(self.steps[job][-1]._replace(time=time, state=GONE))
        self.rows = now

    def since(self, job: str, time: float) -> list[Step]:
        """Return the steps of a run from ``time`` on."""
        return [step for step in self.steps.get(job, ()) if step.time >= time]


def first(steps: Iterable[Step], wanted: Callable[[Step], bool]) -> Step | None:
    """Return the first step that is as wanted."""
    return next((step for step in steps if wanted(step)), None)


def seconds_to_stalled(steps: Iterable[Step], died: float) -> float | None:
    """Return how long after its owner's death an operation was shown as stalled.

    None where it never was: it had ended, or somebody else had it before.
    """
    step = first(steps, lambda step: step.state == "stalled")
    return None if step is None else step.time - died


def is_settled(steps: Iterable[Step], died: float, owner: str) -> bool:
    """Tell whether it was shown since the death what has become of the operation of a dead owner."""
    return first(steps, lambda step: step.time >= died and (step.state != "running" or step.owner != owner)) is not None


def seconds_to_takeover(steps: Iterable[Step], owner: str, able: float) -> float | None:
    """Return how long after ``able`` an operation that ``owner`` had left went on, or had ended.

    ``able`` is when somebody could have taken it: its stall for what any process can do, the return of its node for
    what only that node can.
    """
    step = first(
        steps, lambda step: step.time >= able and step.owner != owner and step.state not in {"stalled", "queued"}
    )
    return None if step is None else step.time - able


class Agreement:
    """When all replicas agreed again: the first moment at which each of them has shown one and the same revision.

    Only what was asked after ``since``, of replicas that are not degraded, counts.
    """

    def __init__(self, since: float, replicas: Iterable[str]) -> None:
        self.seconds: float | None = None
        self._since = since
        self._replicas = frozenset(replicas)
        self._shown: dict[tuple[Revision, bytes], set[str]] = defaultdict(set)

    def heard(self, answer: Answer) -> None:
        """Take one answer."""
        if answer.degraded or answer.asked < self._since or self.seconds is not None:
            return
        by = self._shown[answer.revision, answer.body]
        by.add(answer.replica)
        if by >= self._replicas:
            self.seconds = answer.answered - self._since
