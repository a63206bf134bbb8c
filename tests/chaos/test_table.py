from __future__ import annotations

from typing import Any

import pytest

from chaos.judge import Anomaly, Lag, What
from chaos.series import Outcome, Series
from chaos.table import as_events, goals, table, verdict
from chaos.upstream import VERIFIED, verified_twice

PIECE = 1000


def series(*outcomes: Outcome, **values: Any) -> Series:
    return Series("worker-kill", "a worker: SIGKILL", 10.0, 20.0, list(outcomes), piece=PIECE, **values)


def missed(each: Series) -> list[str]:
    return [text for text, met, _ in goals([each]) if met is not True]


GOOD = Outcome(stalled=9.9, takeover=9.9, agreement=1.9, should_stall=True, should_resume=True)


def test_a_series_in_which_all_was_well_meets_every_goal() -> None:
    each = series(GOOD, *[Outcome(agreement=0.1, moved_twice=PIECE * 3 // 4 - 1)] * 2)
    assert missed(each) == []
    assert "✗" not in verdict([each])


@pytest.mark.parametrize(
    ("outcome", "goal"),
    [
        (Outcome(stalled=10.1, takeover=1, agreement=1, should_stall=True, should_resume=True), "stalled within 10 s"),
        (Outcome(takeover=1, agreement=1, should_stall=True, should_resume=True), "stalled within 10 s"),
        (Outcome(takeover=10.1, agreement=1), "taken over or gone on within 10 s more"),
        (Outcome(agreement=1, should_resume=True), "taken over or gone on within 10 s more"),
        (Outcome(agreement=2.1), "agreement within 2 s"),
        (Outcome(), "agreement within 2 s"),
        (Outcome(agreement=1, verified_twice=1), "0 verified bytes moved twice"),
        (Outcome(agreement=1, moved_twice=PIECE * 3 // 4), "0 verified bytes moved twice"),
    ],
)
def test_what_was_late_or_never_came_misses_its_goal(outcome: Outcome, goal: str) -> None:
    assert missed(series(GOOD, outcome)) == [goal]


@pytest.mark.parametrize(
    ("what", "goal"),
    [
        ("flicker", "0 flickers on replicas that are reachable and not degraded"), ("backward", "0 steps backward"),
        ("bodies", "one body at one revision"), ("phantom", "0 phantoms"),
    ],
)  # fmt: skip
def test_what_the_judge_has_seen_misses_its_goal(what: What, goal: str) -> None:
    assert missed(series(GOOD, anomalies=[Anomaly(11.0, what, "browser", "replica-1", "…")])) == [goal]


def test_a_view_that_was_stale_for_long_misses_its_goal() -> None:
    assert missed(series(GOOD, lags=[Lag(11.0, "replica-1", 2.0)])) == []
    assert missed(series(GOOD, lags=[Lag(11.0, "replica-1", 2.1)])) == ["no stale view for more than 2 s"]


def test_a_lost_outcome_a_denial_and_a_failure_miss_their_goals() -> None:
    assert missed(series(GOOD, lost=["job"])) == ["no lost outcome"]
    assert missed(series(GOOD, denied=1)) == ["no operation was ever denied"]
    assert missed(series(GOOD, failures=["job"])) == ["every operation ended well"]


def test_one_piece_that_moved_again_in_one_occurrence_of_many_is_found() -> None:
    calm = [Outcome(agreement=1, moved_twice=-5)] * 9
    each = series(*calm, Outcome(agreement=1, moved_twice=PIECE))
    assert each.verified_twice == PIECE
    assert missed(each) == ["0 verified bytes moved twice"]


@pytest.mark.parametrize("which", ["moved_twice", "verified_twice"])
def test_what_was_not_measured_is_neither_0_nor_met(which: str) -> None:
    each = series(GOOD, Outcome(agreement=1, **{which: None}))  # type: ignore[arg-type]
    assert [cell.strip() for cell in table([each]).splitlines()[2].split("|")[-3:-1]] == ["-", "-"]
    assert "-  0 verified bytes moved twice: not measured: worker-kill 1 of 2" in verdict([each])
    assert missed(each) == ["0 verified bytes moved twice"]


def test_what_was_found_is_said_though_not_everything_was_measured() -> None:
    each = series(Outcome(agreement=1, moved_twice=None), Outcome(agreement=1, moved_twice=PIECE))
    assert [cell.strip() for cell in table([each]).splitlines()[2].split("|")[-3:-1]] == ["1.0 kB", "1.0 kB"]
    assert "✗  0 verified bytes moved twice: worker-kill 1,000; not measured: worker-kill 1 of 2" in verdict([each])


def test_a_fault_that_was_asked_for_and_did_not_happen_misses_a_goal_and_has_nothing_in_its_row() -> None:
    each = series(not_run="it needs root")
    assert missed(each) == ["every fault that was asked for happened"]
    assert "✗  every fault that was asked for happened: worker-kill (it needs root)" in verdict([series(GOOD), each])
    assert [cell.strip() for cell in table([each]).splitlines()[2].split("|")[2:-1]] == ["0", *["-"] * 11]


def test_an_occurrence_without_anything_to_break_misses_one_goal_and_is_not_counted() -> None:
    each = series(GOOD, Outcome(not_run="nothing moves"))
    assert missed(each) == ["every fault that was asked for happened"]
    assert "✗  every fault that was asked for happened: worker-kill (nothing moves)" in verdict([each])
    assert table([each]).splitlines()[2].split("|")[2].strip() == "1"


def test_only_what_was_seen_during_a_fault_is_counted_for_it() -> None:
    each = series(GOOD)
    anomalies = [Anomaly(time, "flicker", "browser", "replica-1", "…", 3) for time in (9.9, 10.0, 19.9, 20.0)]
    each.sort_in(anomalies, [Lag(9.0, "replica-1", 5.0), Lag(11.0, "replica-1", 0.5), Lag(12.0, "replica-2", 0.25)])
    assert each.count("flicker") == 6
    assert each.stale == 0.5


def test_the_table_has_a_line_for_each_fault_with_the_longest_of_each_time() -> None:
    each = series(GOOD, Outcome(stalled=3.0, agreement=0.5, moved_twice=-5))
    lines = table([each, series()]).splitlines()
    assert len({len(line) for line in lines}) == 1
    cells = [cell.strip() for cell in lines[2].split("|")[1:-1]]
    expected = ["a worker: SIGKILL", "2", "0", "0", "0", "0", "0", "0.00 s", "9.90 s", "9.90 s", "1.90 s", "0 B", "0 B"]
    assert cells == expected
    assert [cell.strip() for cell in lines[3].split("|")[9:12]] == ["-", "-", "-"]


def test_the_events_say_when_in_the_run_something_was() -> None:
    each = series(GOOD, anomalies=[Anomaly(11.0, "flicker", "browser", "replica-1", "…")], lags=[Lag(12.0, "r", 0.5)])
    (event,) = as_events([each], began=10.0)
    assert event["anomalies"][0]["time"] == 1.0
    assert event["longest_lags"] == [{"time": 2.0, "replica": "r", "seconds": 0.5}]


def test_verified_bytes_of_an_installation_count_as_twice_only_where_they_are_asked_for_again() -> None:
    sent = 3 * VERIFIED
    assert verified_twice(sent, [("HEAD", "/x", None), ("GET", "/x", f"bytes={2 * VERIFIED}-")]) == 0
    assert verified_twice(sent, [("GET", "/x", f"bytes={VERIFIED}-")]) == VERIFIED
    assert verified_twice(sent, [("GET", "/x", None)]) == 2 * VERIFIED
    assert verified_twice(VERIFIED, [("GET", "/x", None)]) == 0, "it may not have been verified yet"
    assert verified_twice(sent, []) == 0
