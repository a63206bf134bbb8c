"""What a replica answers about operations: each row encoded once per change, a read touches memory only (law L14)."""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

import msgspec

from stagecast import operations, rows
from stagecast.fold import Fold, Slot
from stagecast.messages import Record
from stagecast.mirror import Mirror
from stagecast.revision import Revision
from stagecast.rows import Row
from stagecast.tracker import Tracker

_BEGIN: Final = b'{"operations":['
_CALLS_KEPT: Final = 1000
"""Calls whose parts are kept encoded; those that have ended are among them."""

_encode = msgspec.json.Encoder().encode
_Place = tuple[float, str, bool]
"""Where a row stands in the list: its start, its id, and ours before a foreign one."""


class OperationList(msgspec.Struct, kw_only=True):
    """``GET /api/operations``."""

    operations: list[Row]
    revision: str
    degraded: bool


class View:
    """The list of operations as bytes, the same on every replica at the same revision (law L1).

    It keeps each listed row encoded and in its place, and encodes anew only what has changed since it was last asked.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._fold: Fold | None = None
        self._at = -1
        self._places: list[_Place] = []
        self._encoded: list[bytes] = []
        self._known: dict[tuple[str, bool], tuple[_Place, Slot | Mirror]] = {}
        self._bases: dict[str, tuple[Record, bytes]] = {}
        self._parts: dict[str, tuple[int, bytes]] = {}
        self._held: tuple[Fold, Revision, bool] | None = None
        self._body = b""

    @property
    def etag(self) -> str:
        """The entity tag of `body`: its revision, and whether it may be out of date."""
        return f'"{self._tracker.revision}{"-degraded" if self._tracker.is_degraded else ""}"'

    @property
    def body(self) -> bytes:
        """The list as one line of JSON."""
        fold, is_degraded = self._tracker.fold, self._tracker.is_degraded
        if self._held is None or self._held[0] is not fold or self._held[1:] != (fold.revision, is_degraded):
            self._refresh()
            self._body = self._joined(fold.revision, is_degraded=is_degraded)
            self._held = (fold, fold.revision, is_degraded)
        return self._body

    def changed(self, after: int) -> list[tuple[int, bytes]]:
        """Return what `stagecast.rows.changed` does, with each row as JSON."""
        self._refresh()
        return [(at, self._row(source)) for at, source in rows.news(self._tracker.fold, after)]

    def _joined(self, revision: Revision, *, is_degraded: bool) -> bytes:
        end = b'],"revision":%s,"degraded":%s}\n' % (_encode(str(revision)), _encode(is_degraded))
        if not self._encoded:
            return _BEGIN + end
        # One join copies the bytes once; its ends are made beforehand.
        parts = self._encoded.copy()
        parts[0] = _BEGIN + parts[0]
        parts[-1] += end
        return b",".join(parts)

    def _refresh(self) -> None:
        fold = self._tracker.fold
        # What ended and was forgotten since it was looked at last is nowhere said.
        if self._fold is not fold or self._at < fold.horizon.through:
            self._fold, self._at = fold, -1
            self._places, self._encoded, self._known = [], [], {}
            self._bases, self._parts = {}, {}
        if self._at != fold.revision.sequence:
            for slot in fold.slots_after(self._at):
                self._put(slot, is_listed=operations.is_listed(slot.record))
            for slot in rows.beside(fold, self._at):
                self._put(slot, is_listed=True)
            for mirror in fold.mirrors_after(self._at):
                self._put(mirror, is_listed=rows.is_shown(fold, mirror))
            self._at = fold.revision.sequence

    def _put(self, source: Slot | Mirror, *, is_listed: bool) -> None:
        place = _place(source)
        key = place[1:]
        held = self._known.get(key)
        if held is not None and (not is_listed or held[0] != place):
            at = bisect_left(self._places, held[0])
            del self._places[at], self._encoded[at], self._known[key]
            self._bases.pop(key[0], None)
            held = None
        if not is_listed:
            return
        at = bisect_left(self._places, place)
        if held is None:
            self._places.insert(at, place)
            self._encoded.insert(at, self._encode(source, is_kept=True))
        else:
            self._encoded[at] = self._encode(source, is_kept=True)
        self._known[key] = (place, source)

    def _row(self, source: Slot | Mirror) -> bytes:
        """Return a row's JSON; of those that are listed the view has it already."""
        held = self._known.get(_place(source)[1:])
        if held is None or held[1] is not source:
            return self._encode(source)
        return self._encoded[bisect_left(self._places, held[0])]

    def _encode(self, source: Slot | Mirror, *, is_kept: bool = False) -> bytes:
        if isinstance(source, Mirror):
            return _encode(rows.mirror_row(source))
        record = source.record
        parts = self._parts_of(record.call) if record.call else b""
        if not parts:
            return _encode(rows.row(record))
        # What changes one part changes all rows of the call: only what is new is encoded, the rest is put together.
        base = self._bases.get(record.id)
        if base is None or base[0] is not record:
            base = (record, _encode(rows.row(record)))
            if is_kept:  # a base goes when its row leaves the list: of another one it would stay for ever
                self._bases[record.id] = base
        return b'%s,"nodes":%s}' % (base[1][:-1], parts)

    def _parts_of(self, call: str) -> bytes:
        """Return the parts of a call as JSON; empty where it has only one."""
        fold = self._tracker.fold
        at, held = fold.changed_at(call), self._parts.get(call)
        if held is None or held[0] != at:
            if len(self._parts) > _CALLS_KEPT:
                self._parts.clear()
            parts = [rows.share(slot.record) for slot in fold.call(call)]
            held = self._parts[call] = (at, _encode(parts) if len(parts) > 1 else b"")
        return held[1]


def _place(source: Slot | Mirror) -> _Place:
    if isinstance(source, Slot):
        return rows.start(source.record), source.record.id, False
    return rows.mirror_start(source)[0], source.id, True
