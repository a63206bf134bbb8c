from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagecast import broadcast, subjects
from stagecast.collection import Collection, Goal, elsewhere, goals, shared_out, waves
from stagecast.eviction import Copy, Inventory, Leftover
from stagecast.fold import Fold
from stagecast.messages import KEPT, Entry, Holding, NodeRecord, Record
from tests.peers import a_record

MB = 10**6


def inventory(node: str, *copies: Copy, disk: str = "boot:1", free: int = 0, **fields: object) -> Inventory:
    values: dict[str, object] = {
        "volume": f"{disk}:{node}", "disk_free": free, "disk_total": 10**12, "disk_reserved": 0, **fields
    }  # fmt: skip
    return Inventory(node=node, copies=list(copies), **values)  # type: ignore[arg-type]


def copy(model: str, used_at: float = 0.0, count: int = MB, keep: str = "") -> Copy:
    return Copy(model=model, bytes=count, used_at=used_at, keep=keep)


def gone(found: list[Collection]) -> dict[str, list[str]]:
    return {each.node: [copy.model for copy in each.copies] for each in found}


def everywhere(goal: Goal) -> dict[str, set[str]]:
    """Return in which folders each model is."""
    found: dict[str, set[str]] = {}
    for each in goal.inventories:
        for one in each.copies:
            found.setdefault(one.model, set()).add(each.volume)
    return found


def planned(goal: Goal, beyond: frozenset[str] = frozenset()) -> list[Collection]:
    held = everywhere(goal)
    volumes = {each.node: each.volume for each in goal.inventories}
    return shared_out(goal, lambda node, model: frozenset(held[model] - {volumes[node]}) | beyond)


def test_on_one_disk_what_was_used_longest_ago_goes_wherever_it_lies_and_only_as_much_as_is_wanted() -> None:
    one, two = inventory("one", copy("a", 5), copy("b", 1)), inventory("two", copy("c", 2), copy("d", 9))
    found = planned(Goal([one, two], 2 * MB), frozenset({"far"}))
    assert gone(found) == {"one": ["b"], "two": ["c"]}
    assert [each.bytes for each in found] == [MB, MB]


def test_the_last_copy_stays_though_each_node_would_let_its_own_go() -> None:
    found = planned(Goal([inventory("one", copy("a", 1)), inventory("two", copy("a", 2))], 10 * MB))
    assert gone(found) == {"one": ["a"], "two": []}
    assert [each.keep for each in found[1].kept] == ["the last copy"]


def test_leftovers_go_first() -> None:
    left = Leftover(folder="partial-0", kind="partial", bytes=3 * MB)
    found = planned(Goal([inventory("one", copy("a"), leftovers=[left])], 2 * MB), frozenset({"far"}))
    assert (gone(found), found[0].bytes) == ({"one": []}, 3 * MB)


@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 9), st.booleans()), unique_by=lambda each: each[0]),
        min_size=1, max_size=4,
    ),
    st.integers(0, 12),
)  # fmt: skip
def test_no_model_loses_its_last_copy_and_every_byte_that_is_wanted_goes_if_it_may(
    held: list[list[tuple[str, int, bool]]], excess: int
) -> None:
    goal = Goal(
        [
            inventory(
                f"n{number}", *(copy(model, used, keep="pinned" if pinned else "") for model, used, pinned in each)
            )
            for number, each in enumerate(held)
        ],
        excess * MB,
    )
    found = planned(goal)
    before = Counter(model for each in held for model, _, _ in each)
    after = before - Counter(copy.model for each in found for copy in each.copies)
    assert set(after) == set(before)
    assert not any(copy.keep for each in found for copy in each.copies)
    freed = sum(each.bytes for each in found)
    if freed < goal.excess:
        left = [(each.node, one.model) for each in goal.inventories for one in each.copies if not one.keep]
        stays = set(left) - {(each.node, one.model) for each in found for one in each.copies}
        assert all(after[model] == 1 for _, model in stays)
    else:
        assert freed - goal.excess < MB or freed == 0


def test_folders_on_one_disk_free_it_together() -> None:
    one = inventory("one", free=10 * MB, disk_reserved=MB, reserved_here=MB)
    two = inventory("two", free=10 * MB, disk_reserved=2 * MB, reserved_here=2 * MB)
    far = inventory("far", free=40 * MB, disk="boot:2")
    found = {tuple(each.node for each in goal.inventories): goal.excess for goal in goals([one, far, two], 20 * MB)}
    assert found == {("one", "two"): 13 * MB, ("far",): 0}


