"""Many schedules on all cores, and what they came to."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.simulation.mutants import broken
from tests.simulation.run import report, run_seed, shrunk
from tests.simulation.schedule import drawn

_COLLECT_AFTER = 20


@dataclass
class Tally:
    """Sums over schedules."""

    schedules: int = 0
    steps: int = 0
    seconds: float = 0.0
    """Of virtual time."""
    faults: Counter[str] = field(default_factory=Counter)
    checks: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    violations: list[tuple[int, str]] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Add what others came to."""
        self.schedules += other.schedules
        self.steps += other.steps
        self.seconds += other.seconds
        self.faults += other.faults
        self.checks += other.checks
        self.answers += other.answers
        self.violations += other.violations


def tally(seeds: Iterable[int], theme: str = "") -> Tally:
    """Run the schedules of these seeds here."""
    total = Tally()
    with _undisturbed():
        for seed in seeds:
            outcome = run_seed(seed, theme)
            violations = [(seed, outcome.violation)] if outcome.violation else []
            total.add(
                Tally(
                    1, outcome.steps, outcome.seconds, outcome.faults, outcome.checks, outcome.answers, violations
                )
            )  # fmt: skip
            if total.schedules % _COLLECT_AFTER == 0:
                gc.collect()
    return total


def over_cores(batches: Iterable[range], jobs: int = 0) -> Iterator[Tally]:
    """Run each batch of seeds on some core; yield what they came to as they end, in order.

    They give way to everything else: tests of real processes beside them mind the time, these do not.
    """
    spawn = multiprocessing.get_context("spawn")
    count = jobs or min(2, os.cpu_count() or 1)
    with ProcessPoolExecutor(count, mp_context=spawn, initializer=os.nice, initargs=(19,)) as pool:
        yield from pool.map(tally, batches)


def caught(mutant: str, theme: str, seeds: Iterable[int]) -> str:
    """Return the first violation that a mutant shows, or nothing."""
    with broken(mutant), _undisturbed():
        return next((found for seed in seeds if (found := run_seed(seed, theme).violation)), "")


def explain(violations: list[tuple[int, str]]) -> str:
    """Return the smallest schedules that still break the laws."""
    with _undisturbed():
        return "\n\n".join(report(shrunk(drawn(seed))) for seed, _ in violations)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let nobody write to the log of the test, and collect garbage only now and then."""
    gc.disable()
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
        gc.enable()
        gc.collect()
