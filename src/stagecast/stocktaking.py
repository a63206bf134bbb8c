"""Stocktaking: what lies in a store, without a word on what anybody wants with it."""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

import msgspec

from stagecast.disk import Space
from stagecast.errors import Unknown
from stagecast.eviction import Copy, Leftover
from stagecast.plan import Stock
from stagecast.store import Store
from stagecast.workshop import bytes_of, leftovers


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """A revision of a model, of ``size`` bytes, that a node is asked about."""

    model: str
    digest: str
    size: int


class Found(NamedTuple):
    """What was found at ``now``, in seconds since 1970. ``reserved`` bytes of the space are promised."""

    now: float
    space: Space
    reserved: int
    copies: list[Copy]
    leftovers: list[Leftover]


def stock(store: Store, wanted: Wanted) -> Stock:
    """Return what of a revision is on this disk, and what room there is. Reads records, and no file of a model.

    What was promised to this model's own staging, which may be under way, is there for it.
    """
    reserved, space = _reserved(store, besides=f"staging:{wanted.model}@{store.node}"), store.space()
    return Stock(present=_present(store, wanted), disk_free=space.free, disk_reserved=reserved, disk_total=space.total)


def found(store: Store, now: float) -> Found:
    """Return all models and leftovers, with what each takes."""
    reserved, space, pinned = _reserved(store), store.space(), set(store.marks.pinned())
    copies = [
        Copy(
            model=name, bytes=_size(store, name), came_at=_came_at(store, name), used_at=store.marks.used_at(name),
            pinned=name in pinned,
        )
        for name in store.names()
    ]  # fmt: skip
    return Found(now, space, reserved, copies, leftovers(store.models, now))


def _reserved(store: Store, besides: str = "") -> int:
    return sum(promise.left for promise in store.promises() if promise.purpose != besides)


def _size(store: Store, name: str) -> int:
    held = store.recorded(name)
    try:
        return held.size if held is not None else bytes_of(store.path(name))
    except Unknown:
        return 0


def _came_at(store: Store, name: str) -> float:
    # Its last rename: a copy of old files keeps their times of modification.
    with suppress(Unknown, OSError):
        return store.path(name).stat().st_ctime
    return 0.0


def _present(store: Store, wanted: Wanted) -> int:
    held = store.recorded(wanted.model)
    if held is not None and held.digest == wanted.digest:
        return held.size
    return sum(
        partial.bytes_done
        for partial in store.partials()
        if partial.name == wanted.model and partial.digest == wanted.digest
    )