@pytest.mark.parametrize(
    ("volume", "seen", "promised"),
    [("", (5, 5), 5), ("", (3, 2), 5), ("boot:1:same", (5, 5), 5), ("boot:1:same", (3, 3), 3)],
    ids=["each sees all", "neither sees the other's", "one folder", "one folder with a promise"],
)
def test_a_promise_on_a_disk_counts_once_whoever_sees_it(volume: str, seen: tuple[int, int], promised: int) -> None:
    here = (3, 2) if not volume else seen
    nodes = [
        inventory(name, free=10, disk_reserved=all_of_it, reserved_here=own, **({"volume": volume} if volume else {}))
        for name, all_of_it, own in zip(("one", "two"), seen, here, strict=True)
    ]
    [goal] = goals(nodes, 20)
    assert goal.excess == 20 - (10 - promised)


def test_without_a_wish_each_nodes_budget_says_what_is_too_much() -> None:
    found = goals([inventory("one", excess=5), inventory("two")], 0)
    assert [(goal.inventories[0].node, goal.excess) for goal in found] == [("one", 5), ("two", 0)]


def test_of_several_copies_of_a_model_one_goes_at_a_time() -> None:
    left = Leftover(folder="partial-0", kind="partial", bytes=1)
    wanted = [Collection("one", [copy("a"), copy("b")], [left], 0), Collection("two", [copy("a"), copy("c")], [], 0)]
    first, second = waves(wanted)
    assert (gone(first), gone(second)) == ({"one": ["a", "b"], "two": ["c"]}, {"one": [], "two": ["a"]})
    assert [len(each.leftovers) for each in (*first, *second)] == [1, 0, 0, 0]


def told(*words: tuple[str, msgspec.Struct | bytes]) -> Fold:
    """Return the fold of these words, in this order."""
    fold = Fold()
    for sequence, (subject, word) in enumerate(words, 1):
        payload = word if isinstance(word, bytes) else msgspec.json.encode(word)
        fold.apply(Entry(subject, sequence, payload, 1.7e9))
    return fold


def node(name: str, volume: str) -> tuple[str, NodeRecord]:
    return subjects.node(name), NodeRecord(
        name=name, kind="worker", process=f"{name}/1", address="http://x", volume=volume
    )


def held(name: str, digest: str = "d") -> tuple[str, Holding]:
    return subjects.holding(name, "owl"), Holding(node=name, model="owl", digest=digest)


def deleted(name: str, count: int = 5) -> tuple[str, bytes]:
    record = a_record(kind="deletion", model="owl", node=name, state="succeeded", bytes_done=count)
    return subjects.operation(record), broadcast.encode(record)


NODES = (node("here", "b:1:h"), node("one", "b:1:m"), node("two", "b:1:m"), node("far", "b:2:f"))


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([held("here")], set()),
        ([held("here"), held("one"), held("two")], {"b:1:m"}),
        ([held("here"), held("one"), held("far")], {"b:1:m", "b:2:f"}),
        ([held("here"), held("one", "another revision")], set()),
        ([held("one")], set()),
        ([held("here"), held("one"), held("two"), deleted("one")], set()),
        ([held("here"), held("one"), deleted("one"), held("two")], {"b:1:m"}),
        ([held("here"), held("one"), deleted("one", 0)], {"b:1:m"}),
        ([held("here"), held("one"), held("far"), deleted("one")], {"b:2:f"}),
    ],
)
def test_where_else_a_model_is_for_certain(words: list[tuple[str, Holding | bytes]], found: set[str]) -> None:
    """Two replicas share a folder: what one said before the other deleted it there, it says for some moments still."""
    assert elsewhere(told(*NODES, *words), "here", "owl", lambda _: True) == found


def test_who_is_not_alive_holds_nothing_for_certain() -> None:
    assert elsewhere(told(*NODES, held("here"), held("far")), "here", "owl", lambda name: name != "far") == set()


def test_a_model_that_shares_all_its_files_has_gone_though_that_freed_nothing() -> None:
    def deleted(model: str, **fields: object) -> Record:
        return a_record(kind="deletion", model=model, node="w", **({"state": "succeeded"} | fields))

    wanted = Collection("w", [copy(model) for model in ("ant", "bee", "cat", "dog")], [], 4 * MB)
    ends = {
        ("w", "ant"): deleted("ant"),
        ("w", "bee"): deleted("bee", bytes_done=2 * MB),
        ("w", "cat"): deleted("cat", note=f"{KEPT}pinned"),
        ("w", "dog"): deleted("dog", state="failed"),
    }
    gone = wanted.told(ends)
    assert ([each.model for each in gone.copies], gone.bytes) == (["ant", "bee"], 2 * MB)
    assert [(each.model, each.keep) for each in gone.kept] == [("cat", "pinned"), ("dog", "not deleted")]
