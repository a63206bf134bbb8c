from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stagecast.transfer.pace import LEAST, Pace

WINDOW = 10.0


def complaints(steps: list[tuple[float, int]]) -> list[str]:
    """Return what is said after each (seconds waited, bytes that came then)."""
    pace, said = Pace(), []
    for seconds, count in steps:
        pace = pace.after(seconds, count, WINDOW)
        said.append(pace.complaint(WINDOW))
    return said


def test_a_byte_a_second_is_a_complaint_when_the_window_is_over() -> None:
    said = complaints([(1.0, 1)] * 10)
    assert said[:9] == [""] * 9
    assert said[9] == "sent only 10 bytes within 10 s"


def test_silence_is_a_complaint_however_much_came_before() -> None:
    assert complaints([(0.1, 10**9), *[(1.0, 0)] * 10])[-1] == ""
    assert complaints([(0.1, 10**9), *[(1.0, 0)] * 11])[-1] == "sent no byte for 10 s"


def test_a_burst_does_not_pay_for_the_windows_after_it() -> None:
    said = complaints([(10.0, 10**9), *[(5.0, 1)] * 2])
    assert said == ["", "", "sent only 2 bytes within 10 s"]


@given(st.lists(st.floats(0.01, 3.0), max_size=60))
def test_who_gives_the_least_is_waited_for(waits: list[float]) -> None:
    assert not any(complaints([(wait, int(wait * LEAST) + 1) for wait in waits]))


@given(st.lists(st.tuples(st.floats(0.01, 3.0), st.integers(0, 100)), min_size=50))
def test_who_gives_hardly_anything_is_not(steps: list[tuple[float, int]]) -> None:
    total = sum(wait for wait, _ in steps)
    assert any(complaints(steps)) or total < 2 * WINDOW
