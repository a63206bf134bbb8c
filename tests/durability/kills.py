"""Kills a job at every call that changes the disk, and at every byte of every write, and goes on after that."""

from __future__ import annotations

import os
import signal
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from tests.durability.calls import Killer, Lister, watched
from tests.durability.staging import Broken, moved_twice, open_ledger
from tests.killing import in_child


class Job(Protocol):
    """Work on a disk that may be killed at any moment, and what must hold then."""

    @property
    def name(self) -> str:
        """What it is called in the table."""

    def prepare(self, home: Path) -> None:
        """Lay out what is there before."""

    def work(self, home: Path, ledger: int) -> None:
        """Do all that is left to do, as a process that starts now does; what has moved is written to ``ledger``."""

    def check_before(self, home: Path) -> None:
        """Look at what a crash has left, as a reader would that comes now. Raises `Broken`."""

    def check_after(self, home: Path) -> None:
        """Look at what there is once all has ended well. Raises `Broken`."""


class Point(NamedTuple):
    """Where a process dies: before its call number ``step``, or in that write, after ``torn`` bytes."""

    step: int
    torn: int = 0


def points(job: Job) -> list[Point]:
    """Return every point of a job at which it can be killed so that it makes a difference."""
    with tempfile.TemporaryDirectory(dir=quick()) as folder:
        home, lister = Path(folder, "home"), Lister()
        job.prepare(home)
        with watched(home, lister):
            work(job, home)
    found = []
    for step, call in enumerate(lister.calls, 1):
        found.append(Point(step))
        found += [Point(step, torn) for torn in _cuts(len(call.data) if call.name == "pwrite" else 0, call.grain)]
    return found


def killed(job: Job, deaths: Iterable[tuple[Point, ...]]) -> Counter[str]:
    """Kill the job at a point, and whoever goes on at the next one; look, have it done again, look.

    Return how often what was found, and how many ``points`` there were; ``moved twice`` counts bytes that had come and
    were fetched again.
    """
    tally: Counter[str] = Counter()
    for death in deaths:
        with tempfile.TemporaryDirectory(dir=quick()) as folder:
            home = Path(folder, "home")
            job.prepare(home)
            try:
                tally["points"] += sum(_dies(job, home, point) for point in death)
                job.check_before(home)
                work(job, home)
                job.check_after(home)
            except (Broken, OSError) as broken:
                tally[broken.law if isinstance(broken, Broken) else "failed"] += 1
                tally[f"{job.name}, killed at {death}: {broken}"] += 1
            tally["moved twice"] += moved_twice(home.parent / "ledger")
    return tally


def work(job: Job, home: Path) -> None:
    ledger = open_ledger(home.parent / "ledger")
    try:
        job.work(home, ledger)
    finally:
        os.close(ledger)


def quick() -> str | None:
    """Return a folder in memory, where there is one: only what is told to the disk matters, not what it does."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _dies(job: Job, home: Path, point: Point) -> bool:
    """Have the job done by a process that dies at the point; tell whether it came so far."""

    def die() -> None:
        with watched(home, Killer(*point)):
            work(job, home)

    code = in_child(die)
    if code not in {0, -signal.SIGKILL}:
        raise Broken("failed", f"exit code {code}")
    return code != 0


def _cuts(length: int, grain: int) -> Iterator[int]:
    # Marks of 4 bytes never lie on two pages, and the kernel looks for signals between two pages only.
    if length > grain:
        places = range(grain, length, grain)
        yield from places if len(places) < 16 else (places[0], places[len(places) // 2], places[-1])
