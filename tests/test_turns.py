from __future__ import annotations

from collections.abc import Callable

import pytest

from stagecast import rows
from stagecast.fold import Fold, Slot
from stagecast.messages import NodeRecord, Record
from stagecast.turns import PACE, SILENCE, signs
from tests.peers import a_record

SPAN = 0.5
NODES = {"n": NodeRecord(name="n", kind="worker", process="p")}


def a_fold(*records: Record, at: float = 100.0) -> Fold:
    slots = {record.id: Slot(record, number, at) for number, record in enumerate(records, 1)}
    return Fold(slots=slots, nodes=NODES)


def a_queued(model: str, **changes: object) -> Record:
    return a_record(**({"model": model, "owner": "", "state": "queued"} | changes))


def said(
    fold: Fold, now: float = 100.0 + SILENCE, is_alive: Callable[[str], bool] = lambda _: True,
    performed: frozenset[str] = frozenset(),
) -> list[Record]:  # fmt: skip
    return [record for _, record in signs(fold, performed, now, 1.7e9, SPAN, is_alive)]


def test_a_queued_operation_says_whom_it_waits_for_and_what_that_is_at() -> None:
    busy, first, second = a_record(model="busy", owner="p"), a_queued("a"), a_queued("b")
    fold = a_fold(second, busy, first)
    told = {record.model: record for record in said(fold)}
    assert set(told) == {"a", "b"}
    assert told["a"].note == "waits for n, which is at staging:busy@n; the next"
    assert told["b"].note == "waits for n, which is at staging:busy@n; 1 before it"
    assert (told["b"].seq, told["b"].state, told["b"].updated_at) == (second.seq + 1, "queued", 1.7e9)
    assert rows.row(told["a"]).message == f"Staging a on n: queued ({told['a'].note})"
    assert [each.note for each in said(a_fold(first))] == ["waits for n; the next"]


def test_work_of_a_program_says_how_much_is_before_it() -> None:
    films = [a_queued(name, kind="render", node="", started_at=at) for at, name in enumerate("yx")]
    fold = a_fold(*films, a_record(kind="render", model="now", node=""))
    notes = [record.note for record in said(fold, performed=frozenset({"render"}))]
    assert notes == ["the next; 1 under way", "1 before it; 1 under way"]
    assert said(fold, performed=frozenset({"crunch"})) == [], "that is another word, of those who judge"


def test_it_is_said_only_of_what_has_been_silent_and_while_somebody_lives_to_take_it() -> None:
    fold = a_fold(a_queued("a"))
    assert said(fold, now=100.0 + SILENCE - 0.1) == []
    assert said(fold, now=0.0) == [], "the server's clock is not known"
    assert said(fold, is_alive=lambda process: process != "p") == []
    assert said(a_fold(a_record(), a_record(model="x", state="paused"))) == []


@pytest.mark.parametrize("count", [1, 2, 3000])
def test_thousands_get_their_turn_at_a_bounded_pace_the_longest_silent_first(count: int) -> None:
    fold = a_fold(*(a_queued(f"m{number}") for number in range(count)))
    told = list(signs(fold, frozenset(), 1e6, 1.7e9, SPAN, lambda _: True))
    assert [slot.sequence for slot, _ in told] == list(range(1, 1 + min(count, int(PACE * SPAN))))
    after = fold.slots | {record.id: Slot(record, count + at, 1e6) for at, (_, record) in enumerate(told, 1)}
    again = [
        slot.sequence
        for slot, _ in signs(Fold(slots=after, nodes=NODES), frozenset(), 1e6, 1.7e9, SPAN, lambda _: True)
    ]
    assert again == list(range(3, 5))[: max(0, count - 2)]


def test_the_place_in_the_line_goes_by_what_is_more_urgent() -> None:
    asked = {"a": "low", "b": "request"}
    fold = a_fold(*(a_queued(name, parameters={"priority": priority}) for name, priority in asked.items()))
    assert {record.model: record.note for record in said(fold)} == {
        "a": "waits for n; 1 before it", "b": "waits for n; the next",
    }  # fmt: skip
