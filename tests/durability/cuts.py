"""Cuts the power of a job at every change of the disk, loses what was not synced in many ways, and goes on then."""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

from stagecast.partial import Partial
from stagecast.pieces import Piece, pieces_of
from stagecast.records import Record, identity_of
from tests.durability.calls import watched
from tests.durability.kills import Job, quick, work
from tests.durability.power import Disk, Recorder, Survives, survivals
from tests.durability.staging import Broken, moved


class Cut(NamedTuple):
    """The power goes before change ``at``; ``survives`` says what of the rest is there all the same."""

    at: int
    survives: Survives


@dataclass(frozen=True)
class Course:
    """What a job did to the disk, and which bytes were promised to be safe after how many changes."""

    recorder: Recorder
    promised: list[tuple[int, frozenset[tuple[int, int]]]]

    def cuts(self, chance: random.Random, often: int) -> Iterable[Cut]:
        for at in range(len(self.recorder.changes) + 1):
            for survives in survivals(self.recorder, at, chance, often):
                yield Cut(at, survives)

    def safe_at(self, at: int) -> frozenset[tuple[int, int]]:
        """Return the bytes, as (file, offset), that must not move again."""
        return next((safe for since, safe in reversed(self.promised) if since <= at), frozenset())


def course_of(job: Job) -> Course:
    """Do the job once, undisturbed. Raises `Broken` where the recorder has missed what was done."""
    promised: list[tuple[int, frozenset[tuple[int, int]]]] = []
    real = Partial._settle

    def settle(partial: Partial) -> None:
        real(partial)
        pieces = [piece for piece in pieces_of(partial.manifest) if partial.is_verified(piece)]
        promised.append((len(recorder.changes), frozenset(place for piece in pieces for place in _places(piece))))

    with tempfile.TemporaryDirectory(dir=quick()) as folder:
        home = Path(folder, "home")
        job.prepare(home)
        recorder = Recorder(home)
        Partial._settle = settle  # type: ignore[method-assign]
        try:
            with watched(home, recorder):
                work(job, home)
        finally:
            Partial._settle = real  # type: ignore[method-assign]
        lies = {
            path.relative_to(home).as_posix(): path.read_bytes() if path.is_file() else None
            for path in home.rglob("*")
        }  # fmt: skip
        if recorder.disk.contents() != lies:
            raise Broken("not recorded", {path for path, _ in recorder.disk.contents().items() ^ lies.items()})
    return Course(recorder, promised)


def cut_off(job: Job, course: Course, cuts: Iterable[Cut]) -> Counter[str]:
    """Lay each disk out that such a cut leaves, look, have the job done again, look; return what was found how often.

    ``moved twice`` counts bytes that had been promised to be safe, and were fetched again.
    """
    tally: Counter[str] = Counter()
    for at, survives in cuts:
        tally["points"] += 1
        disk = course.recorder.cut(at, survives)
        with tempfile.TemporaryDirectory(dir=quick()) as folder:
            home = Path(folder, "home")
            disk.lay_out(home)
            _renumber(home, disk, course.recorder)
            try:
                job.check_before(home)
                work(job, home)
                job.check_after(home)
            except (Broken, OSError) as broken:
                tally[broken.law if isinstance(broken, Broken) else "failed"] += 1
                tally[f"{job.name}: before change {at}: {broken}"] += 1
            fetched = {(file, start + n) for file, start, count in moved(home.parent / "ledger") for n in range(count)}
            tally["moved twice"] += len(fetched & course.safe_at(at))
    return tally


def _places(piece: Piece) -> Iterable[tuple[int, int]]:
    return ((piece.file, piece.offset + at) for at in range(piece.length))


def _renumber(home: Path, disk: Disk, recorder: Recorder) -> None:
    """Give what names inodes by number the numbers that they have on the disk that was laid out anew."""
    paths = {inode: home / path for path, inode in disk.tree()}
    now = {real: paths[inode] for real, inode in recorder.numbers.items() if inode in paths}
    for marker in home.glob("models/.stagecast/*/publishing"):
        number, _, model = marker.read_text().partition(" ")
        with suppress(ValueError, KeyError):
            marker.write_text(f"{now[int(number)].stat().st_ino} {model}")
    for path in home.glob("data/manifests/[!.]*.json"):
        with suppress(msgspec.DecodeError):
            record = msgspec.json.decode(path.read_bytes(), type=Record)
            identities = tuple(
                identity_of(now[old.inode]) if old.inode in now and now[old.inode].stat().st_size == old.size else old
                for old in record.identities
            )
            path.write_bytes(msgspec.json.encode(msgspec.structs.replace(record, identities=identities)))
