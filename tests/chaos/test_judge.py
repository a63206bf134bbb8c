"""The judge, fed with histories made by hand: the innocent are let go, the guilty are found, once for each fault."""

from __future__ import annotations

import pytest

from chaos.judge import PHANTOM_AGE, Answer, Judge
from tests.chaos.answers import answer, row


def judged(*answers: Answer) -> Judge:
    judge = Judge()
    for each in answers:
        judge.heard(each)
    return judge


def found(judge: Judge) -> list[tuple[str, int]]:
    return [(anomaly.what, anomaly.answers) for anomaly in judge.anomalies]


def test_an_operation_that_runs_and_ends_is_no_anomaly() -> None:
    judge = judged(
        answer(1, 1, row(done=0)), answer(2, 2, row(done=50)), answer(3, 3, row(done=100)), answer(4, 4), answer(5, 4)
    )
    assert found(judge) == []
    assert judge.missing() == {"job"}, "whether it has an end is for somebody else to find out"


def test_a_row_that_goes_and_comes_back_is_a_flicker_of_as_many_answers() -> None:
    judge = judged(answer(1, 1, row()), answer(2, 2), answer(3, 3, replica="replica-2"), answer(4, 4, row()))
    assert found(judge) == [("flicker", 2)]
    assert (judge.anomalies[0].time, judge.anomalies[0].replica) == (2, "replica-1")
    assert judge.missing() == set()


@pytest.mark.parametrize("state", ["queued", "running", "paused", "stalled"])
def test_whatever_has_not_ended_must_not_go(state: str) -> None:
    judge = judged(answer(1, 1, row(state=state)), answer(2, 2), answer(3, 3, row(state=state)))  # type: ignore[arg-type]
    assert found(judge) == [("flicker", 1)]


def test_a_failed_row_may_be_dismissed_and_tried_again() -> None:
    judge = judged(
        answer(1, 1, row(state="failed")), answer(2, 2), answer(3, 3, row(state="running", attempt=2)), answer(4, 4)
    )
    assert found(judge) == []


def test_a_replica_that_says_it_is_degraded_may_know_less() -> None:
    judge = judged(answer(1, 1, row()), answer(2, 1, degraded=True), answer(3, 1, row()))
    assert found(judge) == []


def test_each_source_has_a_view_of_its_own() -> None:
    judge = judged(
        answer(1, 5, row()),
        answer(2, 3, source="newcomer at replica-2", replica="replica-2"),
        answer(3, 6, row()),
        answer(4, 6, row(), source="newcomer at replica-2", replica="replica-2"),
    )
    assert found(judge) == [], "a newcomer at a replica that lags sees what was, and then what is"


def test_an_older_revision_is_a_step_backward() -> None:
    assert found(judged(answer(1, 5), answer(2, 4), answer(3, 5))) == [("backward", 1)]


def test_a_stream_made_anew_is_later_and_the_old_one_is_never_shown_again() -> None:
    assert found(judged(answer(1, 500), answer(2, 1, stream="b"))) == []
    assert found(judged(answer(1, 500), answer(2, 1, stream="b"), answer(3, 501))) == [("backward", 1)]


@pytest.mark.parametrize(
    ("before", "after", "is_backward"),
    [
        (row(done=50), row(done=49), True),
        (row(done=50), row(done=50), False),
        (row(done=50), row(done=10, attempt=2), False),
        (row(done=50, attempt=2), row(done=60, attempt=1), True),
    ],
)
def test_progress_falls_only_with_a_new_attempt(before: object, after: object, is_backward: bool) -> None:
    judge = judged(answer(1, 1, before), answer(2, 2, after))  # type: ignore[arg-type]
    assert found(judge) == [("backward", 1)] * is_backward


def test_two_bodies_at_one_revision_are_seen_across_sources() -> None:
    same = judged(answer(1, 1, body=b"x"), answer(2, 1, body=b"x", source="other", replica="replica-2"))
    assert found(same) == []
    differing = judged(answer(1, 1, body=b"x"), answer(2, 1, body=b"y", source="other", replica="replica-2"))
    assert found(differing) == [("bodies", 1)]
    degraded = judged(answer(1, 1, body=b"x"), answer(2, 1, body=b"y", degraded=True))
    assert found(degraded) == [], "the answer says that it is degraded, so it is another one"


def test_a_row_that_runs_long_after_its_owner_died_is_a_phantom_and_counted_once() -> None:
    judge = Judge()
    judge.died("worker-1/aa", 10.0)
    judge.heard(answer(10.0 + PHANTOM_AGE - 0.1, 1, row()))
    assert found(judge) == []
    judge.heard(answer(10.0 + PHANTOM_AGE, 2, row()))
    judge.heard(answer(10.0 + PHANTOM_AGE + 1, 3, row()))
    assert found(judge) == [("phantom", 1)]


def test_no_phantom_is_what_is_stalled_or_taken_over_or_shown_as_degraded_or_whose_owner_woke() -> None:
    late = 10.0 + 2 * PHANTOM_AGE
    judge = Judge()
    judge.died("worker-1/aa", 10.0)
    judge.heard(answer(late, 1, row(state="stalled")))
    judge.heard(answer(late, 2, row(attempt=2, owner="worker-1/bb")))
    judge.heard(answer(late, 3, row(attempt=3), degraded=True))
    judge.woke("worker-1/aa")
    judge.heard(answer(late, 4, row(attempt=3)))
    assert found(judge) == []


def test_a_lag_is_counted_from_when_the_log_was_known_to_have_moved() -> None:
    judge = Judge()
    judge.log_stands(1.0, 0, 7)
    judge.log_stands(4.0, 0, 8)
    judge.heard(answer(5.5, 7, replica="replica-2", took=0.5))
    assert [(lag.replica, lag.seconds) for lag in judge.lags] == [("replica-2", 1.0)]


def test_no_lag_is_what_was_asked_before_or_degraded_or_up_to_date() -> None:
    judge = Judge()
    judge.log_stands(4.0, 0, 8)
    judge.heard(answer(5.0, 7, took=1.5))
    judge.heard(answer(6.0, 7, degraded=True))
    judge.heard(answer(6.0, 8))
    assert judge.lags == []


def test_a_replica_that_could_not_be_asked_lags_only_from_then_on() -> None:
    judge = Judge()
    judge.log_stands(4.0, 0, 8)
    judge.reachable("replica-1", 9.0)
    judge.heard(answer(9.25, 7))
    assert [lag.seconds for lag in judge.lags] == [0.25]


def test_a_poll_that_failed_is_kept_with_its_cause() -> None:
    judge = Judge()
    judge.missed("browser", 3.0, "no answer")
    assert [(each.what, each.text) for each in judge.anomalies] == [("failed poll", "no answer")]


def test_what_a_page_shows_is_held_to_the_same_but_for_bodies_and_lag() -> None:
    judge = Judge()
    judge.log_stands(1.0, 0, 9)
    judge.told(answer(5.0, 4, row(done=50), source="page", body=b""))
    judge.told(answer(5.0, 5, source="page", body=b""))
    judge.told(answer(5.0, 6, row(done=40), source="page", body=b""))
    assert found(judge) == [("flicker", 1), ("backward", 1)]
    assert judge.lags == []


def test_what_a_page_shows_where_nothing_is_under_way_is_a_phantom() -> None:
    judge = Judge()
    judge.ghosts(7.0, "page", [])
    assert judge.anomalies == []
    judge.ghosts(7.0, "page", [row()])
    assert found(judge) == [("phantom", 1)]
