"""The judge, which is pure, and the poller against a real server."""

from __future__ import annotations

import json

import pytest

from stagecast.client import Client
from stagecast.demo_checks import BALANCER, Judge, Verdict, poll
from tests.conftest import free_port
from tests.replica_stand_in import answering, breaking_off, replica_stand_in, row


def body(sequence: int, *rows: dict[str, object], stream: str = "a") -> bytes:
    return json.dumps({"operations": rows, "revision": f"{stream}-{sequence}", "degraded": False}).encode()


def at(bytes_done: int, job: str = "job-1", **changes: object) -> dict[str, object]:
    return row(job, currentBytes=bytes_done, progress=bytes_done // 10, **changes)


def judged(*bodies: bytes, ended: tuple[str, ...] = ("job-1",)) -> Verdict:
    judge = Judge()
    for number, each in enumerate(bodies):
        judge.heard(BALANCER, f"replica-{number % 3}", number * 0.05, each)
    return judge.verdict(ended)


def test_a_story_without_fault() -> None:
    verdict = judged(body(1), body(2, at(100)), body(2, at(100)), body(3, at(900)), body(4), body(4))
    assert (verdict.polls, verdict.failed, verdict.flickers, verdict.backward, verdict.phantoms) == (6, 0, 0, 0, 0)
    assert (verdict.distinct_bodies, verdict.compared, verdict.answers_compared) == (1, 2, 4)
    assert verdict.hertz == pytest.approx(20)
    assert verdict.gap == pytest.approx(0.05)


def test_each_poll_without_something_that_comes_back_is_a_flicker() -> None:
    verdict = judged(body(2, at(100)), body(1), body(1), body(3, at(200)), body(4))
    assert verdict.flickers == 2
    assert verdict.backward == 1  # the revision fell, too


def test_a_flicker_is_seen_at_once() -> None:
    judge = Judge()
    for sequence, rows in ((1, [at(100)]), (2, []), (3, [at(200)])):
        judge.heard(BALANCER, "replica-1", sequence, body(sequence, *rows))
    assert judge.flickers == 1


def test_what_is_gone_for_good_and_has_not_ended_has_flickered() -> None:
    bodies = body(1, at(100)), body(2), body(3)
    assert judged(*bodies).flickers == 0
    assert judged(*bodies, ended=()).flickers == 2


def test_what_failed_may_leave() -> None:
    assert judged(body(1, at(100, state="failed")), body(2), ended=()).flickers == 0


@pytest.mark.parametrize(
    ("before", "after", "steps"),
    [
        (at(500), at(400), 1),
        (at(500), row(currentBytes=500, progress=40), 1),
        (at(500), at(500), 0),
        (at(500, attempt=1), at(100, attempt=2), 0),
        (at(100, attempt=2), at(500, attempt=1), 1),
        (at(500), at(400, job="job-2"), 0),
    ],
)
def test_progress_never_falls_within_an_attempt(
    before: dict[str, object], after: dict[str, object], steps: int
) -> None:
    assert judged(body(1, before), body(2, after)).backward == steps


def test_a_log_made_anew_is_no_step_backward() -> None:
    assert judged(body(9, at(100)), body(1, at(100), stream="b")).backward == 0


def test_each_source_is_held_to_its_own_story() -> None:
    judge = Judge()
    judge.heard("replica-1", "replica-1", 0, body(5, at(500)))
    judge.heard("replica-2", "replica-2", 0, body(3, at(300)))
    judge.heard("replica-1", "replica-1", 1, body(5, at(500)))
    verdict = judge.verdict(())
    assert (verdict.backward, verdict.flickers, verdict.compared, verdict.polls) == (0, 0, 0, 0)


def test_two_bodies_at_one_revision_are_seen() -> None:
    assert judged(body(1, at(100)), body(1, at(101)), body(2, at(200))).distinct_bodies == 2


def test_what_had_ended_elsewhere_and_is_shown_later_is_a_phantom() -> None:
    judge = Judge()
    judge.heard("replica-1", "replica-1", 0, body(1, at(100)))
    judge.heard("replica-1", "replica-1", 1, body(5))
    judge.heard("replica-2", "replica-2", 2, body(4, at(900)))  # behind, and right about its revision
    assert judge.verdict(()).phantoms == 0
    judge.heard("replica-2", "replica-2", 3, body(6, at(900)))
    assert judge.verdict(()).phantoms == 1


def test_a_row_that_is_left_at_the_end_is_a_phantom() -> None:
    assert judged(body(1, at(100)), body(2, at(1000))).phantoms == 1
    assert judged(body(1, at(100)), body(2, at(100, state="failed"))).phantoms == 0


def test_a_source_that_no_longer_answers_shows_nothing() -> None:
    judge = Judge()
    judge.heard("replica-1", "replica-1", 0, body(1, at(100)))
    assert not judge.is_quiet
    judge.missed("replica-1")
    assert judge.is_quiet
    assert judge.verdict(["job-1"]).phantoms == 0
    assert judge.verdict(["job-1"]).failed == 0  # a person sees the balancer's polls
    judge.missed(BALANCER)
    assert judge.verdict(()).failed == 1


def test_ticks_are_noted_when_the_bytes_change() -> None:
    judge = Judge()
    for time, count in enumerate((100, 100, 300)):
        judge.heard(BALANCER, "replica-1", time, body(time, at(count)))
    judge.heard("replica-1", "replica-1", 9, body(9, at(900)))
    assert judge.ticks == [(0, 100), (2, 300)]
    assert judge.jobs == {"job-1"}
    assert judge.shown_by["replica-1"] == {"staging"}


async def test_the_poller_hears_answers_and_counts_what_fails() -> None:
    judge = Judge()
    async with replica_stand_in() as replica, Client(replica.url, patience=0) as client:
        listed = {"operations": [row()], "revision": "a-1", "degraded": False}
        good = answering(listed, Stagecast_Replica="replica-2")
        replica.script.extend([good, answering({}, 500), answering({"operations": 3}), good, good])
        await poll(client, BALANCER, judge, 0.001, until=lambda: judge.polls() == 3)
    verdict = judge.verdict(())
    assert (verdict.polls, verdict.failed) == (3, 2)
    assert [shown.job_id for shown in judge.rows[BALANCER]] == ["job-1"]


async def test_the_poller_outlives_a_server_that_is_gone() -> None:
    judge, asked = Judge(), iter(range(3))
    async with Client(f"http://127.0.0.1:{free_port()}", patience=0) as client:
        await poll(client, BALANCER, judge, 0.001, until=lambda: next(asked) == 2)
    assert judge.verdict(()).failed == 2
    async with replica_stand_in() as replica, Client(replica.url, patience=0) as client:
        asked = iter(range(2))
        replica.script.append(breaking_off)
        await poll(client, BALANCER, judge, 0.001, until=lambda: next(asked) == 1)
    assert judge.verdict(()).failed == 3
