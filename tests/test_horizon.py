from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagecast import broadcast, horizon, operations, rows, subjects
from stagecast.fold import Fold, Slot
from stagecast.horizon import AGE, STEP, due
from stagecast.messages import Entry, Horizon, Record
from stagecast.revision import Revision, first_of
from tests.peers import a_record
from tests.test_fold import foreign

NAMES = "abcd"
STEPS = ("begin", "tick", "succeed", "fail", "cancel", "dismiss", "retry", "pause", "forget", "forget")
LATE = 1e12


def of(name: str, **changes: object) -> Record:
    return a_record(kind="render", node="", model=name, job=f"job of {name}", **changes)


def written(*records: Record, first: int = 1) -> Fold:
    """Return the fold of these records, one a second."""
    fold = Fold(Revision("s", 0))
    for at, record in enumerate(records, first):
        fold.apply(Entry(subjects.operation(record), at, broadcast.encode(record), float(at)))
    return fold


def wanted_by_nobody(_: Record) -> bool:
    return False


class World:
    """A log from which messages are removed, all that was ever written into it, and who saw all of it."""

    def __init__(self) -> None:
        self.sequence = first_of(7)
        self.standing: dict[str, Entry] = {}
        self.all: list[Entry] = []
        self.ideal = Fold(Revision("s", 0))
        self.jobs = 0

    def say(self, subject: str, payload: bytes) -> None:
        self.sequence += 1
        entry = Entry(subject, self.sequence, payload, float(len(self.all) + 1))
        self.standing[subject] = entry
        self.all.append(entry)
        change = self.ideal.apply(entry)
        for word in change.forgotten:
            assert isinstance(word, Slot)
            gone = self.standing[subjects.operation(word.record)]
            if gone.sequence <= self.ideal.horizon.through:
                del self.standing[gone.subject]

    def step(self, name: str, what: str) -> None:
        if what == "forget":
            found = due(self.ideal, len(self.all) - 2 + AGE + STEP, wanted_by_nobody)
            if found is not None:
                self.say(subjects.HORIZON, msgspec.json.encode(found))
            return
        record = self._after(name, what)
        if record is not None:
            self.say(subjects.operation(record), broadcast.encode(record))

    def _after(self, name: str, what: str) -> Record | None:
        held = self.ideal.record(operations.operation_id("render", name))
        if what == "begin" and (held is None or operations.is_ended(held)):
            self.jobs += 1
            era = 0 if held else self.ideal.horizon.number
            opened = operations.opened(held, kind="render", model=name, node="", job=f"{self.jobs}", now=1.0, era=era)
            return operations.claimed(opened, "p", 1.0)
        if held is None:
            return None
        if what in {"dismiss", "retry", "pause"}:
            try:
                return operations.commanded(held, what, 2.0)  # type: ignore[arg-type]
            except operations.WrongState:
                return None
        if operations.is_ended(held):
            return None
        if what == "tick":
            return operations.succeeding(held, 2.0, bytes_done=held.bytes_done + 1)
        if what == "fail":
            return operations.ended(held, "failed", 2.0, error="because")
        return operations.ended(held, "succeeded" if what == "succeed" else "cancelled", 2.0)

    def woken(self, at: int) -> Fold:
        """Return the fold of one that has heard the first ``at`` messages, slept, and heard what stands now."""
        fold = Fold(Revision("s", 0))
        for entry in self.all[:at]:
            fold.apply(entry)
        heard = fold.revision.sequence
        for entry in sorted(self.standing.values(), key=lambda entry: entry.sequence):
            if entry.sequence > heard:
                fold.apply(entry)
        return fold


def known(fold: Fold) -> object:
    return (fold.slots, fold._live, fold._jobs, fold._subjects, fold.horizon, fold.horizon_at, rows.listed(fold))


@settings(max_examples=400)
@given(st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(STEPS)), max_size=40), st.data())
def test_whoever_slept_through_any_part_of_it_knows_what_one_that_missed_nothing_knows(
    steps: list[tuple[str, str]], data: st.DataObject
) -> None:
    world = World()
    for step in steps:
        world.step(*step)
    for at in {0, data.draw(st.integers(0, len(world.all))), len(world.all)}:
        assert known(world.woken(at)) == known(world.ideal)


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(STEPS)), max_size=60))
def test_to_forget_changes_no_list_and_a_later_run_outranks_every_forgotten_one(steps: list[tuple[str, str]]) -> None:
    world = World()
    for name, what in steps:
        before, held = rows.listed(world.ideal), world.all[:]
        world.step(name, what)
        if what == "forget":
            assert rows.listed(world.ideal) == before
        elif len(world.all) > len(held) and (record := world.ideal.record(f"render:{name}")) is not None:
            earlier = [
                found
                for entry in held
                if (found := broadcast.decode("task", entry.payload).op if entry.subject.startswith("task") else None)
            ]
            assert all(operations.is_later(record, each) for each in earlier if each.id == record.id)


