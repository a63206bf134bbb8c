"""What has arrived of a model that is being installed from upstream, where its digests are not known beforehand.

Lies in ``<models>/.stagecast/draft-<model>``: ``files/<path>``, ``journal``, ``lock``, and ``manifest.json`` once all
of it is whole. A piece's digest enters the journal when its bytes are on the disk, so after ``kill -9`` no whole piece
is moved again; and another replica on the same folder can go on where one ended.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from blake3 import blake3

from stagecast.durable import Lock, opened, write_all, write_whole
from stagecast.errors import Busy, DigestMismatch, Interrupted, InvalidManifest, InvalidName
from stagecast.journal import FileRecord, PieceCame, WholeCame, appended, read_journal, written_journal
from stagecast.manifest import PIECE_SIZE, Manifest, ManifestFile, check_name, decode, encode, file_digest
from stagecast.publication import WORKSHOP, throw_away

_PREFIX: Final = "draft-"
_CHUNK: Final = 1024 * 1024


class DraftState(NamedTuple):
    """A draft on disk; ``bytes_done`` need not be moved again."""

    name: str
    bytes_done: int


def drafts(models: Path) -> list[DraftState]:
    """Return every draft in a models folder, worked on or left behind, by name."""
    found = []
    for folder in sorted((models / WORKSHOP).glob(f"{_PREFIX}*")):
        name = folder.name.removeprefix(_PREFIX)
        with suppress(InvalidName):
            found.append(DraftState(name, sum(record.position for record in draft_records(models, name).values())))
    return found


def draft_records(models: Path, model: str) -> dict[str, FileRecord]:
    """Return what the disk holds of each file of a model's draft, by path; no lock is needed to look."""
    folder = _folder(models, model)
    try:
        records = read_journal((folder / "journal").read_bytes())
    except OSError:
        return {}
    return {path: record.cut(_size_of(folder / "files" / path)) for path, record in records.items()}


class Draft:
    """One model's draft, held by one process and thread; use as ``with Draft(models, model) as draft``.

    A draft in which nothing has arrived leaves nothing behind.

    Entering raises:
        Busy: another process or thread is at it.
        InvalidName: no model can be called that.
    """

    def __init__(self, models: Path, model: str) -> None:
        self.model = model
        self.folder = _folder(models, model)
        self.records: dict[str, FileRecord] = {}
        self._models = models
        self._lock = Lock(self.folder / "lock")
        self._is_over = False

    def __enter__(self) -> Self:
        if not self._lock.take():
            raise Busy(f"the installation of {self.model}", self._lock.holder())
        self.records = draft_records(self._models, self.model)
        if self.records and self.manifest is None:
            self.save()  # what a crash left of a last line must not run into the next one
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # Once it is over, a folder of this name is somebody else's.
            if not self._is_over and not self.present and self.manifest is None:
                self.discard()
        finally:
            self._lock.release()

    @property
    def present(self) -> int:
        """Bytes that need not be moved again."""
        return sum(record.position for record in self.records.values())

    @property
    def manifest(self) -> Manifest | None:
        """The manifest that was about to be published when somebody was cut off, or None."""
        try:
            return decode((self.folder / "manifest.json").read_bytes())
        except (OSError, InvalidManifest):
            return None

    def is_whole_of(self, wanted: dict[str, tuple[str, str]]) -> bool:
        """Return whether the journal says that just these files came whole: ``(uri, sha256)`` by path."""
        try:
            records = read_journal((self.folder / "journal").read_bytes())
        except OSError:
            return False
        came = {path: (record.uri, record.sha256) for path, record in records.items() if record.is_whole}
        return came == wanted

    def keep(self, paths: Collection[str]) -> None:
        """Go on with these files, and delete what belongs to others."""
        (self.folder / "manifest.json").unlink(missing_ok=True)
        for path in set(self.records) - set(paths):
            self._delete(path)
        self.save()

    def file(self, path: str, uri: str, sha256: str = "") -> DraftFile:
        """Return the file at ``path``; what had arrived of another one, from elsewhere, is forgotten."""
        record = self.records.get(path)
        if record is None or not record.fits(uri, sha256):
            if record is not None:
                self._delete(path)
            record = self.records[path] = FileRecord(path=path, uri=uri, sha256=sha256)
        elif record.uri != uri:
            # The very bytes from another place: its validators say nothing about those of the old one.
            record.uri, record.validator = uri, ""
        return DraftFile(self, record)

    def save(self) -> None:
        """Write the journal anew, from what is known now."""
        write_whole(self.folder / "journal", written_journal(self.records.values()))

    def publish(self, manifest: Manifest, publish: Callable[[Path, Manifest], object]) -> None:
        """Hand the whole draft to ``publish`` (see `Store.publish`), which deletes what is left of it."""
        write_whole(self.folder / "manifest.json", encode(manifest))
        self._is_over = True
        publish(self.folder, manifest)

    def discard(self) -> int:
        """Delete all that has arrived; return how many bytes need not have been moved again."""
        count = self.present
        self._is_over = True
        throw_away(self.folder, self._models)
        self.records = {}
        return count

    def _delete(self, path: str) -> None:
        self.records.pop(path, None)
        (self.folder / "files" / path).unlink(missing_ok=True)


