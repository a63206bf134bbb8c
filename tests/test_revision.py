from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagecast.revision import STREAMS, Revision, first_of, identity_of, is_one_stream, parse

EARLIER, LATER = identity_of(1.7e9), identity_of(1.8e9)


@settings(deadline=None, derandomize=True)
@given(st.text("0123456789abcdef-", min_size=1), st.integers(0, 2**63 - 1))
def test_what_clients_send_back_is_what_they_were_given(identity: str, sequence: int) -> None:
    revision = Revision(identity, sequence)
    assert parse(str(revision)) == revision
    assert parse(f' "{revision}" ') == revision


@pytest.mark.parametrize("text", ["", "-", "5", "-5", "abc", "abc-", "abc-x", "abc-1.5", "abc-٣", "abc-" + "9" * 20])
def test_what_is_not_a_revision_is_none(text: str) -> None:
    assert parse(text) is None


@settings(deadline=None, derandomize=True)
@given(st.text())
def test_no_text_breaks_the_parser(text: str) -> None:
    found = parse(text)
    assert found is None or found.sequence >= 0


def test_a_revision_is_reached_by_the_same_or_a_later_sequence() -> None:
    assert Revision("a", 5).reached_by(Revision("a", 5))
    assert Revision("a", 5).reached_by(Revision("a", 6))
    assert not Revision("a", 5).reached_by(Revision("a", 4))


def test_a_revision_of_a_stream_that_is_gone_counts_as_reached() -> None:
    assert Revision("old", 500).reached_by(Revision("new", 1))
    assert Revision(EARLIER, 500).reached_by(Revision(LATER, 1))
    assert Revision("no identity of ours", 500).reached_by(Revision(EARLIER, 1))


def test_a_revision_of_a_stream_that_is_not_known_yet_does_not() -> None:
    assert not Revision(LATER, 1).reached_by(Revision(EARLIER, 500))


@settings(deadline=None, derandomize=True)
@given(st.floats(0, 4e9), st.floats(0, 4e9))
def test_identities_are_ordered_as_the_streams_were_made(one: float, other: float) -> None:
    ordered = sorted([one, other])
    assert [identity_of(each) for each in ordered] == sorted(map(identity_of, ordered))
    assert len(identity_of(one)) == len(identity_of(other)) == len(EARLIER)


def test_a_sequence_tells_of_which_stream_it_is() -> None:
    one, other = first_of(7), first_of(8)
    assert is_one_stream(one, one + 2**31)
    assert not is_one_stream(one, other)
    assert not is_one_stream(0, one), "nothing was heard of it yet"
    assert is_one_stream(0, 12), "a stream of before, or one in memory, begins with 1"
    assert first_of(STREAMS) < 2**52
