from __future__ import annotations

import itertools
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagecast import broadcast, operations
from stagecast.errors import WrongState
from stagecast.messages import Outcome, Record, State, Verb
from tests.peers import a_record

STATES: tuple[State, ...] = get_args(State)


@st.composite
def records(draw: st.DrawFn) -> Record:
    """Any record of one operation, from few values, so that ties come often."""
    return a_record(
        owner=draw(st.sampled_from(["", "a", "b"])),
        attempt=draw(st.integers(0, 3)),
        seq=draw(st.integers(0, 3)),
        state=draw(st.sampled_from(STATES)),
        dismissed=draw(st.booleans()),
        bytes_done=draw(st.integers(0, 2)),
    )


def fold(sequence: list[Record]) -> Record | None:
    held: Record | None = None
    for record in sequence:
        held = operations.merge(held, record)
    return held


@given(records(), records())
def test_merging_commutes(one: Record, other: Record) -> None:
    assert operations.merge(one, other) == operations.merge(other, one)


@given(records(), records(), records())
def test_merging_associates(one: Record, two: Record, three: Record) -> None:
    left = operations.merge(operations.merge(one, two), three)
    assert left == operations.merge(one, operations.merge(two, three))


@given(records())
def test_merging_twice_is_merging_once(record: Record) -> None:
    assert operations.merge(record, record) == record
    assert operations.merge(None, record) == record
    assert not operations.outranks(record, record)


@given(st.lists(records(), min_size=1, max_size=8), st.randoms(use_true_random=False), st.data())
def test_order_and_repetition_do_not_matter(some: list[Record], random: object, data: st.DataObject) -> None:
    again = data.draw(st.lists(st.sampled_from(some), max_size=5))
    shuffled = data.draw(st.permutations([*some, *again]))
    assert fold(shuffled) == fold(some)


@given(records(), records())
def test_the_order_is_total_and_the_rank_agrees_with_it(one: Record, other: Record) -> None:
    assert operations.outranks(one, other) == (operations.rank(one) > operations.rank(other))
    assert one == other or operations.outranks(one, other) != operations.outranks(other, one)


@given(records(), records())
def test_an_end_is_final_within_its_attempt(one: Record, other: Record) -> None:
    merged = operations.merge(one, other)
    is_end_against_none = operations.is_ended(one) and not (operations.is_ended(other) or other.dismissed)
    if one.attempt == other.attempt and is_end_against_none:
        assert merged == one


@given(records(), records())
def test_a_lower_attempt_never_wins(one: Record, other: Record) -> None:
    assert operations.merge(one, other).attempt == max(one.attempt, other.attempt)


@given(records(), records())
def test_among_words_of_the_same_kind_a_lower_seq_never_wins(one: Record, other: Record) -> None:
    is_same_kind = operations.is_ended(one) == operations.is_ended(other) and one.dismissed == other.dismissed
    if one.attempt == other.attempt and is_same_kind:
        assert operations.merge(one, other).seq == max(one.seq, other.seq)


def test_ids_are_those_of_the_wire() -> None:
    assert operations.operation_id("staging", "m", "n") == "staging:m@n"
    assert operations.operation_id("installation", "m") == "installation:m"


@pytest.mark.parametrize("state", STATES)
def test_listed_is_what_has_not_ended_or_failed_and_was_not_dismissed(state: State) -> None:
    assert operations.is_listed(a_record(state=state)) == (state not in {"succeeded", "cancelled"})
    assert not operations.is_listed(a_record(state="failed", dismissed=True))


def test_a_new_run_outranks_whatever_is_held() -> None:
    held = a_record(attempt=7, seq=99, state="failed", error="no disk", dismissed=True)
    run = operations.opened(held, kind="staging", model="m", node="n", job="k", now=5.0, cause="asked")
    assert operations.outranks(run, held)
    assert (run.attempt, run.seq, run.state, run.owner, run.error, run.dismissed) == (8, 0, "queued", "", "", False)
    assert run.started_at == run.updated_at == 5.0


