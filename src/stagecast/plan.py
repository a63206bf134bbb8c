"""A plan: what bringing a model to a node would take, before the first byte. Sizes in bytes, times in seconds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final

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
    ``disk_reserved`` is promised to transfers that have not ended; what has landed of them is no longer in either.
    """

    present: int = 0
    to_copy: int = 0
    disk_free: int
    disk_reserved: int = 0
    disk_total: int = 0


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What staging a model to one node would take. ``seconds`` is absent where nothing was measured.

    ``present`` and ``to_move`` are about moving, ``fits`` is about room: ``to_copy`` of the present bytes take it, too.
    """

    node: str
    bytes: int
    present: int
    to_move: int
    to_copy: int
    disk_free: int
    disk_reserved: int
    fits: bool
    holders: list[str]
    seconds: float | msgspec.UnsetType = msgspec.UNSET


def planned(node: str, size: int, stock: Stock, holders: Sequence[str], rate: float | None) -> Plan:
    """Return the plan for ``size`` bytes at ``rate`` bytes per second, or at one that nobody has measured."""
    present = min(stock.present, size)
    to_move, to_copy = size - present, min(stock.to_copy, present)
    room = to_move + to_copy
    return Plan(
        node=node, bytes=size, present=present, to_move=to_move, to_copy=to_copy, disk_free=stock.disk_free,
        disk_reserved=stock.disk_reserved, fits=room == 0 or room <= stock.disk_free - stock.disk_reserved,
        holders=list(holders), seconds=_seconds(to_move, rate),
    )  # fmt: skip


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
