"""Urgency: who works next where not all can at once, and who gives way to it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

from stagecast import operations
from stagecast.messages import Record
from stagecast.operations import PRIORITIES, priority

Order = tuple[float, int, str]
Standing = tuple[int, float, str]

STEP: Final = 600.0
"""Seconds of waiting that are worth one step of priority."""


class Decision(NamedTuple):
    """Ids of operations: those that may begin, the first one first, and those that are to give way."""

    begin: list[str]
    give_way: list[str]


def order(record: Record) -> Order:
    """Return what sorts those that wait: by the moment from which a request that is made then is no more urgent.

    So each step of priority is worth `STEP` seconds of waiting, and nothing waits for ever behind what keeps coming.
    """
    return ((record.queued_at or record.started_at) + _patience(record), _steps(record), record.id)


def standing(record: Record) -> Standing:
    """Return what sorts those at work: who gives way first comes last."""
    return (0 if has_right_of_way(record) else _steps(record), record.started_at, record.id)


def has_right_of_way(record: Record) -> bool:
    """Tell whether no request makes an operation at work give way: one waits for it, or it had waited for so long."""
    return operations.waited(record) >= _patience(record)


def _patience(record: Record) -> float:
    return STEP * _steps(record)


def _steps(record: Record) -> int:
    """Return by how many steps an operation is less urgent than what a request waits for."""
    return len(PRIORITIES) - 1 - PRIORITIES.index(priority(record))


def decide(
    waiting: Mapping[str, Record], working: Mapping[str, Record], leaving: Collection[str], room: int
) -> Decision:
    """Return what follows where ``room`` operations may work at once, 0 for any number.

    ``leaving`` are those of the working ones that were told to give way and have not yet. One gives way for each that
    somebody waits for and that finds no room, the last in order first, and for each that is too many because there is
    less room than before. What somebody waits for gives way for want of room only, and so does what has waited for as
    long as its priority makes it.
    """
    queue = sorted(waiting, key=lambda name: order(waiting[name]))
    if not room:
        return Decision(queue, [])
    free = max(0, room - len(working))
    begin, left = queue[:free], queue[free:]
    excess = max(0, len(working) - room)
    urgent = [name for name in left if priority(waiting[name]) == "request"]
    last_first = sorted((name for name in working if name not in leaving), key=lambda name: standing(working[name]))[
        ::-1
    ]
    yielding = [name for name in last_first if not has_right_of_way(working[name])]
    wanted = max(0, excess - len(leaving)), max(0, excess + len(urgent) - len(leaving))
    return Decision(begin, list(dict.fromkeys([*last_first[: wanted[0]], *yielding[: wanted[1]]])))
