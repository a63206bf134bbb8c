from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from stagecast.messages import Placement
from stagecast.placement import Candidate, choose, placed, withdrawn

NAMES = st.sampled_from("abcdefgh")
CANDIDATES = st.lists(
    st.builds(Candidate, name=NAMES, has_files=st.booleans(), loaded=st.integers(0, 4), free=st.integers(0, 100)),
    unique_by=lambda each: each.name,
)
SIZES = st.integers(0, 100)
HELD = st.none() | st.builds(
    Placement, model=st.just("m"), nodes=st.lists(NAMES, unique=True).map(tuple),
    refused=st.lists(NAMES, unique=True).map(tuple), generation=st.integers(1, 9),
    placed_at=st.floats(0, 9, allow_nan=False),
)  # fmt: skip


@given(CANDIDATES, SIZES, st.sets(NAMES))
def test_the_chosen_one_can_take_it_and_is_not_refused(
    candidates: list[Candidate], size: int, refused: set[str]
) -> None:
    chosen = {each.name: each for each in candidates}.get(choose(candidates, size, refused) or "")
    able = [each for each in candidates if each.name not in refused and (each.has_files or each.free >= size)]
    assert (chosen is None) == (able == [])
    assert chosen is None or chosen in able


@given(CANDIDATES, SIZES, st.randoms(use_true_random=False))
def test_every_replica_chooses_the_same_in_whatever_order_it_sees_them(
    candidates: list[Candidate], size: int, random: object
) -> None:
    other = list(candidates)
    random.shuffle(other)  # type: ignore[attr-defined]
    assert choose(candidates, size) == choose(iter(other), size)


@given(CANDIDATES, SIZES)
def test_files_weigh_more_than_load_and_load_more_than_room(candidates: list[Candidate], size: int) -> None:
    by_name = {each.name: each for each in candidates}
    best = by_name.get(choose(candidates, size) or "")
    if best is None:
        return
    able = [each for each in candidates if each.has_files or each.free >= size]
    assert best.has_files == any(each.has_files for each in able)
    alike = [each for each in able if each.has_files == best.has_files]
    assert best.loaded == min(each.loaded for each in alike)
    assert best.free == max(each.free for each in alike if each.loaded == best.loaded)


def test_who_has_the_files_needs_no_room_for_them() -> None:
    full = Candidate("full", has_files=True, loaded=9, free=0)
    empty = Candidate("empty", has_files=False, loaded=0, free=99)
    assert choose([empty, full], 100) == "full"
    assert choose([empty, full], 99, refused=["full"]) == "empty"
    assert choose([empty, full], 100, refused=iter(["full"])) is None
    assert choose([], 0) is None


@given(HELD, NAMES, st.sets(NAMES))
def test_each_wish_is_above_the_one_before(held: Placement | None, node: str, refused: set[str]) -> None:
    wish = placed(held, "m", node, 50.0, sorted(refused))
    assert (wish.model, wish.nodes, wish.placed_at, wish.refused) == ("m", (node,), 50.0, tuple(sorted(refused)))
    assert wish.generation == (held.generation if held else 0) + 1
    taken_back = withdrawn(wish, node, 60.0)
    assert (taken_back.nodes, taken_back.generation) == ((), wish.generation + 1)


@given(HELD.filter(bool), NAMES)
def test_a_withdrawal_takes_one_node_and_no_other(held: Placement, node: str) -> None:
    wish = withdrawn(held, node, 60.0)
    assert wish.nodes == tuple(name for name in held.nodes if name != node)
    assert wish.refused == (), "whoever wants it again may try everybody"
    assert msgspec.json.decode(msgspec.json.encode(wish), type=Placement) == wish
