from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagecast.messages import Record
from stagecast.operations import PRIORITIES, anew, claimed, commanded, priority, put_back, succeeding, waited
from stagecast.urgency import STEP, Decision, decide, has_right_of_way, order, standing
from tests.peers import a_record

Records = dict[str, Record]


def staging(name: str, priority: str = "normal", at: float = 1.0, **fields: object) -> Record:
    return a_record(model=name, node="n", started_at=at, parameters={"priority": priority}, **fields)


def named(*records: Record) -> Records:
    return {record.id: record for record in records}


@st.composite
def situations(draw: st.DrawFn) -> tuple[Records, Records, set[str], int]:
    names = draw(st.lists(st.sampled_from("abcdefghij"), unique=True, max_size=9))
    moments = st.sampled_from([1.0, 2.0, 2.0 + STEP, 3 * STEP, 5 * STEP])
    records = [
        staging(
            name, draw(st.sampled_from(PRIORITIES)), draw(moments), queued_at=draw(moments), claimed_at=draw(moments)
        )
        for name in names
    ]  # fmt: skip
    cut = draw(st.integers(0, len(records)))
    working = named(*records[:cut])
    leaving = set(draw(st.lists(st.sampled_from(sorted(working)), unique=True))) if working else set()
    return named(*records[cut:]), working, leaving, draw(st.integers(0, 5))


@given(situations())
def test_no_more_work_than_there_is_room_for_and_none_of_it_is_left_empty(
    situation: tuple[Records, Records, set[str], int],
) -> None:
    waiting, working, leaving, room = situation
    decision = decide(waiting, working, leaving, room)
    assert set(decision.begin) <= waiting.keys()
    if room:
        assert len(decision.begin) == min(len(waiting), max(0, room - len(working)))
    else:
        assert (len(decision.begin), decision.give_way) == (len(waiting), [])


@given(situations())
def test_who_begins_is_more_urgent_than_whoever_waits_on(situation: tuple[Records, Records, set[str], int]) -> None:
    waiting, working, leaving, room = situation
    begin = decide(waiting, working, leaving, room).begin
    others = [order(waiting[name]) for name in waiting if name not in begin]
    assert begin == sorted(begin, key=lambda name: order(waiting[name]))
    assert all(order(waiting[name]) < other for name in begin for other in others)


@given(situations())
def test_who_gives_way_is_the_least_urgent_and_only_so_many(
    situation: tuple[Records, Records, set[str], int],
) -> None:
    waiting, working, leaving, room = situation
    decision = decide(waiting, working, leaving, room)
    give_way = set(decision.give_way)
    assert give_way <= working.keys() - leaving
    stays = working.keys() - leaving - give_way
    assert all(standing(working[name]) > standing(working[other]) for name in give_way for other in stays)
    excess = max(0, len(working) - room) if room else 0
    urgent = [name for name in waiting if priority(waiting[name]) == "request" and name not in decision.begin]
    assert len(give_way) <= max(0, excess + len(urgent) - len(leaving))
    if not excess:
        assert not any(has_right_of_way(working[name]) for name in give_way)
        assert all(priority(working[name]) != "request" for name in give_way), "nobody waits for it"


@given(situations())
def test_what_follows_is_the_same_in_whatever_order_it_is_known(
    situation: tuple[Records, Records, set[str], int],
) -> None:
    waiting, working, leaving, room = situation
    turned = (dict(reversed(waiting.items())), dict(reversed(working.items())))
    assert decide(*turned, leaving, room) == decide(waiting, working, leaving, room)


def test_a_request_before_a_person_before_what_can_wait_and_the_older_first() -> None:
    records = [
        staging("a", "low", 1.0), staging("b", "normal", 2.0), staging("c", "normal", 1.0), staging("d", "high", 9.0),
        staging("e", "request", 9.0), staging("f", "nonsense", 3.0),
    ]  # fmt: skip
    assert [record.model for record in sorted(records, key=order)] == ["e", "d", "c", "b", "f", "a"]


