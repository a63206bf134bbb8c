"""The time for N workers beside the time for one, measured between network namespaces, and simulated beyond that.

    python benchmarks/fanout.py [--workers 1 2 4 8 16] [--simulated 100 1000] [--repeats 3] [--write]

Each node is a process (`fanning.py`) in a namespace of its own, behind a link that `tc tbf` holds to the rate in each
direction; the origin has one like everybody. That needs root, iproute2, and room for N + 1 models in ``--folder``.
``--write`` puts the table into docs/scale.md.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent.parent))

from linked import Case, Run, cleared, make_model, make_small_files, measure
from swarm import Plan, Simulation

PAGE = Path(__file__).parent.parent / "docs" / "scale.md"
BEGIN, END = "<!-- made by benchmarks/fanout.py: begin -->", "<!-- made by benchmarks/fanout.py: end -->"
MIB = 1 << 20
HEAD = (
    "| what | workers | seconds for one | seconds for all | ratio | least-most | origin sent, models "
    "| workers sent, models | cores busy, of that ours |\n"
    "|---|---|---|---|---|---|---|---|---|\n"
)


def mishaps(workers: int) -> list[Case]:
    return [Case(workers, slow=1), Case(workers, late=2), Case(workers, dying=1), Case(workers, cut=1)]


def measured(case: Case, runs: list[Run], one: float) -> str:
    """Return a row: medians, and the least and the most of the ratio."""
    ratios = sorted(run.seconds / one for run in runs)
    seconds, origin, workers, busy, ours = (median(values) for values in zip(*runs, strict=True))
    return (
        f"| measured{case.words} | {case.workers} | {one:.1f} | {seconds:.1f} | {seconds / one:.2f} "
        f"| {ratios[0]:.2f}-{ratios[-1]:.2f} | {origin:.2f} | {workers:.2f} | {busy:.1f}, {ours:.1f} |\n"
    )


def simulated(case: Case, pieces: int, piece_size: int, rate: float) -> str:
    plan = Plan(case.workers, pieces, piece_size, rate, case.slow, case.late, case.dying)
    outcome = Simulation(plan).run()
    size, one, seconds = pieces * piece_size, plan.alone, max(outcome.seconds[case.slow :])
    return (
        f"| simulated{case.words} | {case.workers:,} | {one:.1f} | {seconds:.1f} | {seconds / one:.2f} | "
        f"| {outcome.origin / size:.2f} | {outcome.workers / size:,.2f} | |\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4, 8, 16])
    parser.add_argument("--simulated", type=int, nargs="*", default=[8, 16, 100, 1000])
    parser.add_argument("--mishaps", type=int, nargs="*", default=[8], help="workers where one has bad luck")
    parser.add_argument("--size", type=int, default=128, help="MiB of the model")
    parser.add_argument("--piece", type=int, default=1, help="MiB of a piece")
    parser.add_argument("--files", type=int, default=0, help="so many small files, not one; measured only")
    parser.add_argument("--rate", type=float, default=12.5, help="MB/s of every link")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if options.files and options.write:
        parser.error("the table of the page is that of one file")
    size, piece_size, rate = options.size * MIB, options.piece * MIB, options.rate * 1e6
    cases = [Case(number) for number in options.workers] + [case for each in options.mishaps for case in mishaps(each)]
    if options.files:
        options.simulated = options.mishaps = []
    lines: list[str] = []

    def note(line: str) -> None:
        print(line, end="", flush=True)
        lines.append(line)

    print(HEAD, end="")
    if cases:
        with cleared(options.folder) as root:
            home = root / "origin"
            small = options.files and size // options.files
            manifest = make_small_files(home, options.files, small) if small else make_model(home, size, piece_size)

            def runs(case: Case) -> list[Run]:
                return [measure(case, root, root / "origin", manifest, rate) for _ in range(options.repeats)]

            alone = runs(Case(1))
            one = median(run.seconds for run in alone)
            for case in cases:
                note(measured(case, alone if case == Case(1) else runs(case), one))
    for number in options.simulated:
        note(simulated(Case(number), size // piece_size, piece_size, rate))
    for case in [case for each in options.mishaps for case in mishaps(each) if not case.cut]:
        note(simulated(case, size // piece_size, piece_size, rate))
    if options.write:
        said = (
            f"`python benchmarks/fanout.py --write`: {options.size} MiB in {size // piece_size} pieces, each link "
            f"{options.rate:g} MB/s in each direction; medians of {options.repeats}; {os.cpu_count()} cores.\n\n"
        )
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{said}{HEAD}{''.join(lines)}{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
