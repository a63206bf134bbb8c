from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stagecast.messages import Record
from stagecast.operations import PRIORITIES, priority
from stagecast.urgency import Decision, decide, order
from tests.peers import a_record

Records = dict[str, Record]


def staging(name: str, priority: str = "normal", at: float = 1.0) -> Record:
    return a_record(model=name, node="n", started_at=at, parameters={"priority": priority})


def named(*records: Record) -> Records:
    return {record.id: record for record in records}


@st.composite
def situations(draw: st.DrawFn) -> tuple[Records, Records, set[str], int]:
    names = draw(st.lists(st.sampled_from("abcdefghij"), unique=True, max_size=9))
    records = [
        staging(name, draw(st.sampled_from(PRIORITIES)), draw(st.sampled_from([1.0, 2.0, 3.0]))) for name in names
    ]
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
    assert all(order(working[name]) > order(working[other]) for name in give_way for other in stays)
    excess = max(0, len(working) - room) if room else 0
    urgent = [name for name in waiting if priority(waiting[name]) == "request" and name not in decision.begin]
    assert len(give_way) <= max(0, excess + len(urgent) - len(leaving))
    if not excess:
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
