"""The past equals its model: under random ends, bounds, clocks and restarts, and by pages of any size."""

from __future__ import annotations

from typing import NoReturn

import pytest
from hypothesis import settings, strategies
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from stagecast.messages import Record
from stagecast.past import Key, Past, Place, Sought, key_of, parse_place, place_before
from stagecast.settings import Bounds
from tests.peers import a_record

COUNT, AGE = 7, 20.0
WORDS = strategies.sampled_from(["a", "b", "~"])
SOUGHT = strategies.builds(
    Sought,
    kind=strategies.sampled_from(["", "staging", "loading", "task"]),
    model=strategies.sampled_from(["", "a", "b"]),
    node=strategies.sampled_from(["", "a"]),
    state=strategies.sampled_from(["", "succeeded", "failed"]),
    job=strategies.sampled_from(["", "a"]),
)
ENDS = strategies.builds(
    a_record,
    kind=strategies.sampled_from(["staging", "loading"]),
    model=WORDS,
    node=WORDS,
    job=WORDS,
    attempt=strategies.integers(1, 6),
    state=strategies.sampled_from(["succeeded", "failed", "cancelled"]),
    updated_at=strategies.sampled_from([1.7e9, 1.7e9 + 0.1, 1.7e9 + 0.1 + 1e-6, 5.0]),  # equal times are usual
)


def order(record: Record) -> tuple[float, str, int]:
    return (record.updated_at, record.job, record.attempt)


def wanted(record: Record, sought: Sought) -> bool:
    asked = {"kind": sought.kind, "model": sought.model, "node": sought.node, "state": sought.state, "job": sought.job}
    return all(getattr(record, name) == value for name, value in asked.items() if value)


class PastEqualsItsModel(RuleBasedStateMachine):
    """The model is a plain list, in the order in which the ends were written."""

    cursors = Bundle("cursors")

    @initialize()
    def begin(self) -> None:
        self.past = Past(Bounds(count=COUNT, age=AGE))
        self.model: list[tuple[float, Record]] = []
        self.now = 1000.0

    def bound(self) -> set[Key]:
        before = {key_of(record) for _, record in self.model}
        self.model = [pair for pair in self.model if pair[0] >= self.now - AGE][-COUNT:]
        return before - {key_of(record) for _, record in self.model}

    @rule(record=ENDS)
    def an_end_is_written(self, record: Record) -> None:
        self.now += 1.0  # no two at once: which of them is older, the stream itself decides
        gone = set(self.past.expire(self.now)) | set(self.past.add(record, self.now))
        self.model = [pair for pair in self.model if key_of(pair[1]) != key_of(record)]
        self.model.append((self.now, record))
        assert gone == self.bound()

    @rule(seconds=strategies.sampled_from([0.5, 5.0, 19.0, 21.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        assert set(self.past.expire(self.now)) == self.bound()

    @rule()
    def a_replica_starts_anew(self) -> None:
        """It reads the stream from its beginning, and comes to the same."""
        again = Past(Bounds(count=COUNT, age=AGE))
        for written, record in self.model:
            again.add(record, written)
        assert again.page(Sought(), 100) == self.past.page(Sought(), 100)
        self.past = again

    @rule(target=cursors, sought=SOUGHT, limit=strategies.integers(1, 4))
    def pages_have_each_entry_exactly_once(self, sought: Sought, limit: int) -> Place | None:
        pages = [self.past.page(sought, limit)]
        while pages[-1].following is not None:
            assert len(pages[-1].records) == limit
            pages.append(self.past.page(sought, limit, parse_place(str(pages[-1].following))))
        expected = sorted((record for _, record in self.model if wanted(record, sought)), key=order, reverse=True)
        assert [record for page in pages for record in page.records] == expected
        return pages[0].following

    @rule(cursor=cursors)
    def an_old_cursor_goes_on_where_it_stood(self, cursor: Place | None) -> None:
        """Whatever has come and gone since: no entry older than it is skipped, none newer comes back."""
        if cursor is not None:
            expected = sorted((record for _, record in self.model if order(record) < cursor), key=order, reverse=True)
            assert self.past.page(Sought(), 100, cursor).records == expected

    @rule(moment=strategies.sampled_from([5.0, 1.7e9, 1.7e9 + 0.1, 2e9]))
    def a_time_is_a_cursor_too(self, moment: float) -> None:
        found = self.past.page(Sought(), 100, place_before(moment)).records
        assert {key_of(each) for each in found} == {key_of(each) for _, each in self.model if each.updated_at < moment}

    @rule(operation=strategies.sampled_from(["a", "~", "staging:a@b", "nothing"]))
    def the_latest_of_an_operation_is_found(self, operation: str) -> None:
        meant = [record for _, record in self.model if operation in {record.id, record.job}]
        # Attempts are counted by the log; when they ended, each owner says by its own clock.
        latest = max(meant, key=lambda record: (record.era, record.attempt, *order(record)), default=None)
        assert self.past.find(operation) == latest

    @invariant()
    def it_has_what_the_model_has(self) -> None:
        if hasattr(self, "past"):
            assert list(self.past) == [record for _, record in self.model]
            assert len(self.past) == len(self.model) <= COUNT
            assert all(key_of(record) in self.past for _, record in self.model)
            names = {name for _, record in self.model for name in (record.id, record.job)}
            assert self.past._named.keys() == names, "what is dropped leaves nothing behind"


PastEqualsItsModel.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPast = PastEqualsItsModel.TestCase


@pytest.mark.parametrize(
    "text", ["", "1.5", "1.5~2", "x~1~job", "1.5~x~job", "nan~1~job", "inf~1~job", "2026-11-24T01:48:00Z"]
)
def test_what_is_no_cursor_is_none(text: str) -> None:
    assert parse_place(text) is None


def test_a_cursor_reads_back_to_the_last_digit() -> None:
    place = Place(1.7e9 + 1e-6, "any ~ job", 3)
    assert parse_place(str(place)) == place


def test_who_looks_for_an_operation_looks_at_no_other() -> None:
    class Unwalked(dict[Key, tuple[Record, float]]):
        def values(self) -> NoReturn:
            raise AssertionError("10,000 entries, on the loop, for each request")

        items = __iter__ = values

    past = Past(Bounds(count=100, age=100.0))
    ends = [a_record(id=f"task:{job}", job=job, state="succeeded") for job in ("a", "b", "c")]
    for at, end in enumerate(ends):
        past.add(end, float(at))
    past._entries = Unwalked(past._entries)
    for end in ends:
        assert past.find(end.id) is past.find(end.job) is end
    assert past.find("nothing") is None