def test_other_programs_work_has_no_urgency_of_ours() -> None:
    assert priority(a_record(kind="render", parameters={"priority": "request"})) == "normal"


def test_one_gives_way_for_each_request_and_not_twice() -> None:
    low, normal, wanted = staging("l", "low"), staging("n"), staging("w", "request")
    assert decide(named(wanted), named(low, normal), set(), 2) == Decision([], [low.id])
    assert decide(named(wanted), named(low, normal), {low.id}, 2) == Decision([], [])
    assert decide(named(wanted), named(normal), set(), 2) == Decision([wanted.id], [])
    assert decide(named(staging("h", "high")), named(low, normal), set(), 2) == Decision([], []), "nobody waits for it"


@pytest.mark.parametrize(("priority", "steps"), [("low", 3), ("normal", 2), ("high", 1), ("request", 0)])
def test_each_step_of_priority_is_worth_ten_minutes_of_waiting(priority: str, steps: int) -> None:
    old = staging("o", priority, at=1000.0)
    before, after = (staging("r", "request", 1000.0 + STEP * steps + each) for each in (-1.0, 1.0))
    assert sorted([old, before, after], key=order) == [before, old, after]


@given(st.lists(st.sampled_from(PRIORITIES[1:]), min_size=40, max_size=80))
def test_what_can_wait_has_its_turn_and_ends_whatever_keeps_coming(others: list[str]) -> None:
    """One works at a time, for a minute, and each minute one more is asked for. The low one takes three, in parts."""
    low, at_work = staging("low", "low", at=0.0, queued_at=0.0, state="queued"), 0
    waiting, working = named(low), named()
    for minute, said in enumerate(others):
        now = 60.0 * minute
        at_work += low.id in working
        if at_work == 3:
            return
        working = {name: record for name, record in working.items() if name == low.id}
        waiting |= named(staging(f"{minute}", said, now, queued_at=now, state="queued"))
        for gone in decide(waiting, working, set(), 1).give_way:
            waiting[gone] = put_back(working.pop(gone), now, "")
        for begun in decide(waiting, working, set(), 1).begin:
            working[begun] = claimed(waiting.pop(begun), "p", now)
        assert now <= 3 * STEP + 5 * 60.0
    raise AssertionError("it is not through")


def test_what_has_waited_for_long_gives_way_to_no_request_and_what_only_worked_for_long_does() -> None:
    wanted = staging("w", "request", at=9000.0)
    at_once = claimed(staging("a", "low", at=1000.0, queued_at=1000.0, state="queued"), "p", 1001.0)
    at_last = claimed(staging("b", "low", at=1000.0, queued_at=1000.0, state="queued"), "p", 1000.0 + 3 * STEP)
    assert (waited(at_once), waited(at_last)) == (1.0, 3 * STEP)
    assert decide(named(wanted), named(at_once), set(), 1) == Decision([], [at_once.id])
    assert decide(named(wanted), named(at_last), set(), 1) == Decision([], [])
    assert decide({}, named(at_once, at_last), set(), 1) == Decision([], [at_once.id])


def test_waits_add_up_over_turns_and_takeovers_and_a_new_wish_begins_at_nothing() -> None:
    first = claimed(staging("a", "low", at=1000.0, queued_at=1000.0, state="queued"), "p", 1100.0)
    back = put_back(first, 5000.0, "gave way")
    assert back.queued_at == 4900.0, "the time at work is no wait"
    assert succeeding(back, 5005.0, note="still").queued_at == 4900.0
    again = claimed(back, "p", 5200.0)
    assert waited(again) == 300.0
    assert waited(claimed(again, "q", 6000.0)) == 300.0, "who takes it over goes on with it"
    assert waited(anew(again, 6000.0)) == 300.0
    retried = commanded(succeeding(again, 7000.0, state="failed", error="why"), "retry", 8000.0)
    assert (retried.queued_at, waited(retried)) == (8000.0, 0.0)
