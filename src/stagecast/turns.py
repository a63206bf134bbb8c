"""Turns: what a queued operation waits for while somebody lives who will take it, said now and then. Pure.

Who is queued has no owner that could give a sign of life, so the judges do, seldom and for few at a time: all that is
queued costs the log no more than `PACE` messages a second, however much it is (law L14).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from heapq import nsmallest
from typing import Final

from stagecast import operations
from stagecast.fold import Fold, Slot
from stagecast.leases import responsible
from stagecast.messages import MODEL_KINDS, Kind, Record
from stagecast.urgency import order

SILENCE: Final = 5.0
"""Seconds after its last word at which a queued operation gets a sign of life."""
PACE: Final = 4.0
"""How many of them a second get one at most."""


def signs(
    fold: Fold, performed: frozenset[Kind], server_now: float, wall: float, span: float, is_alive: Callable[[str], bool]
) -> Iterator[tuple[Slot, Record]]:
    """Yield the slots of those queued operations that have been silent for longest, with the record that says why.

    ``server_now`` is the server's clock, or 0 where it is unknown; ``wall`` is what the records are dated with. It is
    called every ``span`` seconds. The caller writes them with a compare-and-set on the slot's sequence.
    """
    queued = [slot for slot in fold.live_slots() if slot.record.state == "queued"]
    due = [
        slot
        for slot in queued
        if server_now - slot.time >= SILENCE and _will_be_taken(fold, slot.record, performed, is_alive)
    ]
    if not due:
        return
    places = _places(queued)
    at_work = _at_work(fold)
    for slot in nsmallest(max(1, int(PACE * span)), due, key=lambda slot: slot.sequence):
        yield slot, operations.succeeding(slot.record, wall, note=_reason(slot.record, places, at_work))


def _will_be_taken(fold: Fold, record: Record, performed: frozenset[Kind], is_alive: Callable[[str], bool]) -> bool:
    if record.kind not in MODEL_KINDS:
        return record.kind in performed
    return not record.node or is_alive(responsible(fold, record))


def _places(queued: list[Slot]) -> dict[str, int]:
    """Return by operation how many of its kind, on its node, are queued before it."""
    lines: defaultdict[tuple[str, str], list[Record]] = defaultdict(list)
    for slot in queued:
        lines[slot.record.kind, slot.record.node].append(slot.record)
    return {record.id: place for line in lines.values() for place, record in enumerate(sorted(line, key=order))}


def _at_work(fold: Fold) -> dict[tuple[str, str], list[Record]]:
    """Return what somebody works on, by kind and node."""
    found: defaultdict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in fold.live():
        if record.owner and record.state in {"running", "stalled"}:
            found[record.kind, record.node].append(record)
    return found


def _reason(record: Record, places: dict[str, int], at_work: dict[tuple[str, str], list[Record]]) -> str:
    before = places[record.id]
    line = f"{before:,} before it" if before else "the next"
    others = at_work.get((record.kind, record.node), [])
    if not record.node:
        return f"{line}; {len(others):,} under way"
    here = [other for kind in sorted(MODEL_KINDS) for other in at_work.get((kind, record.node), [])]
    doing = f", which is at {min(other.id for other in here)}" if here else ""
    more = f" and {len(here) - 1:,} more" if len(here) > 1 else ""
    return f"waits for {record.node}{doing}{more}; {line}"
