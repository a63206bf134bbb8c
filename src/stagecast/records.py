"""Records of the models that were hashed: the manifest, and by what each file is known again without reading it.

One JSON file per model, shared by all processes with the same data folder. A record that cannot be read, or whose
parts do not fit together, counts as none: the model is hashed again, and the record written anew.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Final

import msgspec

from stagecast.durable import make_folder, write_whole
from stagecast.errors import InvalidManifest
from stagecast.manifest import Manifest, check

_SUFFIX = ".json"


class Identity(msgspec.Struct, frozen=True, array_like=True):
    """By what a file's content is known again. The change time tells a copy that kept the modification time."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    def is_renamed(self, other: Identity) -> bool:
        """Tell whether only the change time differs, as where a name was made or deleted."""
        return self != other and self == msgspec.structs.replace(other, ctime_ns=self.ctime_ns)


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """A manifest and the identities of its files, in the same order; `DAMAGED` for one that is known to be wrong.

    ``is_published``: it came by a transfer, so whoever changed a file of it since has damaged it. ``original`` is the
    manifest that it should have, where the one that it has is of what was found later.
    """

    manifest: Manifest
    identities: tuple[Identity, ...]
    is_published: bool = False
    original: Manifest | None = None


DAMAGED: Final = Identity(-1, 0, 0, 0)
"""What no file is known by."""


def succeeding(known: Record | None, manifest: Manifest, identities: tuple[Identity, ...]) -> Record:
    """Return the record of what was found under a model's name, with what it should be where that is known."""
    if known is None:
        return Record(manifest, identities)
    original = known.original or (known.manifest if known.is_published else None)
    if original is not None and original.digest == manifest.digest:
        original = None
    return Record(manifest, identities, is_published=known.is_published, original=original)


def identity_of(path: Path) -> Identity:
    """Return the identity of the file at ``path``, links followed. Raises `OSError`."""
    return identity_from(path.stat())


def identity_from(found: os.stat_result) -> Identity:
    """Return the identity of a file of which this is known."""
    return Identity(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


class Records:
    """The records in ``folder``. Each look follows what other processes have written there."""

    def __init__(self, folder: Path) -> None:
        make_folder(folder)
        self._folder = folder
        self._guard = threading.Lock()
        self._seen: dict[str, tuple[Identity, Record | None]] = {}
        self._models_with: dict[str, dict[str, int]] = {}
        self._digests: dict[str, str] = {}

    def get(self, model: str) -> Record | None:
        """Return the record of a model, or None."""
        with self._guard:
            return self._load(model)

    def put(self, record: Record) -> None:
        """Write the record of its manifest's model, in place of an older one."""
        write_whole(self._file(record.manifest.model), msgspec.json.encode(record))

    def drop(self, model: str) -> None:
        """Delete the record of a model, if there is one."""
        self._file(model).unlink(missing_ok=True)

    def all(self) -> list[Record]:
        """Return every record, sorted by model."""
        with self._guard:
            names = sorted(path.name.removesuffix(_SUFFIX) for path in self._folder.glob(f"[!.]*{_SUFFIX}"))
            return [record for record in map(self._load, names) if record]

    def with_file(self, digest: str) -> Iterator[tuple[Record, int]]:
        """Yield records that list a file of that digest, and its number there: known ones first, then every one."""
        return chain(self._known_with(digest), self._every_with(digest))

    def with_manifest(self, digest: str) -> Record | None:
        """Return a record of the manifest with that digest, or None; the same object until it is written anew."""
        found = self._known_manifest(digest)
        # Only a digest that nobody has asked for yet takes a look at the folder.
        return found if found or not self.all() else self._known_manifest(digest)

    def _known_manifest(self, digest: str) -> Record | None:
        with self._guard:
            for model in [model for model, held in self._digests.items() if held == digest]:
                record = self._load(model)
                if record and self._digests[model] == digest:
                    return record
        return None

    def _known_with(self, digest: str) -> list[tuple[Record, int]]:
        with self._guard:
            # By its number: a model may have ten thousand files, and each of them is asked for.
            known = [(self._load(model), number) for model, number in sorted(self._models_with.get(digest, {}).items())]
            return [(record, number) for record, number in known if record and _lists(record, number, digest)]

    def _every_with(self, digest: str) -> Iterator[tuple[Record, int]]:
        # A generator, so that the folder is read only when the known records did not do.
        for record in self.all():
            for number in range(len(record.manifest.files)):
                if _lists(record, number, digest):
                    yield record, number

    def _file(self, model: str) -> Path:
        return self._folder / f"{model}{_SUFFIX}"

    def _load(self, model: str) -> Record | None:
        path = self._file(model)
        try:
            identity = identity_of(path)
            held = self._seen.get(model)
            if held is None or held[0] != identity:
                held = self._seen[model] = (identity, _decode(model, path.read_bytes()))
                self._index(model, held[1])
        except FileNotFoundError:
            self._seen.pop(model, None)
            return None
        return held[1]

    def _index(self, model: str, record: Record | None) -> None:
        if record is not None:
            # Made once: over ten thousand files it takes milliseconds.
            self._digests[model] = record.manifest.digest
            for number, file in enumerate(record.manifest.files):
                self._models_with.setdefault(file.digest, {})[model] = number


def _lists(record: Record, number: int, digest: str) -> bool:
    files = record.manifest.files
    return number < len(files) and files[number].digest == digest


def _decode(model: str, data: bytes) -> Record | None:
    try:
        record = msgspec.json.decode(data, type=Record)
        check(record.manifest)
        if record.original:
            check(record.original)
    except (msgspec.DecodeError, InvalidManifest):
        return None
    fits = record.manifest.model == model and len(record.identities) == len(record.manifest.files)
    return record if fits else None
