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
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from stagecast.copying import copied
from stagecast.draft import Draft
from stagecast.durable import opened
from stagecast.manifest import PIECE_SIZE
from stagecast.partial import Partial
from stagecast.pieces import Piece
from stagecast.store import Store

_FICLONE: Final = 0x40049409


def gather_files(store: Store, arriving: Partial, found: Callable[[int], None]) -> None:
    """Put every file in its place that lies on this disk whole, and of which nothing has come; reads and moves nothing.

    ``found`` gets their bytes.

    Raises:
        NotEnoughSpace: no room even for the names.
        OSError: the disk failed.
    """
    files = arriving.manifest.files
    located = {number: store.files.locate(file.digest) for number, file in enumerate(files) if file.size}
    sources = {number: place for number, place in located.items() if place is not None}
    with store.files.keeping() if sources else contextlib.nullcontext():
        for number, source in sources.items():
            if arriving.put(number, partial(_share, store, files[number].digest, source)):
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
    wanted = {_digest_of(arriving, piece): piece for piece in arriving.missing() if not arriving.written(piece)}
    lies = store.files.pieces(wanted) if wanted else {}
    for piece in arriving.missing():
        source = lies.get(_digest_of(arriving, piece))
        if source is None or arriving.written(piece) or source.length != piece.length:
            continue
        # A source that is gone, or was changed, is no source: then the piece comes from a holder.
        with contextlib.suppress(FileNotFoundError):
            if arriving.copy(piece, partial(copied, source, at=piece.offset, stop=stop)):
                found(piece.length)


def _digest_of(arriving: Partial, piece: Piece) -> str:
    return arriving.manifest.files[piece.file].pieces[piece.index]


def _share(store: Store, digest: str, source: Path, target: Path) -> bool:
    if not _clone(source, target):
        return store.files.link(digest, target)
    # Nothing of it is read: whoever wrote to the source until now may have changed what was shared.
    if store.files.locate(digest) != source:
        target.unlink()
        return False
    return True


def _clone(source: Path, target: Path) -> bool:
    try:
        with opened(source, os.O_RDONLY) as origin, opened(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as copy:
            fcntl.ioctl(copy, _FICLONE, origin)
    except OSError:
        target.unlink(missing_ok=True)
        return False
    return True
