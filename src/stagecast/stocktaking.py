"""Stocktaking: what lies in a store, without a word on what anybody wants with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

import msgspec

from stagecast import footprint
from stagecast.disk import Space
from stagecast.errors import Unknown
from stagecast.eviction import Copy, Leftover
from stagecast.footprint import Key, Stored
from stagecast.gathering import Gathered, to_gather
from stagecast.manifest import Manifest
from stagecast.pieces import Piece, pieces_of
from stagecast.plan import Stock
from stagecast.publication import WORKSHOP
from stagecast.store import Store
from stagecast.workshop import leftovers


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """A revision of a model, of ``size`` bytes, that a node is asked about."""

    model: str
    digest: str
    size: int


class Found(NamedTuple):
    """What was found at ``now``, in seconds since 1970.

    ``reserved`` bytes of the space are promised, ``reserved_here`` of them to what is to land in this folder.
    """

    now: float
    space: Space
    reserved: int
    reserved_here: int
    copies: list[Copy]
    leftovers: list[Leftover]


def stock(
    store: Store, wanted: Wanted, manifest: Manifest | None = None, written: Callable[[Piece], int] | None = None
) -> Stock:
    """Return what of a revision is on this disk, and what room there is. Reads records, and no file of a model.

    What of it lies in other models or revisions is counted where its ``manifest`` is given; ``written`` tells the bytes
    of a piece that have arrived, if the caller knows better than the disk. What was promised to this model's own
    staging, which may be under way, is there for it.
    """
    own, promises, space = f"staging:{wanted.model}@{store.node}", store.promises(), store.space()
    mine = sum(each.left for each in promises if each.is_here and each.purpose == own)
    reserved = sum(each.left for each in promises) - mine
    lies = _lying(store, wanted, manifest, written)
    return Stock(
        present=lies.shared + lies.copied, to_copy=lies.copied, disk_free=space.free, disk_reserved=reserved,
        disk_own=mine, disk_total=space.total,
    )  # fmt: skip


def manifest_here(store: Store, wanted: Wanted) -> Manifest | None:
    """Return the manifest of a revision if this disk knows it: from a model that has it, or what has arrived of it."""
    record = store.files.record(wanted.digest)
    if record is not None:
        return record.manifest
    kept = store.arrived(wanted.model, wanted.digest)
    return kept[0] if kept else None


def found(store: Store, now: float) -> Found:
    """Return all models and leftovers, with what each takes; a file of several models counts for one: see `counted`."""
    promises, space, pinned = store.promises(), store.space(), set(store.marks.pinned())
    reserved, here = sum(each.left for each in promises), sum(each.left for each in promises if each.is_here)
    copies = [
        Copy(
            model=name, bytes=0, came_at=_came_at(store, name), used_at=store.marks.used_at(name),
            pinned=name in pinned,
        )
        for name in store.names()
    ]  # fmt: skip
    files = _own({copy.model: _files(store, copy.model) for copy in copies}, footprint.stored(store.models / WORKSHOP))
    copies = [copy if any(files[copy.model].values()) else _kept(copy) for copy in counted(copies, files)]
    return Found(now, space, reserved, here, copies, leftovers(store.models, now))


def counted(copies: Sequence[Copy], files: Mapping[str, Mapping[Key, int]]) -> list[Copy]:
    """Return the copies with their bytes, of which ``files`` has those of each model by what tells files apart.

    What several models have is freed only with the last of them. So it counts for the one that goes last: a pinned one,
    or else the one that was used last. Of all copies together every file counts once.
    """
    found, known = {}, set[Key]()
    order = sorted(copies, key=lambda each: (each.pinned, max(each.used_at, each.came_at), each.model), reverse=True)
    for copy in order:
        own = files[copy.model]
        found[copy.model] = msgspec.structs.replace(copy, bytes=sum(own[key] for key in own.keys() - known))
        known |= own.keys()
    return [found[copy.model] for copy in copies]


def _kept(copy: Copy) -> Copy:
    return msgspec.structs.replace(copy, keep="deleting it frees nothing: its files are elsewhere, too")


def _files(store: Store, name: str) -> dict[Key, Stored]:
    """Return a model's files; of one that is not known yet, with what has come of each for its size."""
    try:
        files = footprint.stored(store.path(name))
    except Unknown:
        return {}
    if store.recorded(name) is None:
        return {key: file._replace(size=file.taken) for key, file in files.items()}
    return files


def _own(files: Mapping[str, Mapping[Key, Stored]], workshop: Mapping[Key, Stored]) -> dict[str, dict[Key, int]]:
    """Return the bytes of each model's files that have no name beside those of all models and of what is no model yet.

    What has one is not freed even by the last of them.
    """
    names = Counter[Key]()
    for each in (*files.values(), workshop):
        names.update({key: file.names for key, file in each.items()})
    return {
        model: {key: file.size for key, file in own.items() if names[key] >= file.links}
        for model, own in files.items()
    }  # fmt: skip


def _came_at(store: Store, name: str) -> float:
    # Its last rename: a copy of old files keeps their times of modification.
    with suppress(Unknown, OSError):
        return store.path(name).stat().st_ctime
    return 0.0


def _lying(store: Store, wanted: Wanted, manifest: Manifest | None, written: Callable[[Piece], int] | None) -> Gathered:
    held = store.recorded(wanted.model)
    if held is not None and held.digest == wanted.digest:
        return Gathered(held.size, 0)
    kept = store.arrived(wanted.model, wanted.digest)
    arrived = kept[1] if kept else {}
    if manifest is None:
        return Gathered(sum(arrived.values()), 0)
    count = written or (lambda piece: arrived.get(piece, 0))
    found = to_gather(store, manifest, count)
    return Gathered(found.shared + sum(map(count, pieces_of(manifest))), found.copied)
