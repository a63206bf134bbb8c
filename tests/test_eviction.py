from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagecast.eviction import JUST_USED, Budget, Copy, Leftover, chosen, free_missing, orphans, why_kept, why_left
from stagecast.messages import Record
from tests.peers import a_record

NOW = 1.8e9
copies = st.lists(
    st.builds(
        Copy, model=st.sampled_from("abcdefgh"), bytes=st.integers(0, 100), used_at=st.integers(0, 20),
        came_at=st.integers(0, 20),
        keep=st.sampled_from(["", "", "pinned"]),
    ),
    unique_by=lambda copy: copy.model,
)  # fmt: skip


def last(copy: Copy) -> float:
    return max(copy.used_at, copy.came_at)


@given(copies, st.integers(0, 300))
def test_what_goes_was_used_longest_ago_is_free_to_go_and_is_no_more_than_needed(
    found: list[Copy], excess: int
) -> None:
    gone = chosen(found, excess)
    free = [copy for copy in found if not copy.keep]
    assert all(copy in free for copy in gone)
    assert all(last(copy) <= last(other) for copy in gone for other in free if other not in gone)
    freed = sum(copy.bytes for copy in gone)
    assert freed >= excess or gone == sorted(free, key=lambda copy: (last(copy), copy.model))
    assert not gone or freed - gone[-1].bytes < excess
    assert chosen(list(reversed(found)), excess) == gone


@pytest.mark.parametrize(
    ("budget", "used", "free", "more", "excess"),
    [
        (Budget(), 10**12, 0, 10**12, 0),
        (Budget(limit=100), 90, 0, 0, 0),
        (Budget(limit=100), 90, 10**9, 30, 20),
        (Budget(keep_free=50), 10**9, 60, 0, 0),
        (Budget(keep_free=50), 10**9, 60, 30, 20),
        (Budget(limit=100, keep_free=50), 130, 10, 0, 40),
    ],
)
def test_how_much_has_to_go(budget: Budget, used: int, free: int, more: int, excess: int) -> None:
    assert budget.excess(used, free, more) == excess
    assert bool(budget) == (budget != Budget())


def test_what_comes_to_another_folder_of_the_disk_takes_its_room_and_none_of_a_models_limit() -> None:
    assert Budget(limit=100).excess(90, 60, 5, 50) == 0
    assert Budget(keep_free=50).excess(90, 60, 5, 50) == 45


def test_room_that_is_there_is_not_missing() -> None:
    assert (free_missing(100, 60), free_missing(60, 100)) == (0, 40)


def why(**changes: Any) -> str:
    values: dict[str, Any] = {
        "pinned": False, "loaded": False, "used_at": NOW - 1000, "now": NOW, "records": [], "elsewhere": ["other"],
    }  # fmt: skip
    return why_kept("m", **(values | changes))


def test_a_model_may_go_unless_it_is_pinned_loaded_worked_on_in_use_or_the_last() -> None:
    assert why() == ""
    assert why(pinned=True) == "pinned"
    assert why(loaded=True) == "loaded"
    assert why(elsewhere=[]) == "the last copy"
    assert why(used_at=NOW - JUST_USED + 1) == "used just now"
    assert why(used_at=NOW + 3600) == "", "by a clock that was put right since"
    for kind in ("staging", "loading", "installation", "deletion"):
        for state in ("queued", "running", "paused", "stalled"):
            assert why(records=[a_record(kind=kind, state=state)]) == f"{kind} is under way"
    assert why(records=[a_record(state="succeeded"), a_record(model="other")]) == ""


def left(record: Record, **changes: Any) -> str:
    values: dict[str, Any] = {"folder": "partial-d-m", "kind": "partial", "model": "m", "digest": "d"}
    return why_left(Leftover(**(values | changes)), [record])


@pytest.mark.parametrize("kind", ["staging", "installation"])
def test_a_leftover_stays_for_as_long_as_something_may_go_on_with_it(kind: str) -> None:
    what = {"kind": "partial" if kind == "staging" else "draft", "digest": ""}
    for state in ("queued", "running", "paused", "stalled"):
        assert left(a_record(kind=kind, state=state), **what) == f"its {kind} is {state}"
    assert left(a_record(kind=kind, state="failed"), **what) == f"its {kind} failed and can be retried"
    assert left(a_record(kind=kind, state="failed", dismissed=True), **what) == ""
    assert left(a_record(kind=kind, state="cancelled", keep_partial=True), **what).endswith("to be gone on with")
    assert left(a_record(kind=kind, state="cancelled"), **what) == ""
    assert left(a_record(kind=kind, state="succeeded"), **what) == ""


def test_what_belongs_to_another_revision_kind_or_model_is_nobody_s() -> None:
    assert left(a_record(parameters={"digest": "newer"})) == ""
    assert left(a_record(parameters={"digest": "d"})) == "its staging is running"
    assert left(a_record(kind="installation")) == ""
    assert left(a_record(model="other")) == ""
    assert left(a_record(), model="", digest="") == "", "nobody can tell what it was"
    assert left(a_record(), kind="trash", model="") == ""


def test_orphans_are_those_that_nobody_needs() -> None:
    lone, needed = Leftover(folder="a", kind="draft"), Leftover(folder="b", kind="draft", keep="its installation is")
    assert orphans([lone, needed]) == [lone]
