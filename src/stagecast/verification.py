"""Verification: whether a model's files still are what they were when they came. All of them are read from the disk."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from stagecast.errors import Busy
from stagecast.manifest import Manifest
from stagecast.pieces import Piece, pieces_of
from stagecast.reading import Slice, digests
from stagecast.records import DAMAGED, Identity, Record, identity_of
from stagecast.store import Store


class Findings(NamedTuple):
    """What a model should be, and where it is not: files by their number in the manifest, and pieces of them.

    A file may be damaged without any piece of it: it has another length. ``identities`` are those of all files, as they
    were before they were read.
    """

    manifest: Manifest
    files: tuple[int, ...]
    pieces: tuple[Piece, ...]
    identities: tuple[Identity, ...]


def inspect(
    store: Store, name: str, *, checked: Callable[[int], None], found: Callable[[int], None], stop: threading.Event
) -> Findings:
    """Read a model's files and compare them, piece by piece, with the manifest that it came with.

    ``checked`` gets bytes that were read, ``found`` those of them that are right. What is damaged is not held to be
    good by anybody from then on, until it is repaired. A model whose files somebody has put there, and changed since,
    is read in as it is now: nobody knows what it should be.

    Raises:
        Busy: somebody changes the files while they are read.
        Interrupted: ``stop`` was set.
        InvalidManifest, NotEnoughSpace, Unknown: see `Store.manifest`.
    """
    store.path(name)
    manifest = store.expected(name)
    if manifest is None:
        manifest = store.manifest(name, checked, stop)
        found(manifest.size)
        return Findings(manifest, (), (), ())
    paths = [store.files.place(manifest, number) for number in range(len(manifest.files))]
    before = tuple(map(_known_by, paths))
    bad = []
    pieces = list(pieces_of(manifest))
    slices = [Slice(paths[piece.file], piece.offset, piece.length) for piece in pieces]
    for piece, digest in zip(pieces, digests(slices, stop, afresh=True), strict=True):
        checked(piece.length)
        if digest == manifest.files[piece.file].pieces[piece.index]:
            found(piece.length)
        else:
            bad.append(piece)
    sizes = zip(before, manifest.files, strict=True)
    wrong = {number for number, (identity, file) in enumerate(sizes) if identity.size != file.size}
    files = tuple(sorted(wrong | {piece.file for piece in bad}))
    with store.files.still():
        before = store.files.followed(Record(manifest, before)).identities
        if tuple(map(_known_by, paths)) != before:
            raise Busy(f"the content of {name}", "whoever writes it")
        if files:
            store.distrust(manifest, files, before)
        elif store.recorded(name) is None:
            store.vouch(manifest, before)
    return Findings(manifest, files, tuple(bad), before)


def _known_by(path: Path) -> Identity:
    try:
        return identity_of(path)
    except OSError:
        return DAMAGED
