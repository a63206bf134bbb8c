from __future__ import annotations

from chaos.timeline import (
    GONE,
    Agreement,
    Timeline,
    is_settled,
    seconds_to_stalled,
    seconds_to_takeover,
)
from stagecast.rows import Row
from tests.chaos.answers import answer, row

DEAD = "worker-1/aa"


def timeline(*shown: tuple[float, list[Row]]) -> Timeline:
    made = Timeline()
    for time, rows in shown:
        made.shown(time, rows)
    return made


def test_a_step_is_kept_only_where_something_is_another() -> None:
    made = timeline((1, [row(done=1)]), (2, [row(done=1)]), (3, [row(done=2)]), (4, []), (5, []))
    assert [(step.time, step.state, step.bytes) for step in made.steps["job"]] == [
        (1, "running", 1), (3, "running", 2), (4, GONE, 2)
    ]  # fmt: skip
    assert made.rows == {}


def test_the_time_to_stalled_counts_from_the_death() -> None:
    made = timeline((1, [row()]), (9, [row(state="stalled")]))
    steps = made.since("job", 2.0)
    assert seconds_to_stalled(steps, 2.0) == 7.0
    assert is_settled(steps, 2.0, DEAD)


def test_what_had_ended_or_was_taken_at_once_is_never_stalled() -> None:
    ended = timeline((1, [row()]), (3, [])).since("job", 2.0)
    assert seconds_to_stalled(ended, 2.0) is None
    assert is_settled(ended, 2.0, DEAD)
    taken = timeline((1, [row()]), (3, [row(owner="worker-1/bb", attempt=2)])).since("job", 2.0)
    assert seconds_to_stalled(taken, 2.0) is None
    assert is_settled(taken, 2.0, DEAD)


def test_a_tick_of_the_dead_that_is_shown_late_settles_nothing() -> None:
    assert not is_settled(timeline((1, [row()]), (3, [row(done=5)])).since("job", 2.0), 2.0, DEAD)


def test_a_takeover_is_when_another_owner_runs_it_and_not_when_it_waits() -> None:
    made = timeline(
        (1, [row()]), (9, [row(state="stalled")]), (10, [row(state="queued", owner="")]),
        (12, [row(owner="worker-1/bb", attempt=2)]),
    )  # fmt: skip
    assert seconds_to_takeover(made.since("job", 9.0), DEAD, 9.0) == 3.0
    assert seconds_to_takeover(made.since("job", 9.0)[:2], DEAD, 9.0) is None


def test_all_must_have_shown_one_revision_after_the_moment() -> None:
    agreement = Agreement(10.0, ["replica-1", "replica-2"])
    agreement.heard(answer(9.5, 5, replica="replica-1"))
    agreement.heard(answer(10.5, 5, replica="replica-2"))
    assert agreement.seconds is None, "one of them was asked before"
    agreement.heard(answer(10.6, 6, replica="replica-1", degraded=True))
    agreement.heard(answer(10.7, 6, replica="replica-2"))
    assert agreement.seconds is None, "one of them is degraded"
    agreement.heard(answer(10.8, 6, replica="replica-1", body=b"other"))
    assert agreement.seconds is None, "they say different things"
    agreement.heard(answer(11.0, 6, replica="replica-1"))
    assert agreement.seconds == 1.0
    agreement.heard(answer(12.0, 7, replica="replica-1"))
    assert agreement.seconds == 1.0