def test_the_first_claim_keeps_the_attempt_and_a_later_one_fences_the_earlier_owner() -> None:
    queued = operations.opened(None, kind="staging", model="m", node="n", job="j", now=1.0)
    first = operations.claimed(queued, "a", 2.0)
    second = operations.claimed(first, "b", 3.0)
    assert [(each.attempt, each.owner, each.state) for each in (queued, first, second)] == [
        (1, "", "queued"),
        (1, "a", "running"),
        (2, "b", "running"),
    ]
    late_word_of_the_first = msgspec.structs.replace(first, seq=1000)
    assert operations.merge(second, late_word_of_the_first) == second


@pytest.mark.parametrize("outcome", ["succeeded", "failed", "cancelled"])
def test_an_end_keeps_what_was_done_and_says_no_rate(outcome: Outcome) -> None:
    held = a_record(bytes_done=5, bytes_total=9, rate=3.0, seq=4)
    end = operations.ended(held, outcome, 9.0, error="why")
    assert (end.state, end.error, end.bytes_done, end.rate, end.seq, end.owner) == (outcome, "why", 5, None, 5, "a")
    assert operations.outranks(end, held)


def test_a_stalled_operation_keeps_its_owner_and_says_why() -> None:
    held = a_record(rate=3.0)
    stalled = operations.stalled(held, "silence", 9.0)
    assert (stalled.state, stalled.note, stalled.owner, stalled.rate) == ("stalled", "silence", "a", None)


ALLOWED: dict[Verb, set[State]] = {
    "cancel": {"queued", "running", "paused", "stalled"},
    "pause": {"queued", "running", "stalled"},
    "resume": {"paused"},
    "retry": {"failed", "cancelled"},
    "dismiss": {"failed"},
}
BECOMES: dict[Verb, State] = {
    "cancel": "cancelled",
    "pause": "paused",
    "resume": "queued",
    "retry": "queued",
    "dismiss": "failed",
}


@pytest.mark.parametrize(("verb", "state"), list(itertools.product(get_args(Verb), STATES)))
def test_every_verb_in_every_state(verb: Verb, state: State) -> None:
    held = a_record(state=state, error="why" if state == "failed" else "", seq=3)
    if state not in ALLOWED[verb]:
        with pytest.raises(WrongState, match=rf"cannot {verb} staging:m@n: it is {state}"):
            operations.commanded(held, verb, 9.0)
        return
    after = operations.commanded(held, verb, 9.0)
    assert after.state == BECOMES[verb]
    assert operations.outranks(after, held)
    assert after.job == held.job


def test_dismissing_hides_and_does_not_touch_the_time_of_the_end() -> None:
    failed = a_record(state="failed", error="why", updated_at=4.0)
    dismissed = operations.commanded(failed, "dismiss", 9.0)
    assert (dismissed.dismissed, dismissed.updated_at, dismissed.error) == (True, 4.0, "why")
    with pytest.raises(WrongState):
        operations.commanded(dismissed, "retry", 9.0)


def test_a_retry_is_open_to_any_owner_again() -> None:
    retried = operations.commanded(a_record(state="failed", error="why", note="x"), "retry", 9.0)
    assert (retried.owner, retried.error, retried.note, retried.attempt, retried.phase) == ("", "", "", 2, "planning")


def test_other_programs_work_moves_from_its_claim_on_and_what_was_done_is_done() -> None:
    queued = a_record(kind="render", node="", owner="", state="queued", phase="planning", bytes_done=7)
    claimed = operations.claimed(queued, "a", 2.0)
    assert (claimed.phase, claimed.bytes_present) == ("transferring", 7)
    staging = operations.claimed(a_record(owner="", state="queued", phase="planning", bytes_done=7), "a", 2.0)
    assert (staging.phase, staging.bytes_present) == ("planning", 7)


