"""Which files of this disk are still as they were recorded, found by what they hold; and second names for them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from stagecast.manifest import Manifest, ManifestFile
from stagecast.reading import Slice
from stagecast.records import Identity, Record, Records, identity_of

_NAMES: Final = ".names"
"""The lock of who makes or takes away second names; no model can be called so."""


class KnownFiles:
    """The files under ``models`` that ``records`` tell of. ``put`` writes a record, ``alone`` is a lock by its name."""

    def __init__(
        self, models: Path, records: Records, put: Callable[[Record], None],
        alone: Callable[[str, threading.Event], AbstractContextManager[None]],
    ) -> None:  # fmt: skip
        self._models = models
        self._records = records
        self._put = put
        self._alone = alone
        self._still_for = 0
        """The thread that makes names, or has others not make any, just now."""

    def place(self, manifest: Manifest, number: int) -> Path:
        """Return where a file of a model lies, by its number in the manifest."""
        base = self._models / manifest.model
        return base if manifest.single else base / manifest.files[number].path

    def find(self, digest: str) -> tuple[Record, int] | None:
        """Return a record that has a file of that digest, and its number there; None if it is not here as recorded."""
        for record, number in self._records.with_file(digest):
            if self.is_known(record, number):
                return record, number
        return None

    def record(self, digest: str) -> Record | None:
        """Return a record by its manifest's digest; whether the files are as recorded, is to be looked at for each."""
        return self._records.with_manifest(digest)

    def locate(self, digest: str) -> Path | None:
        """Return the path of a file by its digest; None if it is not here, or not as recorded."""
        found = self.find(digest)
        return None if found is None else self.place(found[0].manifest, found[1])

    def lying(self, digests: Collection[str], *, is_published: bool = False) -> dict[str, Path]:
        """Return where files lie here as recorded, by their digest; if told, only those that were published here."""
        found: dict[str, Path] = {}
        for record in self._records.all():
            if is_published <= record.is_published:
                # From the end on: of two equal files of a model `find` takes the last, too.
                for number, file in reversed(list(enumerate(record.manifest.files))):
                    if file.digest in digests and file.digest not in found and self.is_known(record, number):
                        found[file.digest] = self.place(record.manifest, number)
        return found

    def published_as(self, sha256: str, piece_size: int) -> ManifestFile | None:
        """Return a file that was published here with that SHA-256, as its manifest lists it, if it is as it was."""
        for record in self._records.all() if sha256 else ():
            if record.is_published and record.manifest.piece_size == piece_size:
                for number, file in enumerate(record.manifest.files):
                    if file.sha256 == sha256 and self.is_known(record, number):
                        return file
        return None

    def pieces(self, wanted: Collection[str]) -> dict[str, Slice]:
        """Return where pieces lie on this disk, by their digest."""
        found: dict[str, Slice] = {}
        for record in self._records.all():
            step = record.manifest.piece_size
            for number, file in enumerate(record.manifest.files):
                here = {digest: index for index, digest in enumerate(file.pieces) if digest in wanted}
                if here and self.is_known(record, number):
                    path = self.place(record.manifest, number)
                    for digest, index in here.items():
                        found[digest] = Slice(path, index * step, min(step, file.size - index * step))
        return found

    def link(self, digest: str, target: Path) -> bool:
        """Give a file that was published here a second name; tell whether that could be done. Within `keeping`.

        Nobody writes to a published file in place; people may do that to their own, so those are left alone.
        """
        for record, number in self._records.with_file(digest):
            if record.is_published and self.is_known(record, number):
                with suppress(OSError):
                    os.link(self.place(record.manifest, number).resolve(), target)
                    return True
        return False

    def is_known(self, record: Record, number: int) -> bool:
        """Tell whether a file, by its number, is still what a record that was read just now says it is."""
        now = self._identity(record, number)
        if now is None or not now.is_renamed(record.identities[number]):
            return now == record.identities[number]
        # Somebody has just made a name of it: then its record has followed by when that is through.
        with self.still():
            held = self._records.get(record.manifest.model)
            return held is not None and _lists_it(held, record, number) and self._is_as_told(held, number)

    @contextmanager
    def still(self) -> Iterator[None]:
        """Have nobody else make or delete names of files, so that each is known by what it is; for moments only.

        Within `keeping` it is as well: then whoever asks has changed the times himself.
        """
        if self._still_for == threading.get_ident():
            yield
            return
        with self._alone(_NAMES, threading.Event()):
            self._still_for = threading.get_ident()
            try:
                yield
            finally:
                self._still_for = 0

    def followed(self, record: Record) -> Record:
        """Return a record with what has become of its identities by names that were made since they were looked at.

        Within `still`, in which it is to be put, too: or the names that are made in between would never be followed.
        """
        held = self._records.get(record.manifest.model)
        if held is None:
            return record
        latest = {
            (file.path, file.digest): identity
            for number, (file, identity) in enumerate(zip(held.manifest.files, held.identities, strict=True))
            if self._is_as_told(held, number)
        }
        files = zip(record.manifest.files, record.identities, strict=True)
        changed = ((latest.get((file.path, file.digest), known), known) for file, known in files)
        identities = tuple(now if now.is_renamed(known) else known for now, known in changed)
        return msgspec.structs.replace(record, identities=identities)

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Let files stay known while names of theirs are made or deleted, which changes their times; for moments only.

        Whoever looks meanwhile waits until it is through, see `still`, before he takes a file for changed. Whoever
        changes their contents in this very moment, and puts their times back, is found by the next verify.
        """
        with self.still():
            before = {
                (record.manifest.model, number): identity
                for record in self._records.all()
                for number, identity in enumerate(record.identities)
                if self._is_as_told(record, number)
            }
            try:
                yield
            finally:
                for record in self._records.all():
                    self._follow(record, before)

    def _follow(self, record: Record, before: dict[tuple[str, int], Identity]) -> None:
        identities = list(record.identities)
        for number, identity in enumerate(record.identities):
            with suppress(OSError):
                now = identity_of(self.place(record.manifest, number))
                if before.get((record.manifest.model, number)) == identity and now.is_renamed(identity):
                    identities[number] = now
        if tuple(identities) != record.identities:
            self._put(msgspec.structs.replace(record, identities=tuple(identities)))

    def _is_as_told(self, record: Record, number: int) -> bool:
        return self._identity(record, number) == record.identities[number]

    def _identity(self, record: Record, number: int) -> Identity | None:
        with suppress(OSError):
            return identity_of(self.place(record.manifest, number))
        return None


def _lists_it(held: Record, record: Record, number: int) -> bool:
    file = record.manifest.files[number]
    return held is record or held.manifest.files[number : number + 1] == (file,)
