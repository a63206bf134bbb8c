from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagecast.errors import BadInput
from stagecast.pieces import (
    NEIGHBOURS,
    PENALTY_HALF_LIFE,
    PULLERS,
    Holder,
    Standing,
    at_least,
    choose_holder,
    choose_neighbours,
    decode_set,
    encode_numbers,
    encode_set,
    first,
    numbers,
    parse_content_range,
    parse_numbers,
    parse_range,
    pieces_between,
    pieces_of,
    rarest,
    runs,
    set_of,
)
from tests.sample import manifest_of

sizes = st.integers(0, 10**13)


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=4), st.integers(1, 70))
def test_pieces_cover_every_file_exactly_once(files: list[bytes], piece_size: int) -> None:
    manifest = manifest_of("m", {f"f{number}": content for number, content in enumerate(files)}, piece_size=piece_size)
    pieces = list(pieces_of(manifest))
    assert pieces == sorted(pieces)
    for number, content in enumerate(files):
        mine = [piece for piece in pieces if piece.file == number]
        assert [piece.index for piece in mine] == list(range(len(manifest.files[number].pieces)))
        assert b"".join(content[piece.offset : piece.offset + piece.length] for piece in mine) == content
        assert all(0 < piece.length <= piece_size for piece in mine)


@given(sizes, st.data())
def test_a_range_inside_the_file_is_itself(size: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, size))
    stop = data.draw(st.integers(start, size))
    if start < stop:
        assert parse_range(f"bytes={start}-{stop - 1}", size) == (start, stop)
        assert parse_content_range(f"bytes {start}-{stop - 1}/{size}") == (start, stop, size)
        assert parse_range(f"bytes={start}-", size) == (start, size)
        assert parse_range(f"bytes=-{size - start}", size) == (start, size)
        assert parse_range(f"Bytes={start}-{size * 2}", size) == (start, size)


@given(sizes, st.text("bytes=-0123456789, ", max_size=40) | st.text())
def test_any_range_is_ignored_refused_or_inside_the_file(size: int, text: str) -> None:
    try:
        found = parse_range(text, size)
    except BadInput:
        return
    assert found is None or 0 <= found[0] < found[1] <= size


@pytest.mark.parametrize(
    "text", ["", "bytes=-", "bytes=5-2", "lines=0-1", "bytes=0-1,3-4", "bytes=a-b", "bytes=" + "9" * 5000]
)
def test_ranges_that_a_server_may_ignore(text: str) -> None:
    assert parse_range(text, 10) is None


@pytest.mark.parametrize(("text", "size"), [("bytes=10-", 10), ("bytes=10-20", 10), ("bytes=-0", 10), ("bytes=0-0", 0)])
def test_ranges_that_hold_no_byte_are_refused(text: str, size: int) -> None:
    with pytest.raises(BadInput, match="holds no byte"):
        parse_range(text, size)


@pytest.mark.parametrize(
    "text",
    ["", "bytes */10", "bytes 0-9/*", "bytes 5-4/10", "bytes 0-10/10", "items 0-1/2", "bytes 0-1/2x", "bytes -1-1/2"],
)
def test_wrong_content_ranges_are_refused(text: str) -> None:
    with pytest.raises(BadInput):
        parse_content_range(text)


SETS = st.integers(0, 2**40 - 1)


@given(st.lists(SETS, max_size=6), SETS)
def test_the_rarest_are_those_in_the_fewest_sets(sets: list[int], pieces: int) -> None:
    copies = {number: sum(each >> number & 1 for each in sets) for number in numbers(pieces)}
    fewest = min(copies.values(), default=0)

    assert set(numbers(rarest(pieces, at_least(sets)))) == {number for number in copies if copies[number] == fewest}


@given(SETS, st.integers(0, 50))
def test_the_first_one_from_a_place_on_is_found_or_the_first_of_all(pieces: int, after: int) -> None:
    found = list(numbers(pieces))
    if not found:
        with pytest.raises(ValueError, match="no piece"):
            first(pieces, after)
    else:
        assert first(pieces, after) == next((number for number in found if number >= after), found[0])


@given(st.sets(st.integers(0, 99)), st.integers(0, 100))
def test_sets_cross_the_wire(members: set[int], count: int) -> None:
    pieces = set_of(number in members for number in range(count))

    assert set(numbers(pieces)) == {number for number in members if number < count}
    assert decode_set(encode_set(pieces, count), count) == pieces
    assert len(encode_set(pieces, count)) == -(-count // 8)


@given(st.sets(st.integers(0, 99), min_size=1))
def test_numbers_cross_the_wire_as_text(members: set[int]) -> None:
    ordered = sorted(members)

    assert parse_numbers(encode_numbers(ordered), 100) == ordered
    assert [number for first_, end in runs(ordered) for number in range(first_, end)] == ordered
    assert all(end not in members and first_ - 1 not in members for first_, end in runs(ordered))


def test_numbers_as_text_are_short_and_keep_their_order() -> None:
    assert encode_numbers([0, 1, 2, 7, 9, 10]) == "0-2,7,9-10"
    assert encode_numbers([5, 3, 4]) == "5,3-4"
    assert parse_numbers("5,3-4", 6) == [5, 3, 4]


@pytest.mark.parametrize("text", ["", ",", "1,", "-1", "1-", "3-1", "10", "0-10", "0-9,0", "1 ", "a", "9" * 5000])
def test_what_names_no_pieces_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="does not name pieces out of 10"):
        parse_numbers(text, 10)


