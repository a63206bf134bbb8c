from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagecast.transfer.ramp import FIRST, LONGEST_REST, MOST, WINDOW, Ramp


def climb(
    gives: Callable[[int, float], float], seconds: float, ramp: Ramp | None = None, start: float = 0.0
) -> list[Ramp]:
    """Run a ramp against a network that gives so many bytes per second to so many streams."""
    ramp = ramp or Ramp.start(start)
    received, now, steps = ramp.received, start, [ramp]
    while now < start + seconds:
        now += WINDOW
        received += int(gives(ramp.streams, now) * WINDOW)
        ramp = ramp.after(received, now)
        steps.append(ramp)
    return steps


def test_it_starts_small_and_adds_streams_while_the_rate_rises() -> None:
    numbers = [ramp.streams for ramp in climb(lambda streams, _: streams * 10e6, 3)]
    assert numbers[0] == FIRST
    assert numbers[-1] == MOST
    assert numbers == sorted(numbers)


@pytest.mark.parametrize("enough", [1, 2, 3, 5, 9])
def test_it_stays_near_the_number_beyond_which_nothing_is_gained(enough: int) -> None:
    steps = climb(lambda streams, _: min(streams, enough) * 100e6, 4)
    assert max(FIRST, enough * 0.6) <= steps[-1].kept <= max(FIRST, enough * 1.5)


def test_most_of_the_time_it_does_not_try_what_was_in_vain() -> None:
    steps = climb(lambda *_: 1e9, 300)
    assert sum(ramp.streams > FIRST for ramp in steps) < 0.03 * len(steps)
    assert steps[-1].rest == LONGEST_REST


def test_streams_that_make_it_slower_go_again() -> None:
    steps = climb(lambda streams, _: 1e9 / streams, 3)
    assert steps[-1].streams == FIRST


def test_a_network_that_gets_worse_for_each_stream_is_tried_anew_at_once() -> None:
    steps = climb(lambda streams, _: min(1e9, streams * 500e6), 3)
    later = climb(lambda streams, _: streams * 10e6, 3, steps[-1], start=10)
    assert later[-1].streams == MOST


def test_between_two_windows_nothing_changes() -> None:
    ramp = Ramp.start(0)
    assert ramp.after(10**9, WINDOW / 2) is ramp


def test_nobody_gives_anything_and_it_stays_small() -> None:
    assert {ramp.streams for ramp in climb(lambda *_: 0.0, 60)} <= {FIRST, FIRST + 1}


@given(st.lists(st.tuples(st.integers(0, 10**10), st.floats(0, 100)), max_size=60), st.integers(1, MOST))
def test_whatever_happens_it_keeps_within_its_bounds(steps: list[tuple[int, float]], most: int) -> None:
    ramp, received, now = Ramp.start(0, most=most), 0, 0.0
    for more, seconds in steps:
        received, now = received + more, now + seconds
        ramp = ramp.after(received, now)
        assert 1 <= ramp.streams <= most
        assert ramp.kept <= ramp.streams
