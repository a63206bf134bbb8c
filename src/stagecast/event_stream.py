"""Server-sent events, read: text cut anywhere goes in, events come out. Pure (WHATWG HTML, section 9.2)."""

from __future__ import annotations

import codecs
from typing import NamedTuple


class StreamEvent(NamedTuple):
    """One event. ``id`` is empty where the sender gave none."""

    event: str
    data: str
    id: str


class EventParser:
    """Keeps what has come of the event that is not whole yet."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._rest = ""
        self._begin()

    def feed(self, chunk: bytes) -> list[StreamEvent]:
        """Return the events that ``chunk`` completes."""
        lines = (self._rest + self._decoder.decode(chunk)).split("\n")
        self._rest = lines.pop()
        found = [self._line(line.removesuffix("\r")) for line in lines]
        return [event for event in found if event is not None]

    def _begin(self) -> None:
        self._event, self._id = "message", ""
        self._data: list[str] = []

    def _line(self, line: str) -> StreamEvent | None:
        if not line:
            return self._dispatch()
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            self._event = value
        elif field == "data":
            self._data.append(value)
        elif field == "id":
            self._id = value
        return None

    def _dispatch(self) -> StreamEvent | None:
        event = StreamEvent(self._event, "\n".join(self._data), self._id)
        whole = bool(self._data)
        self._begin()
        return event if whole else None
