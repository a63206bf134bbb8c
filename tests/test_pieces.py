from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagecast.errors import BadInput
from stagecast.pieces import (
    PENALTY_HALF_LIFE,
    Piece,
    Standing,
    choose_holder,
    choose_piece,
    parse_content_range,
    parse_range,
    pieces_of,
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


def test_the_next_piece_is_the_first_that_nobody_has() -> None:
    pieces = [Piece(0, index, index * 4, 4) for index in range(3)]
    assert choose_piece(pieces, set()) == pieces[0]
    assert choose_piece(pieces, {pieces[0], pieces[1]}) == pieces[2]
    assert choose_piece(pieces, set(pieces)) is None
    assert choose_piece([], set()) is None


def test_the_least_busy_holder_is_chosen_and_excluded_ones_are_not() -> None:
    standings = {"a": Standing().opened().opened(), "b": Standing().opened()}
    assert choose_holder(["a", "b"], standings, set(), now=0) == "b"
    assert choose_holder(["a", "b", "new"], standings, set(), now=0) == "new"
    assert choose_holder(["a", "b"], standings, {"b"}, now=0) == "a"
    assert choose_holder(["a"], standings, {"a"}, now=0) is None
    assert choose_holder(["b", "c"], {"b": Standing(), "c": Standing()}, set(), now=0) == "b"


def test_a_failure_costs_a_holder_its_share_for_a_while() -> None:
    standings = {"a": Standing().failed(now=100, weight=4), "b": Standing(streams=3)}
    assert choose_holder(["a", "b"], standings, set(), now=100) == "b"
    assert choose_holder(["a", "b"], standings, set(), now=100 + PENALTY_HALF_LIFE) == "a"


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
    assert standing == Standing()
