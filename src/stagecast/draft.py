"""What has arrived of a model that is being installed from upstream, where its digests are not known beforehand.

Lies in ``<models>/.stagecast/draft-<model>``: ``files/<path>``, ``journal``, ``lock``, and ``manifest.json`` once all
of it is whole. A piece's digest enters the journal when its bytes are on the disk, so after ``kill -9`` no whole piece
is moved again; and another replica on the same folder can go on where one ended.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from stagecast.draft_file import DraftFile
from stagecast.durable import Lock, write_whole
from stagecast.errors import Busy, InvalidManifest, InvalidName
from stagecast.journal import FileRecord, read_journal, written_journal
from stagecast.manifest import Manifest, ManifestFile, check_name, decode, encode
from stagecast.publication import WORKSHOP, throw_away

PREFIX: Final = "draft-"


class DraftState(NamedTuple):
    """A draft on disk; ``bytes_done`` need not be moved again."""

    name: str
    bytes_done: int


def drafts(models: Path) -> list[DraftState]:
    """Return every draft in a models folder, worked on or left behind, by name."""
    found = []
    for folder in sorted((models / WORKSHOP).glob(f"{PREFIX}*")):
        name = folder.name.removeprefix(PREFIX)
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


def draft_bytes(models: Path, model: str) -> int:
    """Return the bytes of a model's draft that need not be moved again."""
    return sum(record.position for record in draft_records(models, model).values())


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
        return DraftFile(self.folder, record, self.save)

    def put(self, path: str, make: Callable[[Path], bool]) -> bool:
        """Have ``make`` put a whole file at a path where nothing is; tell whether it has. Then comes `note`."""
        place = self.folder / "files" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        return make(place)

    def note(self, path: str, uri: str, file: ManifestFile) -> None:
        """Count a file that was put there as whole and checked."""
        self.records[path] = FileRecord(
            path=path, uri=uri, sha256=file.sha256, size=file.size, pieces=list(file.pieces), is_whole=True
        )
        self.save()

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


def _folder(models: Path, model: str) -> Path:
    check_name(model)
    return models / WORKSHOP / f"{PREFIX}{model}"


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
