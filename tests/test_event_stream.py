"""Server-sent events, cut anywhere."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from stagecast.event_stream import EventParser, StreamEvent

TEXT = (
    ': beat\n\nevent: snapshot\nid: a-1\ndata: {"name":\ndata: "Grüße"}\n\nid: lost\n\n'
    "data:no space\r\nid: a-2\r\n\r\nretry: 5\nevent: operation\ndata\n\ndata: cut"
).encode()
EVENTS = [
    StreamEvent("snapshot", '{"name":\n"Grüße"}', "a-1"),
    StreamEvent("message", "no space", "a-2"),
    StreamEvent("operation", "", ""),
]


@given(st.lists(st.integers(0, len(TEXT)), max_size=8))
def test_wherever_it_is_cut_the_same_events_come(cuts: list[int]) -> None:
    parser = EventParser()
    places = [0, *sorted(cuts), len(TEXT)]
    chunks = [TEXT[start:stop] for start, stop in itertools.pairwise(places)]
    assert [event for chunk in chunks for event in parser.feed(chunk)] == EVENTS