def test_a_log_of_ever_new_names_holds_no_more_than_what_has_ended_lately() -> None:
    world = World()
    for number in range(500):
        for what in ("begin", "succeed", "forget"):
            world.step(f"name-{number}", what)
        assert len(world.standing) <= AGE + STEP
        assert len(world.ideal.slots) <= 8
    fold = world.ideal
    for index in (fold._jobs, fold._subjects, fold._calls, fold._calls_at, fold._stagings, fold._live):
        assert len(index) <= 8


def test_nothing_is_forgotten_before_its_age() -> None:
    fold = written(of("a", state="succeeded"))
    assert due(fold, 1 + AGE + STEP - 0.1, wanted_by_nobody) is None
    assert due(fold, 1 + AGE + STEP, wanted_by_nobody) == Horizon(number=1, through=1)


@pytest.mark.parametrize(
    "record",
    [of("a"), of("a", state="paused"), of("a", state="queued", owner=""), of("a", state="failed", error="because")],
    ids=lambda record: record.state,
)
def test_what_people_see_is_kept_however_old(record: Record) -> None:
    assert due(written(record), LATE, wanted_by_nobody) is None
    fold = written(record, of("b", state="succeeded"))
    found = due(fold, LATE, wanted_by_nobody)
    assert found == Horizon(number=1, through=2, kept=(1,))
    fold.apply(Entry(subjects.HORIZON, 3, msgspec.json.encode(found), 3.0))
    assert fold.slots.keys() == {record.id}


def test_what_failed_is_forgotten_once_it_was_dismissed() -> None:
    assert due(written(of("a", state="failed", error="x", dismissed=True)), LATE, wanted_by_nobody) is not None


def test_what_somebody_has_to_learn_still_is_kept() -> None:
    fold = written(of("a", state="succeeded"), of("b", state="succeeded"))
    found = due(fold, LATE, lambda record: record.model == "a")
    assert found == Horizon(number=1, through=2, kept=(1,))


def test_a_part_of_a_call_is_kept_for_as_long_as_another_one_is_shown() -> None:
    parts = [of("a", state="succeeded", call="c"), of("b", call="c"), of("d", state="succeeded", call="other")]
    assert due(written(*parts), LATE, wanted_by_nobody) == Horizon(number=1, through=3, kept=(2, 1))


def test_a_foreign_row_that_has_ended_is_forgotten_and_one_that_goes_on_is_not() -> None:
    fold = Fold(Revision("s", 0))
    fold.apply(foreign("a", done=True, sequence=1))
    fold.apply(foreign("b", sequence=2))
    fold.apply(foreign("d", done=True, sequence=3))
    found = due(fold, LATE, wanted_by_nobody)
    assert found == Horizon(number=1, through=3, kept=(1,))
    change = fold.apply(Entry(subjects.HORIZON, 4, msgspec.json.encode(found), 3.0))
    assert change.what == "horizon"
    assert fold.mirrors.keys() == {"staging:b"}
    assert fold.mirror("a") is None
    fold.apply(foreign("a", sequence=5))
    assert [row.id for row in rows.listed(fold)] == ["staging:a", "staging:b"]


def test_at_once_no_more_is_forgotten_than_a_fold_can_do_in_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(horizon, "MOST", 3)
    fold = written(*(of(name, state="succeeded") for name in "abcdefg"))
    for left in (4, 1, 0):
        found = due(fold, LATE, wanted_by_nobody)
        fold.apply(Entry(subjects.HORIZON, fold.revision.sequence + 1, msgspec.json.encode(found), 9.0))
        assert len(fold.slots) == left


def test_a_horizon_that_would_be_too_large_a_message_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(horizon, "KEPT_MOST", 2)
    waiting = [of(name, state="queued", owner="") for name in "abc"]
    assert due(written(*waiting, of("z", state="succeeded")), LATE, wanted_by_nobody) is None
    assert due(written(*waiting[:2], of("z", state="succeeded")), LATE, wanted_by_nobody) is not None


def test_a_horizon_that_was_meant_for_a_log_that_is_lost_says_nothing_of_this_one() -> None:
    fold = written(of("a", state="succeeded"), first=first_of(3))
    late = Horizon(number=4, through=first_of(5))
    fold.apply(Entry(subjects.HORIZON, first_of(3) + 1, msgspec.json.encode(late), 3.0))
    assert fold.slots.keys() == {"render:a"}
    assert fold.horizon == Horizon(number=4)
    assert not late.forgets(first_of(3))


@pytest.mark.parametrize(
    "record",
    [
        a_record(state="cancelled"),
        a_record(state="failed", error="x", dismissed=True),
        a_record(kind="installation", node="", state="cancelled", keep_partial=True),
        a_record(kind="deletion", state="succeeded"),
    ],
    ids=lambda record: f"{record.kind} {record.state}",
)
def test_what_says_what_lies_on_a_disk_is_kept(record: Record) -> None:
    assert due(written(record), LATE, wanted_by_nobody) is None
    assert due(written(a_record(state="succeeded")), LATE, wanted_by_nobody) is not None


def test_what_an_operation_of_a_later_call_tells_of_is_kept_for_as_long_as_that_is_shown() -> None:
    told, telling = of("a", state="succeeded", call="c"), of("b", call="later", beside=("job of a",))
    assert due(written(told, telling), LATE, wanted_by_nobody) is None
