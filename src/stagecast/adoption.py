"""Adoption: files that lie in the models folder become a model, by hashing what is new or has changed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from stagecast.errors import Busy, InvalidManifest, Unknown
from stagecast.manifest import PIECE_SIZE, Manifest, ManifestFile, file_digest
from stagecast.reading import Slice, digests
from stagecast.records import Identity, Record, identity_from, identity_of, succeeding
from stagecast.weights import told_missing

_TICK: Final = 0.02
"""Seconds within which two changes of a file can get the same time stamp (the kernel's tick is at most 10 ms)."""


def survey(model: str, path: Path) -> dict[str, Identity]:
    """Return the identity of each of the model's files by its path in the manifest, sorted.

    A folder's files are all regular ones in it, those in ``.git`` excepted; links to readable files count as files,
    links to folders are not followed.

    Raises:
        InvalidManifest: a name that cannot be written in a manifest, or a folder that cannot be read.
        Unknown: the model is gone.
    """
    try:
        if path.is_file():
            return {model: identity_of(path)}
        found = dict(_files_in(path))
    except FileNotFoundError:
        raise Unknown("model", model) from None
    except OSError as error:
        raise InvalidManifest(model, f"{error.filename} cannot be read: {error.strerror}") from error
    if not found and not path.is_dir():
        raise Unknown("model", model)
    for name in found:
        if not _is_unicode(name):
            raise InvalidManifest(model, f"the file name {name!r} is not UTF-8; rename the file")
    return dict(sorted(found.items()))


def adopt(
    model: str,
    path: Path,
    known: Record | None,
    advance: Callable[[int], None],
    stop: threading.Event,
) -> Record:
    """Return the record of the model at ``path``; files that are as ``known`` knows them are not read.

    ``advance`` is called in this thread, with bytes that were hashed. Whether a file whose change time alone has moved
    meanwhile got another name, or was written to, is for the caller to tell.

    Raises:
        Busy: somebody changes the files while they are hashed.
        Interrupted: ``stop`` was set.
        InvalidManifest: there are no files, they cannot be read, or one is shorter than it says itself.
        Unknown: the model is gone.
    """
    found = survey(model, path)
    if not found:
        raise InvalidManifest(model, "it has no files")
    files = _unchanged(found, known)
    changed = [name for name in found if name not in files]
    single = path.is_file()
    if known is None or not known.is_published:
        check_whole(model, {name: path if single else path / name for name in changed})
    _wait_for_tick([found[name] for name in changed], stop)
    slices = [piece for name in changed for piece in _slices(path if single else path / name, found[name].size)]
    hashed = iter(_hash_all(model, slices, advance, stop))
    for name in changed:
        size = found[name].size
        pieces = tuple(next(hashed) for _ in range(0, size, PIECE_SIZE))
        files[name] = ManifestFile(path=name, size=size, digest=file_digest(pieces, size), pieces=pieces)
    if _has_other_content(found, survey(model, path)):
        raise Busy(f"the content of {model}", "whoever writes it")
    manifest = Manifest(model=model, files=tuple(files[name] for name in found), single=single)
    return succeeding(known, manifest, tuple(found.values()))


def check_whole(model: str, files: Mapping[str, Path]) -> None:
    """Raise `InvalidManifest` where one of the files, by its name, tells itself that it was cut off.

    A published model is known by its digests: what was cut off of that is found and repaired by a verify instead.
    """
    for name, path in files.items():
        try:
            missing = told_missing(path)
        except OSError as error:
            raise InvalidManifest(model, f"{name} cannot be read: {error.strerror}") from error
        if missing:
            raise InvalidManifest(model, f"{name} was cut off: {missing}; copy it again, or delete it")


def _files_in(folder: Path) -> Iterator[tuple[str, Identity]]:
    # Ten thousand files are looked at whenever a model is recorded: text, where path objects take ten times as long.
    left = [(os.fspath(folder), "")]
    while left:
        top, above = left.pop()
        with os.scandir(top) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if entry.name != ".git":
                        left.append((entry.path, f"{above}{entry.name}/"))
                elif entry.is_file(follow_symlinks=False) or _is_link_to_file(entry):
                    yield above + entry.name, identity_from(entry.stat())


def _is_link_to_file(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and Path(entry.path).is_file() and os.access(entry.path, os.R_OK)


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _has_other_content(before: dict[str, Identity], now: dict[str, Identity]) -> bool:
    return before.keys() != now.keys() or any(
        now[name] != identity and not now[name].is_renamed(identity) for name, identity in before.items()
    )


def _unchanged(found: dict[str, Identity], known: Record | None) -> dict[str, ManifestFile]:
    if known is None or known.manifest.piece_size != PIECE_SIZE:
        return {}
    pairs = zip(known.manifest.files, known.identities, strict=True)
    return {file.path: file for file, identity in pairs if found.get(file.path) == identity}


def _wait_for_tick(identities: list[Identity], stop: threading.Event) -> None:
    # A file written a moment ago could change again within the same tick, unseen by its time stamps.
    newest = max((identity.ctime_ns for identity in identities), default=0) / 1e9
    if 0 <= time.time() - newest < _TICK:
        stop.wait(_TICK)


def _slices(path: Path, size: int) -> Iterator[Slice]:
    for offset in range(0, size, PIECE_SIZE):
        yield Slice(path, offset, min(PIECE_SIZE, size - offset))


def _hash_all(model: str, slices: list[Slice], advance: Callable[[int], None], stop: threading.Event) -> list[str]:
    found = []
    for piece, digest in zip(slices, digests(slices, stop), strict=True):
        if isinstance(digest, OSError):
            raise InvalidManifest(model, f"{piece.path.name} cannot be read: {digest.strerror}") from digest
        if not digest:
            raise Busy(f"the content of {model}", "whoever writes it")
        found.append(digest)
        advance(piece.length)
    return found
