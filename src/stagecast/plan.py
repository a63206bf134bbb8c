"""A plan: what bringing a model to a node would take, before the first byte. Sizes in bytes, times in seconds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final, NamedTuple

import msgspec

from stagecast.quantities import format_duration, format_size

SAMPLES: Final = 5
"""Stagings, the latest first, that a rate is taken from."""

WAIT_FOR_SPACE: Final = "wait_for_space"
"""The parameter of a staging that waits for room on a disk that has none now, instead of failing."""


class Stock(msgspec.Struct, frozen=True, kw_only=True):
    """What a node's own disk says about one revision of a model.

    ``present`` need not move: a model that lies there, what has arrived of it, and what other models and revisions on
    that disk have of it. Of that, ``to_copy`` takes room all the same: it is still to be copied. Of ``disk_free``,
    ``disk_reserved`` is promised to other transfers that have not ended, and ``disk_own`` to this very staging; what
    has landed of them is no longer in either.
    """

    present: int = 0
    to_copy: int = 0
    disk_free: int
    disk_reserved: int = 0
    disk_own: int = 0
    disk_total: int = 0


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What staging a model to one node would take. ``seconds`` is absent where nothing was measured.

    ``present`` and ``to_move`` are about moving, ``fits`` is about room: ``to_copy`` of the present bytes take it, too.
    ``disk_taken`` of the free bytes, beside the reserved ones, are for nodes on the same disk that stand before this
    one in the same plan: see `together`.
    """

    node: str
    bytes: int
    present: int
    to_move: int
    to_copy: int
    disk_free: int
    disk_reserved: int
    disk_taken: int = 0
    fits: bool
    holders: list[str]
    seconds: float | msgspec.UnsetType = msgspec.UNSET

    @property
    def room(self) -> int:
        """Bytes that have to be free for it."""
        return self.to_move + self.to_copy

    @property
    def has_room(self) -> bool:
        """Whether so much is free that nobody else has."""
        return self.room == 0 or self.room <= self.disk_free - self.disk_reserved - self.disk_taken


class Place(NamedTuple):
    """Where a plan would put the bytes: which folder, on which disk, and how many are promised to it there already.

    Empty names are of a node that does not say: it is taken to be alone on its disk.
    """

    folder: str
    disk: str
    own: int = 0


def planned(node: str, size: int, stock: Stock, holders: Sequence[str], rate: float | None) -> Plan:
    """Return the plan for ``size`` bytes at ``rate`` bytes per second, or at one that nobody has measured."""
    present = min(stock.present, size)
    to_move = size - present
    plan = Plan(
        node=node, bytes=size, present=present, to_move=to_move, to_copy=min(stock.to_copy, present),
        disk_free=stock.disk_free, disk_reserved=stock.disk_reserved, fits=True, holders=list(holders),
        seconds=_seconds(to_move, rate),
    )  # fmt: skip
    return msgspec.structs.replace(plan, fits=plan.has_room)


def together(plans: Sequence[tuple[Plan, Place]]) -> list[Plan]:
    """Return plans for one model that are carried out together, each judged by what those before it leave of its disk.

    Of one that does not fit nothing is taken. Nodes with one folder need the room once: one of them brings the model,
    for all. What is promised already to one that is under way is not taken a second time.
    """
    own, reserved = dict[str, int](), dict[str, int]()
    for plan, place in plans:
        own[place.folder] = max(place.own, own.get(place.folder, 0))
        reserved[place.folder] = min(plan.disk_reserved, reserved.get(place.folder, plan.disk_reserved))
    taken, before, found = dict[str, int](), dict[str, int](), list[Plan]()
    for plan, (folder, disk, _) in plans:
        if not folder:
            found.append(plan)
            continue
        is_first = folder not in before
        count = before.setdefault(folder, taken.get(disk, 0))
        judged = msgspec.structs.replace(plan, disk_reserved=reserved[folder], disk_taken=count)
        found.append(msgspec.structs.replace(judged, fits=judged.has_room))
        if is_first and judged.has_room:
            taken[disk] = count + max(0, plan.room - own[folder])
    return found


def measured(samples: Iterable[tuple[int | None, float | None]]) -> float | None:
    """Return bytes per second over the latest stagings that moved anything: (bytes, seconds), the latest first."""
    known = [(moved, took) for moved, took in islice(((m, t) for m, t in samples if m and t), SAMPLES)]
    moved, took = sum(moved for moved, _ in known), sum(took for _, took in known)
    return moved / took if took > 0 else None


def sentence(plan: Plan) -> str:
    """Return a plan as one line for people."""
    there = f", {format_size(plan.present)} are there already" if plan.present else ""
    there += f" ({format_size(plan.to_copy)} to copy)" if plan.to_copy else ""
    reserved = f", {format_size(plan.disk_reserved)} of it reserved" if plan.disk_reserved else ""
    about = f", about {format_duration(plan.seconds)}" if isinstance(plan.seconds, float) and plan.to_move else ""
    source = f" from {', '.join(plan.holders)}" if plan.to_move and plan.holders else ""
    return f"{format_size(plan.to_move)} to move{source}{there}; {format_size(plan.disk_free)} free{reserved}{about}"


def _seconds(count: int, rate: float | None) -> float | msgspec.UnsetType:
    if count == 0:
        return 0.0
    return round(count / rate, 1) if rate else msgspec.UNSET
