"""Adoption: files that lie in the models folder become a model, by hashing what is new or has changed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

from blake3 import blake3

from stagecast.durable import opened
from stagecast.errors import Busy, Interrupted, InvalidManifest, Unknown
from stagecast.manifest import PIECE_SIZE, Manifest, ManifestFile, file_digest
from stagecast.records import Identity, Record, identity_of

_CHUNK: Final = 1024 * 1024
_THREADS: Final = min(4, os.cpu_count() or 1)
_TICK: Final = 0.02
"""Seconds within which two changes of a file can get the same time stamp (the kernel's tick is at most 10 ms)."""


class _Slice(NamedTuple):
    path: Path
    offset: int
    length: int


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
        found = {file.relative_to(path).as_posix(): identity_of(file) for file in _files_in(path)}
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

    ``advance`` is called in this thread, with bytes that were hashed.

    Raises:
        Busy: somebody changes the files while they are hashed.
        Interrupted: ``stop`` was set.
        InvalidManifest: there are no files, or they cannot be read.
        Unknown: the model is gone.
    """
    found = survey(model, path)
    if not found:
        raise InvalidManifest(model, "it has no files")
    files = _unchanged(found, known)
    changed = [name for name in found if name not in files]
    single = path.is_file()
    _wait_for_tick([found[name] for name in changed], stop)
    slices = [piece for name in changed for piece in _slices(path if single else path / name, found[name].size)]
    digests = iter(_hash_all(model, slices, advance, stop))
    for name in changed:
        size = found[name].size
        pieces = tuple(next(digests) for _ in range(0, size, PIECE_SIZE))
        files[name] = ManifestFile(path=name, size=size, digest=file_digest(pieces, size), pieces=pieces)
    if survey(model, path) != found:
        raise Busy(f"the content of {model}", "whoever writes it")
    manifest = Manifest(model=model, files=tuple(files[name] for name in found), single=single)
    return Record(manifest, tuple(found.values()))


def _files_in(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise error

    for top, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if name != ".git"]
        for name in names:
            path = Path(top, name)
            if path.is_file() and (not path.is_symlink() or os.access(path, os.R_OK)):
                yield path


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


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


def _slices(path: Path, size: int) -> Iterator[_Slice]:
    for offset in range(0, size, PIECE_SIZE):
        yield _Slice(path, offset, min(PIECE_SIZE, size - offset))


def _hash_all(model: str, slices: list[_Slice], advance: Callable[[int], None], stop: threading.Event) -> list[str]:
    executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="hash")
    digests = []
    try:
        for piece, digest in zip(slices, executor.map(lambda piece: _hash(model, piece, stop), slices), strict=True):
            digests.append(digest)
            advance(piece.length)
        return digests
    finally:
        executor.shutdown(cancel_futures=True)


def _hash(model: str, piece: _Slice, stop: threading.Event) -> str:
    hasher, buffer, done = blake3(), memoryview(bytearray(min(_CHUNK, piece.length))), 0
    try:
        with opened(piece.path, os.O_RDONLY) as descriptor:
            while done < piece.length:
                if stop.is_set():
                    raise Interrupted("cancel")
                count = os.preadv(descriptor, [buffer[: piece.length - done]], piece.offset + done)
                if count == 0:
                    raise Busy(f"the content of {model}", "whoever writes it")
                hasher.update(buffer[:count])
                done += count
    except OSError as error:
        raise InvalidManifest(model, f"{piece.path.name} cannot be read: {error.strerror}") from error
    return hasher.hexdigest()