def test_a_record_tells_of_every_attempt_before_it_and_how_it_was_left() -> None:
    asked = operations.opened(None, kind="staging", model="m", node="n", job="j", now=1.0, cause="api")
    first = operations.claimed(asked, "one", 2.0)
    assert (first.attempt, first.earlier) == (1, ()), "nobody had it before"
    stalled = operations.stalled(first, "node n does not answer; it goes on when it is back", 12.0)
    second = operations.claimed(stalled, "two", 13.0)
    paused = operations.commanded(second, "pause", 14.0)
    resumed = operations.commanded(paused, "resume", 20.0)
    third = operations.claimed(resumed, "two", 21.0)
    failed = operations.ended(third, "failed", 25.0, "no space")
    retried = operations.commanded(failed, "retry", 30.0)
    assert [(each.attempt, each.state, each.owner, each.error) for each in retried.earlier] == [
        (1, "replaced", "one", "node n does not answer"),
        (2, "paused", "two", ""),
        (3, "failed", "two", "no space"),
    ]
    assert [(each.claimed_at, each.ended_at) for each in retried.earlier] == [(2.0, 12.0), (13.0, 14.0), (21.0, 25.0)]
    assert (retried.attempt, retried.claimed_at, retried.job) == (4, 0.0, "j")
    assert [each.attempt for each in operations.told(retried)] == [1, 2, 3, 4]


def test_a_record_stays_small_however_often_its_owner_dies() -> None:
    record = a_record(owner="0", attempt=1)
    for number in range(1, 100):
        record = operations.claimed(record, str(number), float(number))
    assert [each.attempt for each in record.earlier] == list(range(80, 100))
    assert record.attempt == 100


def test_another_run_tells_nothing_of_the_one_before() -> None:
    held = a_record(state="failed", attempt=3, earlier=operations.told(a_record()))
    opened = operations.opened(held, kind="staging", model="m", node="n", job="next", now=1.0)
    assert (opened.attempt, opened.earlier) == (4, ())


@pytest.mark.parametrize(
    ("changes", "seconds", "count"),
    [
        ({"claimed_at": 10.0, "updated_at": 14.0, "bytes_done": 70, "bytes_present": 30}, 4.0, 40),
        ({"claimed_at": 10.0, "updated_at": 14.0, "bytes_done": 30, "bytes_present": 30}, 4.0, 0),
        ({"claimed_at": 10.0, "updated_at": 9.0, "bytes_done": 70}, None, 70),  # ended by another clock
        ({"claimed_at": 0.0, "updated_at": 14.0, "bytes_done": 70}, None, None),  # nobody took it up
        ({"claimed_at": 10.0, "updated_at": 14.0, "bytes_done": 70, "kind": "loading"}, 4.0, None),
    ],
)
def test_what_cannot_be_known_of_an_attempt_is_not_told(
    changes: dict[str, object], seconds: float | None, count: int | None
) -> None:
    record = a_record(state="failed", **changes)
    assert (operations.took(record), operations.moved(record)) == (seconds, count)


def test_what_an_earlier_attempt_moved_is_no_later_one_s() -> None:
    """Also before the work has found out what is there: it may fail before."""
    held = a_record(state="failed", claimed_at=1.0, updated_at=2.0, bytes_done=70)
    again = operations.claimed(operations.commanded(held, "retry", 3.0), "b", 4.0)
    assert operations.moved(operations.ended(again, "failed", 5.0)) == 0
    assert operations.moved(operations.claimed(a_record(bytes_done=70), "b", 4.0)) == 0


@pytest.mark.parametrize(
    ("verb", "fulfilled"),
    [
        ("cancel", {"state": "cancelled"}),
        ("pause", {"state": "paused"}),
        ("dismiss", {"state": "failed", "dismissed": True}),
        ("resume", {"state": "running", "begun_by": "resume"}),
        ("resume", {"state": "queued", "begun_by": "resume"}),
        ("retry", {"state": "stalled", "begun_by": "retry"}),
    ],
)
def test_a_command_whose_effect_holds_is_fulfilled_and_no_other_is(verb: Verb, fulfilled: dict[str, object]) -> None:
    held = a_record(**fulfilled)
    assert [each for each in get_args(Verb) if operations.is_fulfilled(held, each)] == [verb]


