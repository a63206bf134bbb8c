"""``/api/limits``: what the cluster and its nodes may use, the same on every replica and at work at once."""

from __future__ import annotations

from contextlib import suppress
from math import isfinite
from typing import Final

import msgspec
from litestar import Controller, get, put
from litestar.di import NamedDependency
from litestar.params import JSONBody

from stagecast import limits, subjects
from stagecast.errors import AppendConflict, BadInput, Unknown
from stagecast.frontend.replica import Replica
from stagecast.messages import Limits, NodeLimits
from stagecast.quantities import MOST_RATE, parse_rate

_SEEN_WITHIN: Final = 2.0
MOST_AT_ONCE: Final = 10_000
"""Models that a node can be told to stage at a time; a limit beyond it is a slip."""
Rate = int | str
"""Bytes per second, or a rate like ``50MB/s``; 0 for no limit."""


class NodeChange(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What is to be said of one node; what is absent stays. 0 takes a limit away."""

    rate: Rate | msgspec.UnsetType = msgspec.UNSET
    stagings_at_once: int | msgspec.UnsetType = msgspec.UNSET


class LimitsChange(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What is to be said; what is absent, and each node that is not named, stays as it is. 0 takes a limit away."""

    rate: Rate | msgspec.UnsetType = msgspec.UNSET
    nodes: dict[str, NodeChange] = {}


class NodeLimit(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What was said of a node, and while it moves bytes what it may use of the cluster's rate; absent: no limit."""

    node: str
    rate: int = 0
    stagings_at_once: int = 0
    moving: bool = False
    share: int = 0


class Limited(msgspec.Struct, kw_only=True):
    """``GET /api/limits``. Rates in bytes per second; 0 is none. ``nodes``: who has a limit, or moves bytes now."""

    rate: int
    nodes: list[NodeLimit]
    generation: int
    revision: str


class LimitsApi(Controller):
    """What may be used."""

    path = "/api/limits"
    tags = ["limits"]  # noqa: RUF012  # litestar's own form

    @get("/", summary="The rate and concurrency limits, and what of it each node may use now")
    async def show(self, replica: NamedDependency[Replica]) -> Limited:
        """Return the limits as every replica shows them at this revision."""
        return _shown(replica)

    @put("/", summary="Change limits; transfers that run go by them within a second")
    async def change(self, replica: NamedDependency[Replica], data: JSONBody[LimitsChange]) -> Limited:
        """Change what is named, leave the rest, and return all of it."""
        known = [name for name, node in replica.fold.nodes.items() if not node.left]
        for name in data.nodes:
            if name not in known and name not in replica.fold.limits.nodes:
                raise Unknown("node", name, known)
        await _write(replica, data)
        return _shown(replica)


async def _write(replica: Replica, data: LimitsChange) -> None:
    """Write what a change makes of the limits; of two at once, the second on top of the first."""
    tracker = replica.tracker
    while True:
        entry = await tracker.bus.log.last(subjects.LIMITS)
        held = msgspec.json.decode(entry.payload, type=Limits) if entry else Limits()
        wanted = _changed(held, data, tracker.now())
        if wanted == held:
            return
        with suppress(AppendConflict):
            expected = entry.sequence if entry else 0
            revision = await tracker.say(subjects.LIMITS, msgspec.json.encode(wanted), expected=expected)
            await tracker.reached(revision, _SEEN_WITHIN)
            return


def _changed(held: Limits, data: LimitsChange, now: float) -> Limits:
    nodes = {}
    for name, change in data.nodes.items():
        before = held.nodes.get(name, NodeLimits())
        rate, at_once = change.rate, change.stagings_at_once
        nodes[name] = NodeLimits(
            rate=before.rate if rate is msgspec.UNSET else _rate(rate),
            stagings_at_once=before.stagings_at_once if at_once is msgspec.UNSET else _count(at_once, MOST_AT_ONCE),
        )
    return limits.changed(held, now, None if data.rate is msgspec.UNSET else _rate(data.rate), nodes)


def _rate(said: Rate | msgspec.UnsetType) -> int:
    if isinstance(said, str):
        return 0 if said == "0" else parse_rate(said)
    return _count(said, MOST_RATE)


def _count(said: int | msgspec.UnsetType, most: int) -> int:
    if not isinstance(said, int) or said < 0:
        raise BadInput(f"a limit is {said}; it cannot be negative, and 0 takes it away")
    if said > most:
        raise BadInput(f"a limit is too high; it can be {most:,} at most, and 0 takes it away")
    return said


def _shown(replica: Replica) -> Limited:
    fold = replica.fold
    granted = {limits.node_of(process): share for process, share in limits.cluster_shares(fold).items()}
    named = {name: fold.limits.nodes.get(name, NodeLimits()) for name in sorted(fold.limits.nodes.keys() | granted)}
    nodes = [
        NodeLimit(
            node=name, rate=said.rate, stagings_at_once=said.stagings_at_once, moving=name in granted,
            share=int(granted[name]) if name in granted and isfinite(granted[name]) else 0,
        )
        for name, said in named.items()
    ]  # fmt: skip
    return Limited(
        rate=fold.limits.rate, nodes=nodes, generation=fold.limits.generation, revision=str(replica.tracker.revision)
    )
