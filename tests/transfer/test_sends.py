from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagecast.transfer.sends import AT_ONCE, FOR_NEED, LATELY, SMALL, Declined, Sending, Sends, full_streams

PIECE = 4 * SMALL


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def begin(sends: Sends, number: int = 0, *, wish: str = "yes", size: int = PIECE) -> Sending | None:
    try:
        return sends.begin("file", number * PIECE, number * PIECE + size, wish)
    except Declined as no:
        if no.status != 503:
            raise
        return None


def test_so_many_shared_pieces_are_sent_at_a_time_and_others_are_told() -> None:
    sends = Sends(Clock())
    sending = [begin(sends, number) for number in range(int(AT_ONCE) + 1)]
    assert [each is not None for each in sending] == [True] * int(AT_ONCE) + [False]

    assert sending[0] is not None
    sends.end(sending[0])
    assert begin(sends) is not None
    assert begin(sends) is None


def test_who_shares_nothing_and_who_wants_little_is_always_served() -> None:
    sends = Sends(Clock())
    while begin(sends) is not None:
        pass
    assert all(begin(sends, wish="") for _ in range(50))
    assert all(begin(sends, size=SMALL - 1) for _ in range(50))
    assert begin(sends) is None


def test_slow_receivers_do_not_keep_others_from_being_served() -> None:
    clock = Clock()
    sends = Sends(clock)
    for number, sent in enumerate((100, 100, 1000, 1000)):
        sending = begin(sends, number)
        assert sending is not None
        sends.count(sending, sent)
    clock.now = 1.0
    assert begin(sends, 4) is not None
    assert begin(sends, 5) is not None
    assert begin(sends, 6) is None


def test_the_first_copy_is_given_once_as_long_as_that_was_lately() -> None:
    clock = Clock()
    sends = Sends(clock)
    assert begin(sends, 1, wish="first") is not None
    with pytest.raises(Declined) as declined:
        sends.begin("file", PIECE, 2 * PIECE, "first")
    assert (declined.value.status, declined.value.code) == (409, "given")
    assert begin(sends, 2, wish="first") is not None
    assert begin(sends, 1) is not None, "who wants it all the same gets it"
    clock.now = LATELY
    assert begin(sends, 1, wish="first") is not None


def test_who_has_had_nothing_to_do_is_served_all_the_same_but_not_without_end() -> None:
    sends = Sends(Clock())
    while begin(sends) is not None:
        pass
    for number in range(int(FOR_NEED)):
        assert begin(sends, number) is None
        assert begin(sends, number, wish="need") is not None
    assert begin(sends, wish="need") is None


def test_who_has_enough_to_do_says_that_first() -> None:
    sends = Sends(Clock())
    while begin(sends, wish="yes") is not None:
        pass
    assert begin(sends, wish="first") is None


def test_what_was_sent_lately_is_told_for_a_while() -> None:
    clock = Clock()
    sends = Sends(clock)
    begin(sends, 1)
    begin(sends, 2, wish="")
    clock.now = LATELY / 2
    begin(sends, 3)
    assert sends.lately("file") == [(PIECE, 2 * PIECE), (3 * PIECE, 4 * PIECE)]
    assert sends.lately("another") == []
    clock.now = LATELY
    assert sends.lately("file") == [(3 * PIECE, 4 * PIECE)]


@given(st.lists(st.floats(0, 1e9), max_size=9))
def test_streams_count_as_full_ones_by_the_fastest(rates: list[float]) -> None:
    count = full_streams(rates)
    assert 0 <= count <= len(rates) + 1e-6
    assert count >= min(1, len(rates)) - 1e-6
    assert full_streams([5.0] * len(rates)) == len(rates)
