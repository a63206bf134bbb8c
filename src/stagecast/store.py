"""Models on this disk: each file or folder of the models folder is a model of that name.

Several processes may share the models folder and the data folder. The data folder has ``manifests/<model>.json``, see
`stagecast.records`, and ``locks``, so that a model is hashed once, however many processes want to know its manifest.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple
from weakref import WeakSet

from stagecast import footprint, publication, workshop
from stagecast.adoption import adopt, survey
from stagecast.disk import Disk, Space, naming_full_disk
from stagecast.durable import Lock, make_folder
from stagecast.errors import Busy, Interrupted, InvalidManifest, InvalidName, Unknown, WrongState
from stagecast.eviction import Leftover
from stagecast.known_files import KnownFiles
from stagecast.manifest import Manifest, check_name, decode, encode
from stagecast.marks import Marks
from stagecast.part_files import PREFIX, folder_of
from stagecast.partial import Partial
from stagecast.pieces import Piece
from stagecast.records import DAMAGED, Identity, Record, Records
from stagecast.reservation import Promise, Reservation

_LOCK_POLL: Final = 0.05
"""Seconds between two looks at whether another process has ended its hashing; flock cannot wait and heed a stop."""


class PartialState(NamedTuple):
    """A model that is not whole yet. ``bytes_done`` are on the disk and need not move again."""

    name: str
    digest: str
    bytes_done: int
    bytes_total: int


class Store:
    """The models in ``models``, with their records in ``data``; ``node`` names this machine in errors.

    Safe to share between threads. Making it tidies up what a crash has left.
    """

    def __init__(self, models: Path, data: Path, node: str = "") -> None:
        self.models = models
        self.data = data
        self.node = node
        make_folder(models / publication.WORKSHOP)
        self._records = Records(data / "manifests")
        self._disk = Disk(models, node)
        self.marks = Marks(models)
        self.files = KnownFiles(models, self._records, self._put, self._alone)
        self._partials: WeakSet[Partial] = WeakSet()
        publication.tidy(models)
        self._disk.tidy()

    def names(self) -> list[str]:
        """Return the models that lie here, sorted."""
        return sorted(path.name for path in self.models.iterdir() if _is_model(path))

    def path(self, name: str) -> Path:
        """Return the file or folder of a model. Raises `Unknown`."""
        if not _is_name(name) or not _is_model(self.models / name):
            raise Unknown("model", name, self.names())
        return self.models / name

    def manifest(
        self, name: str, advance: Callable[[int], None] | None = None, stop: threading.Event | None = None
    ) -> Manifest:
        """Return a model's manifest; what is new or changed is hashed for it, once over all processes.

        ``advance`` is called in this thread, with bytes that were hashed.

        Raises:
            Busy: somebody changes the files while they are hashed.
            Interrupted: ``stop`` was set.
            InvalidManifest: there are no files, or they cannot be read.
            NotEnoughSpace: no room in the data folder for the record.
            Unknown: no such model.
        """
        path, stop = self.path(name), stop or threading.Event()
        held = self.recorded(name)
        if held:
            return held
        with self._alone(name, stop):
            held = self.recorded(name)
            if held:
                return held
            record = adopt(name, path, self._records.get(name), advance or _ignore, stop)
            with self.files.still():
                record = self.files.followed(record)
                if not self._fits(record):
                    raise Busy(f"the content of {name}", "whoever writes it")
                self._put(record)
            return record.manifest

    def recorded(self, name: str) -> Manifest | None:
        """Return a model's manifest if its files are as they were recorded, else None. Hashes nothing."""
        record = self._records.get(name) if _is_name(name) else None
        if record is None or self._fits(record):
            return record.manifest if record else None
        with self.files.still():  # or names that somebody has just made would pass for a change
            record = self._records.get(name)
            return record.manifest if record and self._fits(record) else None

    def manifest_by_digest(self, digest: str) -> Manifest | None:
        """Return the manifest of that digest, if a model here has it."""
        names = [record.manifest.model for record in self._records.all() if record.manifest.digest == digest]
        return next((held for held in map(self.recorded, names) if held and held.digest == digest), None)

    def locate(self, file_digest: str) -> tuple[Path, int] | None:
        """Return the path and size in bytes of a file by its digest; None if it is not here, or not as recorded."""
        found = self.files.find(file_digest)
        if found is None:
            return None
        record, number = found
        self.marks.use(record.manifest.model)
        return self.files.place(record.manifest, number), record.manifest.files[number].size

    def arriving(self, file_digest: str) -> tuple[Partial, int] | None:
        """Return what this process has open of a revision that is not whole yet, and the file's number there."""
        for partial in self._open_partials():
            for number, file in enumerate(partial.manifest.files):
                if file.digest == file_digest:
                    return partial, number
        return None

    def arriving_manifest(self, digest: str) -> Partial | None:
        """Return what this process has open of the revision with that digest, or None."""
        return next((partial for partial in self._open_partials() if partial.digest == digest), None)

    def partial(self, manifest: Manifest) -> Partial:
        """Return what has arrived of a revision, to be entered by ``with``. Raises `InvalidManifest`, `InvalidName`."""
        partial = Partial(self.models, manifest, self.record, self.node, self.files.keeping)
        self._partials.add(partial)
        return partial

    def _open_partials(self) -> list[Partial]:
        return [partial for partial in list(self._partials) if partial.status.is_open]

    def publish(self, working: Path, manifest: Manifest) -> Path:
        """Make ``working/files`` the model and record it; ``working`` lies in ``.stagecast`` and is deleted.

        The caller holds ``durable.Lock(working / "lock")``. See `publication.publish`.
        """
        return publication.publish(working, manifest, self.models, self.record, self.files.keeping)

    def was_published(self, working: Path, manifest: Manifest) -> bool:
        """Return whether a `publish` that a crash cut off had moved the files; then it wants to be called again."""
        return publication.was_published(working, manifest, self.models)

    def record(self, manifest: Manifest) -> None:
        """Record a model whose files were just verified, so that they are not hashed again.

        Raises:
            NotEnoughSpace: no room in the data folder for the record.
            Unknown: no such model.
            WrongState: the files that lie there are not those of the manifest.
        """
        expected = {manifest.model if manifest.single else file.path: file.size for file in manifest.files}
        with self.files.still():
            found = survey(manifest.model, self.path(manifest.model))
            if {name: identity.size for name, identity in found.items()} != expected:
                raise WrongState(manifest.model, "on this disk with other files than the manifest lists", "record")
            self._put(Record(manifest, tuple(found.values()), is_published=True))

    def expected(self, name: str) -> Manifest | None:
        """Return the manifest that a model should have; None where its files are as somebody has put them."""
        record = self._records.get(name)
        if record is None:
            return None
        is_meant = record.is_published or self.recorded(name) == record.manifest
        return record.original or (record.manifest if is_meant else None)

    def distrust(self, manifest: Manifest, files: Collection[int], identities: Sequence[Identity]) -> None:
        """Record that these files, by their number, are not the manifest's; the others are as they are known."""
        known = (DAMAGED if number in files else identity for number, identity in enumerate(identities))
        self._keep(manifest, tuple(known), original=manifest)

    def vouch(self, manifest: Manifest, identities: Sequence[Identity]) -> None:
        """Record that the files of these identities were verified to be the manifest's."""
        self._keep(manifest, identities, original=None)

    def partials(self) -> list[PartialState]:
        """Return the models that are not whole yet, sorted; name and digest are "?" where nobody can tell any more."""
        folders = (self.models / publication.WORKSHOP).iterdir()
        return sorted(_state(folder) for folder in folders if folder.name.startswith(PREFIX) and folder.is_dir())

    def arrived(self, model: str, digest: str) -> tuple[Manifest, dict[Piece, int]] | None:
        """Return a revision that is not whole yet, and the bytes that have arrived of each piece; None: nothing has."""
        found = workshop.arrived(folder_of(self.models, model, digest))
        return found if found is not None and found[0].digest == digest else None

    def partial_bytes(self, name: str) -> int:
        """Return the bytes that have arrived of a model that is not whole, over all its revisions."""
        return sum(state.bytes_done for state in self.partials() if state.name == name)

    def discard_partials(self, name: str) -> int:
        """Remove what has arrived of a model that is not whole; return the bytes freed. One that is in use stays."""
        freed = 0
        for folder in sorted((self.models / publication.WORKSHOP).glob(f"{PREFIX}*")):
            with suppress(OSError, InvalidManifest, Busy):
                manifest = decode((folder / "manifest.json").read_bytes())
                if manifest.model == name:
                    with self.partial(manifest) as partial:
                        stays = footprint.shared(folder / "files")
                        freed += partial.discard() - stays
        return freed

    def remove(self, name: str) -> int:
        """Delete a model; return how many bytes that freed: of a file with another name, none. Raises `Unknown`."""
        path = self.path(name)
        with self.files.keeping():
            count = footprint.freed(path)
            if not publication.throw_away(path, self.models):
                raise Unknown("model", name, self.names())
            self._records.drop(name)
        self.marks.forget(name)
        return count

    def remove_leftover(self, leftover: Leftover) -> int:
        """Remove what nobody goes on with; return how many bytes of the disk that freed. See `workshop.remove`."""
        with self.files.keeping():
            return workshop.remove(self.models, leftover)

    def space(self) -> Space:
        """Return the free bytes of the models' disk, and its bytes in all."""
        return self._disk.space()

    def reserve(
        self, needed: int, present: int = 0, purpose: str = "a transfer"
    ) -> AbstractContextManager[Reservation]:
        """Promise ``needed`` bytes for the time of a ``with``. Raises `Busy`, `NotEnoughSpace`."""
        return self._disk.reserve(needed, present, purpose)

    def promises(self) -> list[Promise]:
        """Return what living processes, of all that share the models folder or its disk, promised of the free bytes."""
        return self._disk.promises()

    def _put(self, record: Record) -> None:
        with naming_full_disk(self.data, self.node, lambda: (len(encode(record.manifest)), 0)):
            self._records.put(record)

    def _keep(self, manifest: Manifest, identities: Sequence[Identity], original: Manifest | None) -> None:
        with self.files.still():
            held = self._records.get(manifest.model)
            is_published = held is not None and held.is_published
            record = Record(manifest, tuple(identities), is_published=is_published, original=original)
            self._put(self.files.followed(record))

    def _fits(self, record: Record) -> bool:
        name, manifest = record.manifest.model, record.manifest
        try:
            found = survey(name, self.path(name))
        except (Unknown, InvalidManifest):
            return False
        paths = [name] if manifest.single else [file.path for file in manifest.files]
        return list(found) == paths and tuple(found.values()) == record.identities

    @contextmanager
    def _alone(self, name: str, stop: threading.Event) -> Iterator[None]:
        lock = Lock(self.data / "locks" / name)
        while not lock.take():
            if stop.wait(_LOCK_POLL):
                raise Interrupted("cancel")
        try:
            yield
        finally:
            lock.release()


def _ignore(count: int) -> None:
    pass


def _is_name(name: str) -> bool:
    try:
        check_name(name)
    except InvalidName:
        return False
    return True


def _is_model(path: Path) -> bool:
    return _is_name(path.name) and (path.is_dir() or path.is_file())


def _state(folder: Path) -> PartialState:
    found = workshop.arrived(folder)
    if found is None:
        return PartialState("?", "?", 0, 0)
    manifest, written = found
    return PartialState(manifest.model, manifest.digest, sum(written.values()), manifest.size)
