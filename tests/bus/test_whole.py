from __future__ import annotations

import random

import pytest

from stagecast.bus import CaughtUp, Heard
from stagecast.bus.whole import Whole
from stagecast.messages import Entry


def entry(sequence: int) -> Entry:
    return Entry(f"subject {sequence}", sequence, b"", 0.0)


def released(whole: Whole) -> list[Heard]:
    found: list[Heard] = list(whole.ready)
    whole.ready.clear()
    return found


def test_what_comes_without_a_gap_is_passed_on_at_once() -> None:
    whole = Whole(5, 5)
    assert released(whole) == [CaughtUp(5)]
    for sequence in (6, 7):
        whole.take(entry(sequence))
        assert released(whole) == [entry(sequence)]
        assert not whole.is_torn


def test_a_gap_holds_back_until_everything_has_come_that_was_there_when_it_was_seen() -> None:
    whole = Whole(5, 5)
    released(whole)
    whole.take(entry(7))
    assert whole.is_torn
    whole.bridge(8)
    assert (whole.is_torn, released(whole)) == (False, []), "6 was overwritten by 8, which has not come yet"
    whole.take(entry(8))
    assert released(whole) == [entry(7), entry(8)]


def test_whoever_starts_is_caught_up_only_with_a_picture_that_the_log_once_was() -> None:
    whole = Whole(0, 9)
    whole.take(entry(2))
    assert not whole.is_torn, "what was there at the start has not come yet"
    whole.take(entry(9))
    assert whole.is_torn
    whole.bridge(10)
    assert released(whole) == [], "what 10 speaks for now may have been said first below 9"
    whole.take(entry(10))
    assert released(whole) == [entry(2), entry(9), entry(10), CaughtUp(10)]


def test_a_gap_on_the_way_over_a_gap_is_asked_about_again() -> None:
    whole = Whole(5, 5)
    released(whole)
    whole.take(entry(7))
    whole.bridge(9)
    whole.take(entry(9))
    assert whole.is_torn
    whole.bridge(10)
    assert released(whole) == []
    whole.take(entry(10))
    assert released(whole) == [entry(7), entry(9), entry(10)]


@pytest.mark.parametrize("held", [0, 5])
def test_where_the_server_has_nothing_more_nothing_is_missing(held: int) -> None:
    """As in a history all of whose messages have become too old, or a log whose last message was deleted."""
    whole = Whole(held, 500)
    whole.settle()
    assert released(whole) == [CaughtUp(500)]


@pytest.mark.parametrize("seed", range(200))
def test_whatever_a_follower_shows_is_what_the_log_was_at_that_sequence(seed: int) -> None:
    """A writer goes on while a consumer lags behind it by any amount; overwritten messages are never delivered."""
    chance = random.Random(seed)
    writes = [chance.randrange(4) for _ in range(30)]
    pictures: list[dict[int, int]] = [{}]
    for sequence, subject in enumerate(writes, 1):
        pictures.append({**pictures[-1], subject: sequence})
    written = chance.randrange(10)
    whole, shown, at = Whole(0, written), {}, 0
    while at < len(writes) or whole.is_torn:
        written = min(len(writes), written + chance.choice((0, 1, 1, 2, 5)))
        standing = sorted(sequence for sequence in pictures[written].values() if sequence > at)
        if whole.is_torn:
            whole.bridge(written)
        elif standing:
            at = standing[0]
            whole.take(entry(at))
        entries = [each for each in released(whole) if isinstance(each, Entry)]
        shown |= {writes[each.sequence - 1]: each.sequence for each in entries}
        if entries:
            assert shown == pictures[entries[-1].sequence]
    assert shown == pictures[-1]
