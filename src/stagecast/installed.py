"""What is installed already: the very files of a source, from an earlier installation, a copy, or a shared folder."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from stagecast.address import is_local, local_path
from stagecast.draft import Draft
from stagecast.errors import Interrupted, Unknown
from stagecast.gallery import Source, SourceFile
from stagecast.manifest import Manifest
from stagecast.store import Store

_CHUNK: Final = 1024 * 1024


def installed(
    source: Source, store: Store, entered: Callable[[int], None], stop: threading.Event,
    checked: Callable[[int], None] = lambda _: None,
) -> Manifest | None:  # fmt: skip
    """Return the manifest of the model that the source would bring, if it is here; None if anything has to move.

    An installation that was cut off while it published is brought to its end. Files are compared by SHA-256, which is
    made here where nobody has recorded it, and ``checked`` gets the bytes that were read for it; a file without a
    published one counts only if it is its own source.

    Raises:
        Busy: another process or thread installs this model.
        Interrupted: ``stop`` was set.
    """
    return _recovered(source, store) or _found(source, store, entered, stop, checked)


def _recovered(source: Source, store: Store) -> Manifest | None:
    if Draft(store.models, source.model).manifest is None:
        return None
    with Draft(store.models, source.model) as draft:
        manifest = draft.manifest
        if manifest is None or not store.was_published(draft.folder, manifest):
            return None
        is_this = draft.is_whole_of({file.path: (file.uri, file.sha256) for file in source.files})
        draft.publish(manifest, store.publish)
        return manifest if is_this else None


def _found(
    source: Source, store: Store, entered: Callable[[int], None], stop: threading.Event, checked: Callable[[int], None]
) -> Manifest | None:
    try:
        base = store.path(source.model)
    except Unknown:
        return None
    paths = [base if source.single else base / file.path for file in source.files]
    pairs = list(zip(paths, source.files, strict=True))
    if base.is_file() != source.single or not all(file.sha256 or _is_itself(path, file) for path, file in pairs):
        return None
    recorded = store.recorded(source.model)
    known = {file.path: file.sha256 for file in recorded.files} if recorded else {}
    for number, (path, file) in enumerate(pairs):
        entered(number)
        if file.sha256 and (known.get(file.path) or _sha256(path, file, stop, checked)) != file.sha256:
            return None
    return _with_sha256(recorded or store.manifest(source.model, checked, stop), source, store)


def _is_itself(path: Path, file: SourceFile) -> bool:
    try:
        return is_local(file.uri) and path.samefile(local_path(file.uri))
    except OSError:
        return False


def _sha256(path: Path, file: SourceFile, stop: threading.Event, checked: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as local:
            if file.size not in {None, os.fstat(local.fileno()).st_size}:
                return "of another size"
            while chunk := local.read(_CHUNK):
                if stop.is_set():
                    raise Interrupted("cancel")
                digest.update(chunk)
                checked(len(chunk))
    except OSError:
        return "unreadable"
    return digest.hexdigest()


def _with_sha256(manifest: Manifest, source: Source, store: Store) -> Manifest:
    """Record what was just made, so that the next one need not read the files."""
    published = {file.path: file.sha256 for file in source.files if file.sha256}
    files = tuple(
        msgspec.structs.replace(file, sha256=published.get(file.path, file.sha256)) for file in manifest.files
    )
    if files == manifest.files:
        return manifest
    manifest = msgspec.structs.replace(manifest, files=files)
    store.record(manifest)
    return manifest
