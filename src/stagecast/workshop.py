"""Leftovers: what lies in a workshop and is no whole model, what each takes on the disk, and how one is removed."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

from stagecast.draft import PREFIX as DRAFT
from stagecast.durable import Lock
from stagecast.errors import InvalidManifest
from stagecast.eviction import Leftover
from stagecast.footprint import taken
from stagecast.manifest import Manifest, decode
from stagecast.part_files import PREFIX as PARTIAL
from stagecast.pieces import Piece, pieces_of
from stagecast.publication import WORKSHOP, is_trash, put_back, throw_away
from stagecast.status import read_status

SETTLED: Final = 60.0
"""Seconds after which trash is nobody's: a deletion that somebody is at passes through it."""


def leftovers(models: Path, now: float) -> list[Leftover]:
    """Return all of them, by folder. ``now`` in seconds since 1970. Takes no lock, so it disturbs nobody."""
    found = (_leftover(path, now) for path in sorted((models / WORKSHOP).iterdir()))
    return [each for each in found if each is not None]


def arrived(folder: Path) -> tuple[Manifest, dict[Piece, int]] | None:
    """Return of which revision a partial's folder is, and the bytes it says are there of each piece; None: no telling.

    Takes no lock. What was put there and is not settled yet, its process alone knows.
    """
    try:
        manifest = decode((folder / "manifest.json").read_bytes())
    except (OSError, InvalidManifest):
        return None
    pieces = list(pieces_of(manifest))
    marks = read_status(folder / "status", pieces)
    return manifest, {piece: min(mark, piece.length) for mark, piece in zip(marks, pieces, strict=True)}


def remove(models: Path, leftover: Leftover) -> int:
    """Remove a leftover and return how many bytes of the disk that freed; 0 where somebody is at it, or it is gone.

    An older revision that stood aside for one that was about to be published goes back where it was.
    """
    folder = models / WORKSHOP / leftover.folder
    count = taken(folder)
    if leftover.kind == "trash":
        return count if throw_away(folder, models) else 0
    lock = Lock(folder / "lock")
    if not folder.exists() or not lock.take():
        return 0
    try:
        put_back(folder, models)
        return count if throw_away(folder, models) else 0
    finally:
        lock.release()


def _leftover(path: Path, now: float) -> Leftover | None:
    name = path.name
    if name.startswith(PARTIAL):
        model, digest = _identity(path)
        return Leftover(
            folder=name, kind="partial", model=model, digest=digest, bytes=taken(path), changed_at=_changed_at(path)
        )
    if name.startswith(DRAFT):
        model = name.removeprefix(DRAFT)
        return Leftover(folder=name, kind="draft", model=model, bytes=taken(path), changed_at=_changed_at(path))
    with suppress(OSError):
        if is_trash(path) and now - path.lstat().st_ctime > SETTLED:
            return Leftover(folder=name, kind="trash", bytes=taken(path))
    return None


def _changed_at(folder: Path) -> float:
    """Return when bytes arrived last, in seconds since 1970: what counts them is written then."""
    times = [0.0]
    for path in (folder, folder / "status", folder / "journal", folder / "lock"):
        with suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times)


def _identity(folder: Path) -> tuple[str, str]:
    """Return whose partial this is: model and digest, or nothing where nobody can tell any more."""
    try:
        manifest = decode((folder / "manifest.json").read_bytes())
    except (OSError, InvalidManifest):
        return "", ""
    return manifest.model, manifest.digest
