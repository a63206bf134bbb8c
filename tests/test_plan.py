from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagecast.plan import Place, Plan, Stock, measured, planned, sentence, together

sizes = st.integers(0, 10**12)


def a_plan(size: int = 100, present: int = 0, free: int = 1000, reserved: int = 0, rate: float | None = None) -> Plan:
    stock = Stock(present=present, disk_free=free, disk_reserved=reserved, disk_total=2000)
    return planned("w", size, stock, ["a", "b"], rate)


@given(sizes, sizes, sizes, sizes)
def test_what_is_there_and_what_moves_are_all_of_it(size: int, present: int, free: int, reserved: int) -> None:
    plan = a_plan(size, present, free, reserved)
    assert plan.present + plan.to_move == plan.bytes == size
    assert plan.present <= present
    assert plan.to_move >= 0
    assert plan.fits == (plan.to_move == 0 or plan.to_move + reserved <= free)


@pytest.mark.parametrize(
    ("size", "free", "reserved", "fits"), [(100, 100, 0, True), (101, 100, 0, False), (60, 100, 50, False)]
)
def test_it_fits_where_there_is_room_that_nobody_was_promised(size: int, free: int, reserved: int, fits: bool) -> None:
    assert a_plan(size, free=free, reserved=reserved).fits == fits


def test_what_is_there_needs_no_room_however_full_the_disk() -> None:
    plan = a_plan(100, present=100, free=0, reserved=50)
    assert (plan.fits, plan.to_move, plan.seconds) == (True, 0, 0.0)


def test_what_is_copied_takes_room_though_it_does_not_move() -> None:
    stock = Stock(present=90, to_copy=40, disk_free=50)
    plan = planned("w", 100, stock, ["a"], None)
    assert (plan.present, plan.to_move, plan.to_copy, plan.fits) == (90, 10, 40, True)
    assert "90 B are there already (40 B to copy)" in sentence(plan)
    assert not planned("w", 100, msgspec.structs.replace(stock, disk_free=49), ["a"], None).fits
    assert not planned("w", 90, msgspec.structs.replace(stock, disk_free=39), ["a"], None).fits, "nothing moves"
    old = msgspec.json.decode(b'{"present": 90, "disk_free": 10}', type=Stock)
    assert planned("w", 100, old, ["a"], None).fits, "the answer of a node that does not tell"


def test_a_time_is_told_only_where_a_rate_was_measured() -> None:
    assert a_plan(100, rate=None).seconds is msgspec.UNSET
    assert "seconds" not in msgspec.to_builtins(a_plan(100))
    assert a_plan(100, present=40, rate=8.0).seconds == 7.5


def test_a_rate_is_that_of_the_latest_stagings_that_moved_anything() -> None:
    assert measured([]) is None
    assert measured([(0, 5.0), (None, None), (10, 0.0)]) is None
    assert measured([(0, 9.0), (100, 1.0), (300, 1.0)]) == 200.0
    assert measured([(100, 1.0)] * 5 + [(10**9, 1.0)]) == 100.0, "what was long ago does not count"


def test_a_plan_reads_as_a_line() -> None:
    assert sentence(a_plan(100, present=40, reserved=30, rate=1.0)) == (
        "60 B to move from a, b, 40 B are there already; 1.0 kB free, 30 B of it reserved, about 1 min 0 s"
    )
    assert sentence(a_plan(100)) == "100 B to move from a, b; 1.0 kB free"
    assert sentence(a_plan(100, present=100, rate=1.0)) == "0 B to move, 100 B are there already; 1.0 kB free"


def one_disk(*nodes: tuple[int, int, Place], free: int = 100) -> list[tuple[bool, int, int]]:
    """Return whether each fits, what was taken before it and what is reserved; of (bytes to move, reserved, place)."""
    plans = [(a_plan(size, free=free, reserved=reserved), place) for size, reserved, place in nodes]
    return [(plan.fits, plan.disk_taken, plan.disk_reserved) for plan in together(plans)]


def test_of_two_on_one_disk_only_one_fits_where_there_is_room_for_one() -> None:
    one, two, far = Place("d:1", "d"), Place("d:2", "d"), Place("e:1", "e")
    assert one_disk((60, 0, one), (60, 0, two), (60, 0, far)) == [(True, 0, 0), (False, 60, 0), (True, 0, 0)]
    assert one_disk((50, 0, one), (50, 0, two)) == [(True, 0, 0), (True, 50, 0)]
    assert one_disk((0, 0, one), (100, 0, two)) == [(True, 0, 0), (True, 0, 0)]
    assert one_disk((101, 0, one), (60, 0, two)) == [(False, 0, 0), (True, 0, 0)], "what cannot come takes nothing"


def test_nodes_with_one_folder_need_the_room_once() -> None:
    one, two = Place("d:1", "d"), Place("d:2", "d")
    assert one_disk((60, 0, one), (60, 0, one), (40, 0, two)) == [(True, 0, 0), (True, 0, 0), (True, 60, 0)]
    under_way = Place("d:1", "d", own=60)
    seen = [(60, 60, one), (60, 0, under_way)]
    assert one_disk(*seen) == one_disk(*reversed(seen)) == [(True, 0, 0)] * 2, "what one of them brings, the other has"


def test_what_is_promised_already_is_not_taken_twice() -> None:
    under_way, two = Place("d:1", "d", own=60), Place("d:2", "d")
    assert one_disk((60, 0, under_way), (40, 60, two)) == [(True, 0, 0), (True, 0, 60)]
    assert one_disk((60, 0, under_way), (41, 60, two)) == [(True, 0, 0), (False, 0, 60)]
    assert one_disk((41, 60, two), (60, 0, under_way)) == [(False, 0, 60), (True, 0, 0)]


def test_nodes_that_do_not_say_where_they_are_stand_alone() -> None:
    assert one_disk((60, 0, Place("", "")), (60, 0, Place("", ""))) == [(True, 0, 0)] * 2


nodes_on_disks = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 5), st.integers(0, 1)), max_size=6)


@given(nodes_on_disks)
def test_all_that_are_said_to_fit_do(nodes: list[tuple[int, int, int]]) -> None:
    places = [Place(f"{disk}:{folder}", str(disk)) for _, folder, disk in nodes]
    found = together([(a_plan(size, free=100), place) for (size, _, _), place in zip(nodes, places, strict=True)])
    needed: dict[str, dict[str, int]] = {"0": {}, "1": {}}
    for plan, place in zip(found, places, strict=True):
        if plan.fits:
            needed[place.disk].setdefault(place.folder, plan.room)
    assert all(sum(folders.values()) <= 100 for folders in needed.values())
