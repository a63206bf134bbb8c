from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagecast.meter import RATE_WINDOW, Meter
from tests.peers import a_record


@dataclass
class Clock:
    """A clock that the test moves, and how often the meter woke somebody."""

    at: float = 0.0
    woken: list[float] = field(default_factory=list)

    def now(self) -> float:
        return self.at

    def wake(self) -> None:
        self.woken.append(self.at)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def meter(clock: Clock) -> Meter:
    return Meter(a_record(bytes_done=40, bytes_present=40), clock.now, clock.wake)


def test_bytes_that_move_are_done_and_those_that_are_found_were_there(meter: Meter) -> None:
    meter.advance(5)
    meter.find(7)
    assert meter._counted().items() >= {"bytes_done": 52, "bytes_present": 47}.items()


def test_it_wakes_once_for_whatever_comes_until_somebody_has_looked(meter: Meter, clock: Clock) -> None:
    for _ in range(10):
        meter.advance(1)
        meter.tell("note")
        meter.enter(1, "a")
    assert len(clock.woken) == 1
    meter.complete(1, "a")
    assert len(clock.woken) == 2, "a whole file is always told"


def test_reading_again_is_a_phase_that_the_next_byte_ends(meter: Meter) -> None:
    meter.check(20, 40)
    meter.check(10, 40)
    assert meter._counted().items() >= {"bytes_done": 40, "note": "30 B of 40 B checked"}.items()
    meter.advance(1)
    meter.advance(1)
    assert list(meter._turns) == [{"phase": "verifying"}, {"phase": "transferring"}]
    assert meter._counted()["note"] == ""


def test_where_nobody_knows_how_much_there_is_it_says_what_was_read(meter: Meter) -> None:
    meter.check(2_000_000, 0)
    assert meter._counted()["note"] == "2.0 MB checked"


def test_a_wait_lasts_from_its_first_word_until_the_next_byte(meter: Meter, clock: Clock) -> None:
    meter.wait("network", "then")
    clock.at = 3.0
    meter.wait("source", "then that")
    assert meter._waits == ("source", "then that", 0.0)
    assert clock.woken == []
    meter.advance(1)
    assert meter._waits is None
    clock.at = 4.0
    meter.wait("source")
    assert meter._waits is not None
    assert meter._waits.since == 4.0
    meter.check(1, 1)
    assert meter._waits is None


def test_a_wait_and_its_end_wake_nobody(meter: Meter, clock: Clock) -> None:
    for on in ("", "backend", "source", ""):
        meter.wait(on)  # type: ignore[arg-type]
    assert meter._waits is None
    assert clock.woken == []


def test_neither_what_was_there_nor_what_is_read_again_makes_a_rate(meter: Meter, clock: Clock) -> None:
    for second in range(1, 10):
        clock.at = float(second)
        meter.find(1000)
        meter.check(1000, 0)
        assert meter._rate(clock.at) is None


def test_the_rate_is_that_of_the_last_seconds(meter: Meter, clock: Clock) -> None:
    for second in range(1, 30):
        clock.at = float(second)
        meter.advance(1000 if second < 15 else 10)
        rate = meter._rate(clock.at)
    assert rate == pytest.approx(10.0)
    clock.at += 2 * RATE_WINDOW
    meter._rate(clock.at)
    clock.at += 1.0
    assert meter._rate(clock.at) is None, "nothing has moved"


def test_too_short_a_time_says_nothing_of_a_rate(meter: Meter, clock: Clock) -> None:
    clock.at = 0.1
    meter.advance(10**9)
    assert meter._rate(clock.at) is None


@given(st.lists(st.tuples(st.floats(0.01, 20), st.integers(0, 10**6)), min_size=1, max_size=40))
def test_no_rate_is_higher_than_what_ever_moved_in_the_shortest_time(steps: list[tuple[float, int]]) -> None:
    clock = Clock()
    meter = Meter(a_record(), clock.now, clock.wake)
    for pause, count in steps:
        clock.at += pause
        meter.advance(count)
        rate = meter._rate(clock.at)
        assert rate is None or 0 < rate <= sum(each for _, each in steps) / 0.2


def test_what_limits_it_is_what_most_of_the_latest_time_went_on(meter: Meter, clock: Clock) -> None:
    assert meter._limited_by(0.0) == ""
    meter.spend({"network": 4.0, "hash": 1.0})
    clock.at = 1.0
    assert meter._limited_by(1.0) == "network"
    meter.spend({"network": 4.0, "hash": 1.5, "limit": 3.0})
    assert meter._limited_by(2.0) == "network"
    assert meter._limited_by(0.9 + RATE_WINDOW) == "limit", "what is older than the window no longer counts"
    assert meter._limited_by(20.0) == "", "nothing has passed since"
    assert meter._counted()["spent"] == {"network": 4.0, "hash": 1.5, "limit": 3.0}
    assert clock.woken == [], "it is told with what is told anyway"