@pytest.mark.parametrize("state", ["paused", "succeeded", "failed", "cancelled"])
@pytest.mark.parametrize("verb", ["resume", "retry"])
def test_an_attempt_that_has_ended_or_rests_can_be_begun_anew(verb: Verb, state: State) -> None:
    assert not operations.is_fulfilled(a_record(state=state, begun_by=verb), verb)


@given(records(), st.sampled_from(get_args(Verb)))
def test_after_a_command_it_is_fulfilled_and_gives_nothing_more_to_do(record: Record, verb: Verb) -> None:
    try:
        after = operations.commanded(record, verb, 9.0)
    except WrongState:
        return
    assert operations.is_fulfilled(after, verb)


@pytest.mark.parametrize("verb", ["cancel", "pause"])
@pytest.mark.parametrize(
    ("decided", "said"),
    [({"phase": "publishing"}, "publishing"), ({"kind": "deletion"}, "deleting")],
)
def test_what_is_decided_cannot_be_stopped(verb: Verb, decided: dict[str, object], said: str) -> None:
    for state in ("running", "stalled"):
        held = a_record(state=state, **decided)
        with pytest.raises(WrongState, match=f"cannot {verb} {held.id}: it is {said}, past stopping"):
            operations.commanded(held, verb, 9.0)
        assert not operations.is_cancellable(held)
    assert operations.is_cancellable(a_record(state="queued", owner="", **decided))


@pytest.mark.parametrize(
    ("state", "keep_partial", "kept", "said"),
    [
        ("paused", True, 5_000_000, "cancelled; 5.0 MB kept"),
        ("paused", False, 0, "cancelled; 5.0 MB freed"),
        ("stalled", True, 5_000_000, "cancelled; 5.0 MB kept"),
        ("stalled", False, 0, "cancelled; 5.0 MB freed once n is back"),
    ],
)
def test_a_cancel_says_what_becomes_of_the_partial(state: State, keep_partial: bool, kept: int, said: str) -> None:
    held = a_record(state=state, bytes_done=5_000_000, bytes_total=9_000_000)
    end = operations.commanded(held, "cancel", 9.0, keep_partial=keep_partial)
    assert (end.state, end.keep_partial, end.bytes_kept, end.bytes_done) == (
        "cancelled",
        keep_partial,
        kept,
        5_000_000,
    )
    assert broadcast.sentence(end) == f"Staging m on n: {said}"
    retried = operations.commanded(end, "retry", 10.0)
    assert (retried.keep_partial, retried.bytes_kept) == (False, 0)
    assert (retried.bytes_done, retried.bytes_present) == (kept, kept), "what was freed is not there any more"


def test_a_retry_of_what_no_cancel_frees_begins_where_it_was() -> None:
    failed = a_record(state="failed", error="why", bytes_done=5)
    work = a_record(kind="render", node="", state="cancelled", bytes_done=5)
    assert [operations.commanded(held, "retry", 9.0).bytes_done for held in (failed, work)] == [5, 5]


def test_since_when_it_is_stalled_stays_while_it_waits_for_the_same() -> None:
    first = operations.stalled(a_record(), "x", 9.0, "source")
    assert (first.waits_on, first.waits_since) == ("source", 9.0)
    assert operations.stalled(first, "x", 12.0, "source").waits_since == 9.0
    assert operations.stalled(first, "x", 12.0, "owner").waits_since == 12.0
    assert operations.stalled(first, "x", 12.0, "network", since=9.0).waits_since == 9.0
    assert operations.succeeding(first, 13.0, state="running").waits_on == ""
