"""Words on operations, as the invariants read them: on their own, so that they hold where production code is broken."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stagecast.fold import Slot
from stagecast.messages import Record

if TYPE_CHECKING:
    from tests.simulation.life import Life

ENDED: Final = frozenset({"succeeded", "failed", "cancelled"})
Rank = tuple[int, int, int, int]


def rank(record: Record) -> Rank:
    """Return what orders the records of an operation by law L6: era and attempt, whether it has ended, the number.

    The invariants' own words, so that they hold where the production code is broken.
    """
    return (record.era, record.attempt, (record.state in ENDED) + record.dismissed, record.seq)


def outranks(one: Record, other: Record) -> bool:
    """Tell whether ``one`` is a later word than ``other``."""
    return rank(one) > rank(other)


def is_ended(record: Record) -> bool:
    """Tell whether the record is an end."""
    return record.state in ENDED


def brief(record: Record) -> str:
    """Return a record in one line."""
    owner = f" by {record.owner}" if record.owner else ""
    note = f" ({record.error or record.note})" if record.error or record.note else ""
    moved = f"{record.bytes_done}/{record.bytes_total}"
    return f"{record.id} {record.attempt}.{record.seq} {record.state}{owner} {moved}{note}"


def better(held: Record | None, other: Record) -> Record:
    return other if held is None or outranks(other, held) else held


def folds(life: Life) -> list[dict[str, Slot]]:
    if life.tracker is None:
        return []
    return [life.tracker.fold.slots, life.tracker._incoming.slots]


def holds(slots: dict[str, Slot], record: Record) -> bool:
    slot = slots.get(record.id)
    return slot is not None and slot.record == record
