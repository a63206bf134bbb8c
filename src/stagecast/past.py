"""The past: ended attempts, bounded by count and age, by pages and newest first. Pure: ``now`` is an argument.

Two orders meet here. Pages go by when an attempt ended, as its owner's clock told; job and attempt break ties, so every
entry has one place and is on exactly one page. The bounds go by when the end was written, as the server's clock told,
because that is what the stream itself goes by.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from math import isfinite
from typing import NamedTuple

import msgspec

from stagecast.messages import Record
from stagecast.operations import Fence, fence
from stagecast.settings import Bounds

Key = tuple[str, int]
"""A job and the number of its attempt."""


class Place(NamedTuple):
    """Where an entry stands among the pages. As text, it is the cursor that clients send back."""

    ended: float
    job: str
    attempt: int

    def __str__(self) -> str:
        """Return the cursor."""
        return f"{self.ended!r}~{self.attempt}~{self.job}"


def parse_place(text: str) -> Place | None:
    """Return the place that a cursor says, or None if it is not one of ours."""
    ended, _, rest = text.partition("~")
    attempt, separator, job = rest.partition("~")
    try:
        place = Place(float(ended), job, int(attempt))
    except ValueError:
        return None
    return place if separator and isfinite(place.ended) else None


def place_before(moment: float) -> Place:
    """Return the place before which everything stands that ended before ``moment``, in seconds since 1970."""
    return Place(moment, "", -1)


class Sought(msgspec.Struct, frozen=True, kw_only=True):
    """Which entries are meant; what is empty does not matter."""

    kind: str = ""
    model: str = ""
    node: str = ""
    state: str = ""
    job: str = ""

    def fits(self, record: Record) -> bool:
        """Tell whether an entry is meant."""
        return (
            (not self.kind or record.kind == self.kind)
            and (not self.model or record.model == self.model)
            and (not self.node or record.node == self.node)
            and (not self.state or record.state == self.state)
            and (not self.job or record.job == self.job)
        )


class Page(NamedTuple):
    """Some entries, newest first, and the place that the next page goes on before, if there is one."""

    records: list[Record]
    following: Place | None


class Past:
    """Ended attempts within ``bounds``."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._entries: dict[Key, tuple[Record, float]] = {}
        self._places: list[Place] = []
        self._written: list[tuple[float, Key]] = []
        self._named: dict[str, list[tuple[Fence, Place]]] = {}
        """The places of what has an id or a job of this name, in the order of the attempts: clocks may differ."""

    def __contains__(self, key: Key) -> bool:
        return key in self._entries

    def get(self, key: Key) -> Record | None:
        """Return an entry, or None."""
        held = self._entries.get(key)
        return held[0] if held else None

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Record]:
        """Yield the entries in the order in which they were written."""
        return (self._entries[key][0] for _, key in self._written)

    def add(self, record: Record, written: float) -> list[Key]:
        """Take an end that was written at ``written``, in place of what is known of it; return what that drops."""
        key = key_of(record)
        self._drop(key)
        self._entries[key] = (record, written)
        insort(self._places, _place(record))
        insort(self._written, (written, key))
        for name in {record.id, record.job}:
            insort(self._named.setdefault(name, []), (fence(record), _place(record)))
        return self._drop_oldest(len(self._entries) - self._bounds.count)

    def expire(self, now: float) -> list[Key]:
        """Drop what was written too long before ``now``; return it."""
        return self._drop_oldest(bisect_left(self._written, (now - self._bounds.age, ("", 0))))

    def page(self, sought: Sought, limit: int, before: Place | None = None) -> Page:
        """Return at most ``limit`` entries that stand before a place, newest first."""
        end = len(self._places) if before is None else bisect_left(self._places, before)
        found: list[Record] = []
        for place in reversed(self._places[:end]):
            record, _ = self._entries[place.job, place.attempt]
            if sought.fits(record):
                if len(found) == limit:
                    return Page(found, _place(found[-1]))
                found.append(record)
        return Page(found, None)

    def find(self, operation: str) -> Record | None:
        """Return the latest end of an operation, by its id or its job, or None, without a look at any other."""
        places = self._named.get(operation)
        return self._entries[places[-1][1].job, places[-1][1].attempt][0] if places else None

    def _drop_oldest(self, count: int) -> list[Key]:
        dropped = [key for _, key in self._written[: max(0, count)]]
        for key in dropped:
            self._drop(key)
        return dropped

    def _drop(self, key: Key) -> None:
        held = self._entries.pop(key, None)
        if held is not None:
            record, written = held
            del self._places[bisect_left(self._places, _place(record))]
            del self._written[bisect_left(self._written, (written, key))]
            for name in {record.id, record.job}:
                places = self._named[name]
                del places[bisect_left(places, (fence(record), _place(record)))]
                if not places:
                    del self._named[name]


def key_of(record: Record) -> Key:
    """Return what tells one attempt from all others."""
    return (record.job, record.attempt)


def _place(record: Record) -> Place:
    return Place(record.updated_at, record.job, record.attempt)