class DraftFile:
    """One file of a draft; bytes are appended at ``position``, inside ``with``, and hashed while they are hot."""

    def __init__(self, draft: Draft, record: FileRecord) -> None:
        self.position = record.position
        self._record = record
        self._draft = draft
        self._path = draft.folder / "files" / record.path
        self._descriptor = -1
        self._piece = blake3()
        self._whole = hashlib.sha256()

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    @property
    def is_whole(self) -> bool:
        """Whether all of it is there and checked."""
        return self._record.is_whole

    @property
    def validator(self) -> str:
        """What upstream said the content is, when the file was begun."""
        return self._record.validator

    @property
    def size(self) -> int | None:
        """Bytes of the whole file, as upstream said when the file was begun."""
        return self._record.size

    @property
    def can_go_on(self) -> bool:
        """Whether there are bytes to go on from, and a way to tell that those to come belong to them."""
        return self.position > 0 and bool(self._record.validator or self._record.sha256)

    def begin(self, validator: str, size: int | None) -> None:
        """Start over, at byte 0, with a content that upstream describes like this."""
        self._record.begin(validator, size)
        self._draft.save()  # before the bytes go: it must never name pieces that are not there
        os.ftruncate(self._descriptor, 0)
        self._go_to(0)

    def catch_up(self, stop: threading.Event) -> None:
        """Hash what had arrived before, where a SHA-256 of the whole file is to be checked. Raises `Interrupted`."""
        if not self._record.sha256:
            return
        self._go_to(0)
        for index, expected in enumerate(list(self._record.pieces)):
            if self._hash_piece(stop) != expected:
                del self._record.pieces[index:]  # the disk lost it after all
                self._draft.save()
                self.catch_up(stop)
                return
            self._go_on()

    def write(self, chunk: bytes) -> None:
        """Append ``chunk``. Raises `OSError` where the disk does."""
        view = memoryview(chunk)
        while view:
            part = view[: PIECE_SIZE - self.position % PIECE_SIZE]
            write_all(self._descriptor, part, self.position)
            self._hash(part)
            if self.position % PIECE_SIZE == 0:
                self._note(PieceCame(self._record.path, self._go_on()))
            view = view[len(part) :]

    def finish(self) -> None:
        """State that the last byte has been written.

        Raises:
            DigestMismatch: it is not the file that was published; all of it is forgotten.
        """
        found = self._whole.hexdigest()
        if self._record.sha256 not in {"", found}:
            expected = self._record.sha256
            self.begin("", None)
            raise DigestMismatch(self._record.path, expected, found)
        os.ftruncate(self._descriptor, self.position)
        last = self._go_on() if self.position % PIECE_SIZE else ""
        self._note(WholeCame(self._record.path, self.position, last))

    def manifest_file(self) -> ManifestFile:
        """Return the whole file as a manifest lists it."""
        pieces, size = tuple(self._record.pieces), self.position
        return ManifestFile(
            path=self._record.path,
            size=size,
            digest=file_digest(pieces, size),
            pieces=pieces,
            sha256=self._record.sha256,
        )

    def _note(self, event: PieceCame | WholeCame) -> None:
        os.fdatasync(self._descriptor)
        self._record.apply(event)
        with opened(self._draft.folder / "journal", os.O_WRONLY | os.O_APPEND) as journal:
            line = appended(event)
            if os.write(journal, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._draft.folder))

    def _hash(self, part: memoryview) -> None:
        self._piece.update(part)
        if self._record.sha256:
            self._whole.update(part)
        self.position += len(part)

    def _go_on(self) -> str:
        digest, self._piece = self._piece.hexdigest(), blake3()
        return digest

    def _go_to(self, position: int) -> None:
        self.position, self._piece, self._whole = position, blake3(), hashlib.sha256()

    def _hash_piece(self, stop: threading.Event) -> str:
        end = self.position + PIECE_SIZE
        while self.position < end:
            if stop.is_set():
                raise Interrupted("cancel")
            chunk = os.pread(self._descriptor, min(_CHUNK, end - self.position), self.position)
            if not chunk:
                break
            self._hash(memoryview(chunk))
        return self._piece.hexdigest()


def _folder(models: Path, model: str) -> Path:
    check_name(model)
    return models / WORKSHOP / f"{_PREFIX}{model}"


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
