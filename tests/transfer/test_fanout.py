"""The simulated swarm (`benchmarks/swarm.py`): in its own time, and the same each time."""

from __future__ import annotations

import pytest
from benchmarks.swarm import Outcome, Plan, Simulation

from stagecast.pieces import PULLERS
from stagecast.transfer.serve import CONNECTIONS

PIECES = 128


def ran(plan: Plan) -> Outcome:
    outcome = Simulation(plan).run()
    size = plan.pieces * plan.size
    moved = outcome.origin + outcome.workers
    if not plan.dying:
        assert moved == pytest.approx(plan.workers * size, abs=plan.workers * plan.pieces), "no byte twice"
    assert outcome.origin <= 2.0 * size
    assert len(outcome.seconds) == plan.workers - plan.dying
    return outcome


def test_one_alone_is_as_fast_as_its_link() -> None:
    plan = Plan(1, PIECES)
    assert ran(plan).seconds[0] <= 1.01 * plan.alone


@pytest.mark.parametrize(("workers", "most"), [(2, 1.3), (8, 1.3), (16, 1.5)])
@pytest.mark.parametrize("seed", [1, 2])
def test_many_take_little_longer_than_one(workers: int, most: float, seed: int) -> None:
    plan = Plan(workers, PIECES, seed=seed)
    assert max(ran(plan).seconds) <= most * plan.alone


@pytest.mark.parametrize("plan", [Plan(8, PIECES, late=2), Plan(8, PIECES, dying=1)], ids=["joined", "died"])
def test_who_joins_or_dies_holds_nobody_back(plan: Plan) -> None:
    assert max(ran(plan).seconds) <= 1.3 * plan.alone


@pytest.mark.parametrize("seed", [1, 2])
def test_one_that_is_ten_times_slower_holds_nobody_back(seed: int) -> None:
    plan = Plan(8, PIECES, slow=1, seed=seed)
    assert max(ran(plan).seconds[1:]) <= 1.35 * plan.alone


def test_of_a_crowd_everybody_finds_a_connection() -> None:
    plan = Plan(60, 40)
    outcome = ran(plan)
    assert PULLERS < outcome.connections < CONNECTIONS
    assert outcome.refused == 0


def test_few_pieces_leave_the_origin_hardly_more_often_than_many() -> None:
    plan = Plan(50, 16)
    outcome = ran(plan)
    assert outcome.origin <= 1.7 * plan.pieces * plan.size, "it sent second copies to the end, 2.5 models"
    assert max(outcome.seconds) <= 3.0 * plan.alone
