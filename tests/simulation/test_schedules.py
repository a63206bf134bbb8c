"""Ten thousand seeded schedules of a whole cluster, the laws checked after every step that changed anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.many import Tally, caught, explain, over_cores, tally
from tests.simulation.mutants import MUTANTS, WANTED, broken
from tests.simulation.run import report, run, run_seed, shrunk
from tests.simulation.schedule import FAULTS, THEMES, drawn

SCHEDULES = 10_000
BATCH = 100
ENOUGH = 400
"""Schedules within which every mutant is caught."""


@pytest.mark.timeout(1800)
def test_the_laws_hold_in_ten_thousand_schedules() -> None:
    total = Tally()
    for found in over_cores(range(first, first + BATCH) for first in range(0, SCHEDULES, BATCH)):
        total.add(found)
        if len(total.violations) > 2:
            break
    assert not total.violations, explain(total.violations[:2])
    assert total.schedules == SCHEDULES
    # What is never injected, asked or looked at proves nothing.
    assert {*FAULTS, "delivery dropped", "delivery repeated", "answer lost"} <= total.faults.keys()
    assert min(total.faults.values()) > 100
    assert {law: total.checks[law] > 1000 for law in ("L1", "L2", "L3", "L4", "L5", "L6", "L7", "L8", "L9")} == {
        f"L{number}": True for number in range(1, 10)
    }
    assert total.checks["forgotten"] > 1000
    asked = ("list", "stage", "install", "cancel", "pause", "resume", "retry", "dismiss")
    assert {verb: total.answers[f"{verb} 200"] > 20 for verb in asked} == dict.fromkeys(asked, True)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mutant", MUTANTS)
def test_what_is_broken_is_caught(mutant: str) -> None:
    violation = caught(mutant, MUTANTS[mutant].theme, range(ENOUGH))
    assert violation, f"{mutant} may be broken and nobody notices"


def test_the_four_of_the_issue_are_among_the_mutants() -> None:
    assert set(WANTED) <= MUTANTS.keys()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("theme", [theme for theme in THEMES if theme != "storm"])
def test_the_schedules_that_catch_mutants_are_fine_without_them(theme: str) -> None:
    found = tally(range(100), theme)
    assert found.violations == []


def test_the_same_seed_runs_the_same_way() -> None:
    assert [run_seed(seed).trace for seed in range(10)] == [run_seed(seed).trace for seed in range(10)]
    assert len({run_seed(seed).trace for seed in range(10)}) == 10


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_also_in_another_process_with_another_hash_seed(hash_seed: str) -> None:
    code = "from tests.simulation.run import run_seed; print(*(run_seed(seed).trace for seed in range(10)))"
    root = Path(__file__).parent.parent.parent
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(root)}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == [run_seed(seed).trace for seed in range(10)]


def test_a_failing_schedule_is_told_as_small_as_it_can_be() -> None:
    with broken("the restatement"):
        seed = next(seed for seed in range(100) if run_seed(seed, "apart").violation)
        whole = drawn(seed, "apart")
        smallest = shrunk(whole)
        assert len(smallest.schedule.happenings) < len(whole.happenings)
        assert not any(run(smallest.schedule.without(each)).violation for each in smallest.schedule.happenings)
    told = report(smallest)
    assert f"seed {seed}: " in told
    assert smallest.violation in told
    assert "empty bus" in told
    assert smallest.entries[-1] in told