@given(st.integers(1, 100), st.integers(1, 40), st.data())
def test_the_pieces_of_a_range_are_those_that_it_touches(size: int, piece_size: int, data: st.DataObject) -> None:
    manifest = manifest_of("m", {"a": bytes(size)}, piece_size=piece_size)
    start = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.integers(start + 1, size))

    expected = [each for each in pieces_of(manifest) if each.offset < stop and start < each.offset + each.length]
    assert list(pieces_between(manifest, 0, start, stop)) == expected


def test_a_pull_deals_with_so_many_holders_only_and_keeps_those_it_knows() -> None:
    draw = random.Random(1).random
    whole = [Holder(f"whole-{number}", "") for number in range(3)]
    others = [Holder(f"other-{number}", "", is_whole=False) for number in range(500)]

    chosen = choose_neighbours([*whole, *others], (), draw, is_starving=True)
    assert chosen[:3] == whole
    assert len(chosen) == 3 + NEIGHBOURS
    known = {holder.name for holder in chosen}
    assert choose_neighbours([*whole, *others], known, draw, is_starving=True) == chosen
    assert choose_neighbours(others[:5], (), draw) == others[:5]
    few = [*whole, *others[: PULLERS - 1]]
    assert choose_neighbours(few, (), draw)[:3] == whole, "there is room for all of them"


@pytest.mark.parametrize("whole", [1, 3, 2 * NEIGHBOURS])
def test_of_a_crowd_so_many_deal_with_each_that_has_everything_and_others_each_time(whole: int) -> None:
    draw, crowd = random.Random(1).random, 1000
    holders = [Holder(f"whole-{number}", "") for number in range(whole)]
    others = [Holder(f"other-{number}", "", is_whole=False) for number in range(crowd - 1)]

    chosen = [choose_neighbours([*holders, *others], (), draw) for _ in range(crowd)]

    counts = [sum(holder in each for each in chosen) for holder in holders]
    assert PULLERS / 2 < sum(counts) / whole < PULLERS * 1.5
    assert {len([holder for holder in each if not holder.is_whole]) for each in chosen} == {NEIGHBOURS}


def test_the_least_busy_holder_is_chosen() -> None:
    standings = {"a": Standing().opened().opened(), "b": Standing().opened()}
    assert choose_holder(["a", "b"], standings, now=0) == "b"
    assert choose_holder(["a", "b", "new"], standings, now=0) == "new"
    assert choose_holder(["a"], standings, now=0) == "a"
    assert choose_holder([], standings, now=0) is None
    assert choose_holder(["b", "c"], {"b": Standing(), "c": Standing()}, now=0) == "b"
    assert choose_holder(["b", "c"], {"b": Standing().opened().closed(), "c": Standing()}, now=0) == "c"


@given(st.floats(1, 1e9), st.floats(2.1, 100))
def test_a_slower_holder_is_chosen_once_the_faster_one_has_as_many_streams_more(rate: float, factor: float) -> None:
    slow, streams = Standing().measured(rate / factor), 0
    standings = {"slow": slow, "fast": Standing().measured(rate)}
    while choose_holder(["slow", "fast"], standings, now=0) == "fast":
        streams += 1
        standings["fast"] = standings["fast"].opened()
    assert factor - 1 <= streams <= factor + 1


def test_one_that_was_never_measured_is_tried() -> None:
    assert choose_holder(["fast", "new"], {"fast": Standing(streams=1, rate=1e9)}, now=0) == "new"


def test_a_failure_costs_a_holder_its_share_for_a_while() -> None:
    standings = {"a": Standing().failed(now=100, weight=4), "b": Standing(streams=3)}
    assert choose_holder(["a", "b"], standings, now=100) == "b"
    assert choose_holder(["a", "b"], standings, now=100 + PENALTY_HALF_LIFE) == "a"


@given(st.lists(st.tuples(st.floats(0, 1e4), st.floats(0, 100)), max_size=8), st.floats(0, 1e4), st.floats(0, 1e4))
def test_penalties_add_up_and_only_decay(failures: list[tuple[float, float]], one: float, other: float) -> None:
    standing, last = Standing(), 0.0
    for after, weight in failures:
        last += after
        before = standing.cost(last)
        standing = standing.failed(last, weight)
        assert standing.cost(last) == pytest.approx(before + weight)
    early, late = sorted((one, other))
    assert standing.cost(last + early) >= standing.cost(last + late) >= 0


@given(st.integers(0, 9))
def test_streams_that_are_closed_cost_nothing(count: int) -> None:
    standing = Standing()
    for _ in range(count):
        standing = standing.opened()
    assert standing.cost(0) == count
    for _ in range(count):
        standing = standing.closed()
    assert standing == Standing(asked=count)
