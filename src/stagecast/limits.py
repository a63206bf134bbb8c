"""Limits: what of the cluster's rate each process may use, and how a change of them reads. Pure.

There is no server that hands out tokens. Every process folds the same log, sees the same processes move bytes, and
computes the same shares: at one revision their sum is never more than the limit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf

import msgspec

from stagecast.fold import Fold
from stagecast.messages import Limits, NodeLimits


def shares(total: float, caps: Mapping[str, float]) -> dict[str, float]:
    """Return equal parts of ``total`` for all who are named; what one may not use, by its cap, goes to the others."""
    granted: dict[str, float] = {}
    left = total
    for number, name in enumerate(sorted(caps, key=lambda name: (caps[name], name))):
        granted[name] = min(caps[name], max(0.0, left) / (len(caps) - number))
        left -= granted[name]
    return granted


def cluster_shares(fold: Fold) -> dict[str, float]:
    """Return what of the cluster's limit each process that moves bytes may use, in bytes per second; `inf`: any."""
    caps = _caps(fold, fold.moving())
    return shares(fold.limits.rate, caps) if fold.limits.rate else caps


def allowed(fold: Fold, process: str, own: int) -> float:
    """Return the bytes per second that a process may move; 0 while nobody can know that it is about to.

    ``own`` is what it was started with, which stays an upper bound; 0 for any.
    """
    most = min(_rate(own), _rate(_of(fold.limits, process).rate))
    return min(most, cluster_shares(fold).get(process, 0.0)) if fold.limits.rate else most


def changed(held: Limits, now: float, rate: int | None, nodes: Mapping[str, NodeLimits | None]) -> Limits:
    """Return the limits with another ``rate``, unless None, and other ones of these nodes; None: none of a node."""
    kept = {name: limits for name, limits in held.nodes.items() if name not in nodes}
    named = {name: limits for name, limits in nodes.items() if limits is not None and limits != NodeLimits()}
    following = msgspec.structs.replace(
        held, rate=held.rate if rate is None else rate, nodes=dict(sorted((kept | named).items()))
    )
    if following == held:
        return held
    return msgspec.structs.replace(following, generation=held.generation + 1, changed_at=now)


def node_of(process: str) -> str:
    """Return the name of the node that a process speaks for: ``<name>/<token>``."""
    return process.rpartition("/")[0] or process


def _caps(fold: Fold, processes: Iterable[str]) -> dict[str, float]:
    return {process: min(_told(fold, process), _rate(_of(fold.limits, process).rate)) for process in processes}


def _told(fold: Fold, process: str) -> float:
    node = fold.nodes.get(node_of(process))
    # Of an earlier process of that name nobody knows what it was started with.
    return _rate(node.rate_limit) if node is not None and node.process == process else inf


def _of(limits: Limits, process: str) -> NodeLimits:
    return limits.nodes.get(node_of(process), NodeLimits())


def _rate(limit: int) -> float:
    return float(limit) if limit > 0 else inf
