"""How fast files move, beside the programs that people move them with: everything in one run, on this machine.

    python benchmarks/transfer.py [--quick] [--rounds N] [--write] [--media tmpfs disk] [--cases one many]
                                  [--contenders rsync cp]

Each round runs every contender once, in turn, so that what else the machine does meets all of them; the medians count.
Before each, as much memory is touched as it will fill, and what it left is emptied, not deleted (`material.py`).
``--write`` puts the tables and the plot into docs/. What is not installed is named, with the command that brings it,
and is left out.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

from contenders import CONTENDERS, INSTALL, Contender, Ran, Run
from material import Case, cases, empty, is_memory, room, settle, workplace
from parts import measure
from report import Row, table, write
from stagecast.bulk import NICENESS

NO_FILES = ("iperf3", "iperf3, reno")
MEMORY = Path("/dev/shm")  # the tmpfs that every Linux has, by name


def _present() -> tuple[list[Contender], list[str]]:
    """Return who can take part, and why each of the others cannot."""
    lacking = {contender.name: contender.missing() for contender in CONTENDERS}
    absent = [
        f"{name} is left out: {', '.join(programs)} is not installed" for name, programs in lacking.items() if programs
    ]
    return [contender for contender in CONTENDERS if not lacking[contender.name]], absent


def _once(run: Run, case: Case, folder: Path, *, on_disk: bool) -> Ran:
    """Run a transfer into a new folder; on a disk it has ended once the bytes are there, not in the cache alone."""
    target = folder / f"target-{time.monotonic_ns()}"
    target.mkdir()
    try:
        ran = run(case, target)
        began = time.monotonic()
        if on_disk:
            settle(folder)
        return Ran(ran.seconds + time.monotonic() - began, ran.cpu, ran.memory_there, ran.memory_here)
    finally:
        empty(target)
        settle(folder)


def _measure(present: list[Contender], case: Case, folder: Path, rounds: int) -> list[Row]:
    on_disk = not is_memory(folder)
    taking_part = [contender for contender in present if contender.moves(case)]
    found: dict[str, list[Ran]] = {contender.name: [] for contender in taking_part}
    with ExitStack() as stack:
        runs = [(each.name, stack.enter_context(contextmanager(each.start)(folder / "models"))) for each in taking_part]
        for turn in range(min(rounds, case.rounds) if case.rounds else rounds + 1):
            for name, run in runs:
                ran = _once(run, case, folder, on_disk=on_disk and name not in NO_FILES)
                # The first round warms what everybody uses: the page cache, and memory that the machine never had.
                if turn or case.rounds:
                    found[name].append(ran)
    medium = "disk" if on_disk else "tmpfs"
    return [_row(name, medium, case, ran) for name, ran in found.items()]


def _row(name: str, medium: str, case: Case, ran: list[Ran]) -> Row:
    rates = sorted(case.total / each.seconds for each in ran)
    return Row(
        name, medium, case.name, case.what, statistics.median(rates), rates[0], rates[-1],
        statistics.median(each.cpu for each in ran) / case.total * 1e9,
        max(each.memory_there for each in ran), max(each.memory_here for each in ran),
    )  # fmt: skip


def _bound(found: list[Row], case: Case, folder: Path) -> str:
    rates = {row.name: row.rate for row in found}
    parts = measure(folder / "models" / case.name / case.files[0], folder)
    return parts.said(found[0].medium, os.cpu_count() or 1, rates.get("iperf3", 0.0), rates.get("rsync", 0.0))


def _machine() -> str:
    load = os.getloadavg()[0]
    system = f"Linux {platform.release()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} cores, {system}, load {load:.1f} when it began"


def main() -> int:
    """Measure, print each table as it comes, and write it down if that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="an eighth of the bytes, one round")
    parser.add_argument("--rounds", type=int, default=0, help="how often each runs; the median counts [5, quick: 1]")
    parser.add_argument("--scale", type=int, default=0, help="divide every size by this [1, quick: 8]")
    parser.add_argument("--disk", type=Path, default=Path(tempfile.gettempdir()), help="a folder on a disk")
    parser.add_argument("--media", nargs="+", default=["tmpfs", "disk"], help="only these: tmpfs, disk")
    parser.add_argument("--cases", nargs="+", default=[], help="only these: one, many, shards, mixed")
    parser.add_argument("--contenders", nargs="+", default=[], help="only these, by their names in the tables, and us")
    parser.add_argument("--write", action="store_true", help="write docs/performance.md and its plot")
    options = parser.parse_args()
    rounds, scale = options.rounds or (1 if options.quick else 5), options.scale or (8 if options.quick else 1)
    # Our threads stand back behind other programs; where there are some, everybody is to.
    os.nice(NICENESS)
    machine, (present, absent) = _machine(), _present()
    print(machine)
    for line in absent:
        print(f"{line}; get it with: {INSTALL}")
    names = {"stagecast", *options.contenders}
    present = [each for each in present if not options.contenders or each.name in names]
    rows: list[Row] = []
    notes: list[str] = []
    for medium in [place for name, place in (("tmpfs", MEMORY), ("disk", options.disk)) if name in options.media]:
        made = [each for each in cases(scale, room(medium)) if each.name in (options.cases or [each.name])]
        if room(medium) < sum(case.total for case in made) + max(case.total for case in made):
            print(f"{medium} is left out: too little room there; --scale divides the sizes")
            continue
        with workplace(medium, made) as folder:
            for case in made:
                found = _measure(present, case, folder, rounds)
                rows += found
                print(table(found), flush=True)
                if case.name == "one":
                    notes.append(_bound(found, case, folder))
                    print(notes[-1])
                if options.write:
                    write(rows, machine, rounds, [f"{line}." for line in absent] + notes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
