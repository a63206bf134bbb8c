"""Gathering: what a model lacks and this disk has already, in another model or in an older revision of this one.

A whole file is stored once: where the file system can share blocks (reflink: XFS, Btrfs) the copy costs nothing and is
independent; elsewhere a file that was published here gets a second name (hard link), for nobody of ours ever writes to
one in place. Files that people have put there are not linked, because they may. Single pieces are copied, and
verified as they are.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import threading
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from stagecast.copying import copied
from stagecast.draft import Draft
from stagecast.durable import opened
from stagecast.manifest import PIECE_SIZE, Manifest
from stagecast.partial import Partial
from stagecast.pieces import Piece, pieces_of
from stagecast.publication import WORKSHOP
from stagecast.reading import Slice
from stagecast.store import Store

_FICLONE: Final = 0x40049409


class Gathered(NamedTuple):
    """Bytes that a staging gets from this disk: those that are ``shared`` take no new room, those ``copied`` do."""

    shared: int
    copied: int


def to_gather(store: Store, manifest: Manifest, written: Callable[[Piece], int]) -> Gathered:
    """Return what `gather_files` and `gather_pieces` would get, given the bytes that are ``written`` of each piece.

    Reads records, and no file of a model.
    """
    pieces = list(pieces_of(manifest))
    begun = {piece.file for piece in pieces if written(piece)}
    shared = _sources(store, manifest).keys() - begun
    rest = [piece for piece in pieces if piece.file not in shared and not written(piece)]
    return Gathered(
        shared=sum(manifest.files[number].size for number in shared),
        copied=sum(piece.length for piece in _pieces(store, manifest, rest)),
    )


def gather_files(store: Store, arriving: Partial, found: Callable[[int], None]) -> None:
    """Put every file in its place that lies on this disk whole, and of which nothing has come; reads and moves nothing.

    ``found`` gets their bytes.

    Raises:
        NotEnoughSpace: no room even for the names.
        OSError: the disk failed.
    """
    files, sources = arriving.manifest.files, _sources(store, arriving.manifest)
    with store.files.keeping() if sources else contextlib.nullcontext():
        twins: dict[str, Path] = {}
        for number, source in sources.items():
            digest = files[number].digest
            if arriving.put(number, partial(_share, store, digest, source, twin=twins.get(digest))):
                twins[digest] = arriving.files.place(number)
                found(files[number].size)


def gather_published(store: Store, draft: Draft, path: str, uri: str, sha256: str) -> int:
    """Put a file of an installation in its place that was published here with this SHA-256; return its bytes, or 0.

    Only where it can be stored once, and nothing of it has come. Nothing is read or moved.

    Raises:
        OSError: the disk failed.
    """
    known = store.files.published_as(sha256, PIECE_SIZE)
    if known is None or path in draft.records:
        return 0
    with store.files.keeping():
        located = store.files.locate(known.digest)
        if located is None or not draft.put(path, partial(_share, store, known.digest, located)):
            return 0
    draft.note(path, uri, known)
    return known.size


def gather_pieces(store: Store, arriving: Partial, found: Callable[[int], None], stop: threading.Event) -> None:
    """Copy every missing piece that a file of this disk has, verifying it as it is copied; ``found`` gets its bytes.

    Raises:
        Interrupted: ``stop`` was set.
        NotEnoughSpace: the disk is full.
    """
    rest = [piece for piece in arriving.missing() if not arriving.written(piece)]
    for piece, source in _pieces(store, arriving.manifest, rest).items():
        # A source that is gone, or was changed, is no source: then the piece comes from a holder.
        with contextlib.suppress(FileNotFoundError):
            if arriving.copy(piece, partial(copied, source, at=piece.offset, stop=stop)):
                found(piece.length)


def _sources(store: Store, manifest: Manifest) -> dict[int, Path]:
    """Return the files that can be had whole without new room, by their number, and where they lie."""
    digests = {file.digest for file in manifest.files if file.size}
    lies = store.files.lying(digests, is_published=True)
    if _shares_blocks(store.models):
        device = store.models.stat().st_dev
        lies |= {digest: path for digest, path in store.files.lying(digests).items() if _is_on(device, path)}
    return {number: lies[file.digest] for number, file in enumerate(manifest.files) if file.digest in lies}


def _pieces(store: Store, manifest: Manifest, rest: Collection[Piece]) -> dict[Piece, Slice]:
    """Return which of these pieces lie on this disk, in their order, and where."""
    digests = {piece: manifest.files[piece.file].pieces[piece.index] for piece in rest}
    lies = store.files.pieces(set(digests.values())) if digests else {}
    found = ((piece, lies.get(digest)) for piece, digest in digests.items())
    return {piece: source for piece, source in found if source is not None and source.length == piece.length}


def _is_on(device: int, path: Path) -> bool:
    with contextlib.suppress(OSError):
        return path.stat().st_dev == device
    return False


def _shares_blocks(models: Path) -> bool:
    """Tell whether two files here can share blocks, tried with two that are empty: a full disk can do that as well."""
    workshop = models / WORKSHOP
    with contextlib.suppress(OSError):
        with tempfile.TemporaryFile(dir=workshop) as origin, tempfile.TemporaryFile(dir=workshop) as copy:
            fcntl.ioctl(copy, _FICLONE, origin.fileno())
        return True
    return False


def _share(store: Store, digest: str, source: Path, target: Path, twin: Path | None = None) -> bool:
    if not _clone(source, target):
        return _link(twin, target) if twin else store.files.link(digest, target)
    # Nothing of it is read: whoever wrote to the source until now may have changed what was shared.
    if store.files.locate(digest) != source:
        target.unlink()
        return False
    return True


def _link(twin: Path, target: Path) -> bool:
    # What it is a name of got a new time by that, and is known again only when the names are all made.
    with contextlib.suppress(OSError):
        os.link(twin, target)
        return True
    return False


def _clone(source: Path, target: Path) -> bool:
    try:
        with opened(source, os.O_RDONLY) as origin, opened(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as copy:
            fcntl.ioctl(copy, _FICLONE, origin)
    except OSError:
        target.unlink(missing_ok=True)
        return False
    return True
