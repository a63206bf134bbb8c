"""Urgency: who works next where not all can at once, and who gives way to it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from stagecast.messages import Record
from stagecast.operations import PRIORITIES, priority

Order = tuple[int, float, str]


class Decision(NamedTuple):
    """Ids of operations: those that may begin, the first one first, and those that are to give way."""

    begin: list[str]
    give_way: list[str]


def order(record: Record) -> Order:
    """Return what sorts operations: the more urgent first, then what was asked for earlier."""
    return (-PRIORITIES.index(priority(record)), record.started_at, record.id)


def decide(
    waiting: Mapping[str, Record], working: Mapping[str, Record], leaving: Collection[str], room: int
) -> Decision:
    """Return what follows where ``room`` operations may work at once, 0 for any number.

    ``leaving`` are those of the working ones that were told to give way and have not yet. One gives way for each that
    somebody waits for and that finds no room, the last in order first, and for each that is too many because there is
    less room than before. What somebody waits for gives way for want of room only.
    """
    queue = sorted(waiting, key=lambda name: order(waiting[name]))
    if not room:
        return Decision(queue, [])
    free = max(0, room - len(working))
    begin, left = queue[:free], queue[free:]
    excess = max(0, len(working) - room)
    urgent = [name for name in left if priority(waiting[name]) == "request"]
    last_first = sorted((name for name in working if name not in leaving), key=lambda name: order(working[name]))[::-1]
    yielding = [name for name in last_first if priority(working[name]) != "request"]
    wanted = max(0, excess - len(leaving)), max(0, excess + len(urgent) - len(leaving))
    return Decision(begin, list(dict.fromkeys([*last_first[: wanted[0]], *yielding[: wanted[1]]])))
