from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagecast.errors import InvalidQuantity
from stagecast.quantities import as_shown, format_duration, format_size, format_time, parse_rate, parse_size, parse_time


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("100", 100),
        ("512KiB", 512 * 1024),
        ("2GiB", 2 * 1024**3),
        ("500MB", 500_000_000),
        ("1.5 kb", 1500),
        (" 3 tib ", 3 * 1024**4),
    ],
)
def test_sizes_are_read(text: str, count: int) -> None:
    assert parse_size(text) == count
    assert parse_rate(text.strip() + "/s") == count


@pytest.mark.parametrize("text", ["", "0", "-1", "MB", "10 apples", "1e9", "1,5GB", "0.1", "ten", "1GiB/h", "1 0"])
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InvalidQuantity, match="write it like"):
        parse_size(text)
    with pytest.raises(InvalidQuantity, match="/s"):
        parse_rate(text)


@pytest.mark.parametrize(
    "text", ["nan", "inf", "-inf", "-5MB", "0MB", "0.0", "1e30GB", "5Mb/min", "5 M B", "0x10", "٣x"]
)
def test_what_is_no_number_is_no_rate(text: str) -> None:
    for parse in (parse_size, parse_rate):
        with pytest.raises(InvalidQuantity, match="is not a size or rate; write it like"):
            parse(text)


@pytest.mark.parametrize("text", ["1001TB", "1" + "0" * 30 + "GB", "9" * 400, "1000000000000001"])
def test_what_nothing_moves_in_a_second_is_no_rate(text: str) -> None:
    with pytest.raises(InvalidQuantity, match=r"is more than anything holds or moves; write it like 20MB/s") as refused:
        parse_rate(text)
    assert len(refused.value.message) < 150


def test_the_largest_that_can_be_meant() -> None:
    assert (parse_rate("1000TB/s"), parse_size("1000000TB")) == (10**15, 10**18)
    with pytest.raises(InvalidQuantity, match="more than anything"):
        parse_size("1000001TB")


def test_a_size_is_not_a_rate() -> None:
    with pytest.raises(InvalidQuantity):
        parse_size("20MB/s")


@given(st.integers(1, 10**15))
def test_plain_numbers_are_bytes(count: int) -> None:
    assert parse_size(str(count)) == parse_size(f"{count}B") == parse_rate(f"{count}/s") == count


@given(st.integers(1, 10**15))
def test_a_formatted_size_reads_back_within_its_rounding(count: int) -> None:
    assert parse_size(format_size(count)) == pytest.approx(count, rel=0.051)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (90_900_000, "90.9 MB"), (40e9, "40.0 GB"), (3.2e15, "3200.0 TB")],
)
def test_sizes_are_written(count: float, text: str) -> None:
    assert format_size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (8, "8 s"), (185, "3 min 5 s"), (7800, "2 h 10 min"), (59.6, "1 min 0 s")]
)
def test_durations_are_written(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.integers(0, 4_102_444_800_000))
def test_times_read_back_to_the_millisecond(milliseconds: int) -> None:
    text = format_time(milliseconds / 1000)
    assert text.endswith("Z")
    assert round(parse_time(text) * 1000) == milliseconds


@given(st.floats(0, 4_102_444_800))
def test_as_shown_a_time_is_what_its_text_reads_back_as(seconds: float) -> None:
    assert as_shown(seconds) == parse_time(format_time(seconds))


def test_what_is_no_time_is_refused() -> None:
    with pytest.raises(ValueError, match="yesterday"):
        parse_time("yesterday")
