"""Installation: the files of a source move from upstream into a draft, and become a model of this disk.

Resumable at every byte, by this process or by another one on the same folder: whoever comes next goes on with the
draft. Blocks; meant for a thread.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

from stagecast.address import shown
from stagecast.adoption import check_whole
from stagecast.draft import Draft, draft_records
from stagecast.draft_file import DraftFile
from stagecast.errors import Busy, HolderFailed, Interrupted, NotEnoughSpace, SourceRefused, TransferFailed
from stagecast.gallery import Source, SourceFile
from stagecast.gathering import gather_published
from stagecast.installed import installed
from stagecast.manifest import Manifest, ManifestFile
from stagecast.messages import Bottleneck, Hindrance
from stagecast.reservation import Reservation
from stagecast.spending import Spending
from stagecast.store import Store
from stagecast.stream import STALL, Stream, probe
from stagecast.transfer.limit import RateLimit
from stagecast.upstream import Head

PATIENCE: Final = 120.0
"""Seconds without one new byte, over all attempts, after which an installation gives up."""
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 10.0
_PROBES: Final = 8
_PROBE_STALL: Final = 10.0


def measure(
    source: Source, *, stop: threading.Event | None = None, waiting: Callable[[Hindrance], None] = lambda _: None
) -> Source:
    """Return the source with the sizes that upstream tells; None stays where it does not, or cannot be reached now.

    ``waiting`` is told what it waits for, from many threads.

    Raises:
        SourceRefused: a file is not to be had, so that nothing is moved in vain.
        Interrupted: ``stop`` was set.
    """
    stop = stop or threading.Event()
    with ThreadPoolExecutor(_PROBES, "measure") as pool:
        return replace(source, files=tuple(pool.map(lambda file: _measured(file, stop, waiting), source.files)))


def staged_bytes(source: Source, store: Store) -> int:
    """Return the bytes of the source that a draft holds already: where the progress of `install` begins."""
    records = draft_records(store.models, source.model)
    found = [(records.get(file.path), file) for file in source.files]
    return sum(record.position for record, file in found if record and record.fits(file.uri, file.sha256))


def discard(store: Store, model: str) -> int:
    """Delete what has arrived of a model; return how many bytes that was. What somebody works on stays."""
    draft = Draft(store.models, model)
    if not draft.folder.exists():
        return 0
    with suppress(Busy), draft:
        manifest = draft.manifest
        if manifest is not None:
            store.was_published(draft.folder, manifest)  # an older revision that stood aside goes back
        return draft.discard()
    return 0


def install(
    source: Source,
    store: Store,
    *,
    advance: Callable[[int], None],
    entered: Callable[[int], None],
    completed: Callable[[int], None] = lambda _: None,
    checked: Callable[[int], None] = lambda _: None,
    found: Callable[[int], None] | None = None,
    whole: Callable[[], None] = lambda: None,
    waiting: Callable[[Hindrance], None] = lambda _: None,
    spent: Callable[[Mapping[Bottleneck, float]], None] = lambda _: None,
    stop: threading.Event,
    limit: RateLimit | None = None,
    patience: float = PATIENCE,
    stall: float = STALL,
) -> Manifest:
    """Move what is missing, check it, publish the model and record it; return its manifest. Blocks.

    ``advance`` gets each new byte once, also where a file is moved a second time; what `staged_bytes` says is not
    reported. ``entered`` gets the number of the file that moves now, ``completed`` that of each file that is whole.
    Files that are here already, by their SHA-256, in this model or another one, do not move, and ``found``, or
    ``advance``, gets their bytes. What had arrived stays on the disk whatever is raised, a file with a wrong digest
    excepted.

    ``checked`` gets bytes that are here and were hashed again. ``whole`` is called once all of it is here, before it is
    published; what it raises leaves the draft as it is. ``waiting`` is told what it waits for while no byte comes:
    ``network``, ``source`` or ``target disk``, and nothing where one came that was here before. ``spent`` is told with
    each chunk for how many seconds this call has been at what; which of source and network made it wait, a source that
    is not on this machine does not say.

    Raises:
        Busy: another process or thread installs this model.
        DigestMismatch: a file is not what was published.
        InvalidManifest: a file without a published digest is shorter than its own header says.
        Interrupted: ``stop`` was set; within a second, however the source hangs.
        NotEnoughSpace: before the first byte where the sizes are known, else when the disk is full.
        SourceRefused: upstream says no.
        TransferFailed: ``patience`` seconds without one new byte; ``stall`` is how long one request may hang.
    """
    begun = staged_bytes(source, store)
    manifest = installed(source, store, entered, stop, checked)
    if manifest is not None:
        (found or advance)(max(0, manifest.size - begun))
        return manifest
    with Draft(store.models, source.model) as draft:
        draft.keep([file.path for file in source.files])
        arrival = _Arrival(draft, advance, checked, waiting, Spending(spent), stop, limit, patience, stall)
        near = [gather_published(store, draft, file.path, file.uri, file.sha256) for file in source.files]
        if any(near):
            (found or advance)(sum(near))
        with _room(source, draft, store) as reservation:
            files = []
            for number, file in enumerate(source.files):
                entered(number)
                files.append(arrival.bring(file, reservation))
                completed(number)
            manifest = Manifest(model=source.model, files=tuple(files), single=source.single)
            unsure = [file.path for file in files if not file.sha256]
            check_whole(source.model, {path: draft.folder / "files" / path for path in unsure})
            whole()
            draft.publish(manifest, store.publish)
    return manifest


class _Mark:
    """How far a file has ever come: bytes that move a second time are no news to anybody."""

    def __init__(self, file: DraftFile, *report: Callable[[int], None]) -> None:
        self.highest = file.position
        self._file = file
        self._report = report

    def landed(self) -> None:
        fresh = self._file.position - self.highest
        if fresh > 0:
            self.highest += fresh
            for report in self._report:
                report(fresh)


class _Arrival(NamedTuple):
    """Brings one file after the other into the draft."""

    draft: Draft
    advance: Callable[[int], None]
    checked: Callable[[int], None]
    waiting: Callable[[Hindrance], None]
    spending: Spending
    stop: threading.Event
    limit: RateLimit | None
    patience: float
    stall: float

    def bring(self, source: SourceFile, reservation: Reservation) -> ManifestFile:
        with self.draft.file(source.path, source.uri, source.sha256) as file:
            mark = _Mark(file, reservation.landed, self.advance)
            if file.is_whole and not self._is_as_before(source, file):
                file.begin("", None)
            if not file.is_whole:
                file.catch_up(self.stop, self.checked)
                self._persist(source, file, mark)
                file.finish()
                self.spending.tell(file)
            return file.manifest_file()

    def _is_as_before(self, source: SourceFile, file: DraftFile) -> bool:
        # Without a published digest, only upstream can tell that the revision is still the one begun long ago.
        if source.sha256 or not file.validator:
            return True
        try:
            head = probe(source.uri, stop=self.stop, stall=min(self.stall, _PROBE_STALL), waiting=self.waiting)
        except HolderFailed:
            return True
        return head.validator in {"", file.validator}

    def _persist(self, source: SourceFile, file: DraftFile, mark: _Mark) -> None:
        pause, highest, since = _FIRST_PAUSE, mark.highest, time.monotonic()
        while True:
            try:
                self._receive(source, file, mark)
            except SourceRefused:
                raise
            except HolderFailed as error:
                # Only a byte that was never there before is progress: a source may start over for ever.
                if mark.highest > highest:
                    pause, highest, since = _FIRST_PAUSE, mark.highest, time.monotonic()
                if time.monotonic() - since + pause > self.patience:
                    raise TransferFailed(
                        f"{source.path} did not arrive: {error}; no new byte for {self.patience:g} s. "
                        "What is here stays; retry when the source is well again"
                    ) from error
            else:
                return
            if self.stop.wait(pause):
                raise Interrupted("cancel")
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _receive(self, source: SourceFile, file: DraftFile, mark: _Mark) -> None:
        offset = file.position if file.can_go_on else 0
        if offset and offset == file.size:
            return
        asked = time.monotonic()
        with Stream(
            source.uri, offset, file.validator, stop=self.stop, stall=self.stall, waiting=self.waiting
        ) as stream:
            _check_media_type(source, stream.head)
            if stream.head.start == 0:
                file.begin(stream.head.validator, stream.head.size)
            elif _is_other(stream.head, file):
                file.begin("", None)
                raise HolderFailed(shown(source.uri), f"{source.path} has changed there")
            for chunk in stream:
                self.spending.came(source.uri, time.monotonic() - asked)
                self.waiting("target disk")
                try:
                    file.write(chunk)
                finally:
                    mark.landed()  # also what came before the disk was full
                self.waiting("")
                if self.limit is not None:
                    written = time.monotonic()
                    self.limit.take(len(chunk), self.stop)
                    self.spending.was_held_back(time.monotonic() - written)
                asked = time.monotonic()
                self.spending.tell(file)


def _is_other(head: Head, file: DraftFile) -> bool:
    sizes = {head.size, file.size} - {None}
    validators = {head.validator, file.validator} - {""}
    return len(sizes) > 1 or len(validators) > 1


def _check_media_type(source: SourceFile, head: Head) -> None:
    wanted = Path(source.path).suffix.lower()
    if head.media_type == "text/html" and wanted not in {".html", ".htm"}:
        why = f"answers with a web page (HTML) instead of {source.path}; look at it in a browser, it may want a login"
        raise SourceRefused(shown(source.uri), why)


def _measured(file: SourceFile, stop: threading.Event, waiting: Callable[[Hindrance], None]) -> SourceFile:
    if file.size is not None:
        return file
    try:
        return replace(file, size=probe(file.uri, stop=stop, stall=_PROBE_STALL, waiting=waiting).size)
    except SourceRefused:
        raise
    except HolderFailed:
        return file


@contextmanager
def _room(source: Source, draft: Draft, store: Store) -> Iterator[Reservation]:
    with store.reserve(_needed(source, draft), draft.present, f"installation of {source.model}") as reservation:
        try:
            yield reservation
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            free = store.space().free
            needed = _needed(source, draft)
            raise NotEnoughSpace(store.node, str(store.models), needed, free, draft.present) from error


def _needed(source: Source, draft: Draft) -> int:
    told = {path: record.size for path, record in draft.records.items()}
    total = sum(file.size or told.get(file.path) or 0 for file in source.files)
    return max(0, total - draft.present)
