"""``python -m tests.simulation --steps 1000000``: run schedules until so many steps were taken; tell what was seen."""

from __future__ import annotations

import argparse
import itertools
import sys
import time

from tests.simulation.many import Tally, explain, over_cores

BATCH = 100


def main() -> int:
    """Run, and return 0 if no law was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--steps", type=int, default=1_000_000, help="callbacks to run, at least")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=0, help="processes; 2 by default")
    arguments = parser.parse_args()
    total, began = Tally(), time.monotonic()
    batches = (range(first, first + BATCH) for first in itertools.count(arguments.seed, BATCH))
    while total.steps < arguments.steps:
        for found in over_cores(itertools.islice(batches, 10), arguments.jobs):
            total.add(found)
    print(told(total, time.monotonic() - began))
    if total.violations:
        print(explain(total.violations[:3]))
    return 1 if total.violations else 0


def told(total: Tally, took: float) -> str:
    """Return the sums as a table."""
    lines = [
        f"schedules            {total.schedules:,}",
        f"steps                {total.steps:,}",
        f"virtual time         {total.seconds / 3600:,.1f} h",
        f"faults injected      {total.faults.total():,}",
        *(f"  {name:<36} {count:>10,}" for name, count in sorted(total.faults.items())),
        f"requests answered    {total.answers.total():,}",
        f"invariant checks     {total.checks.total():,}",
        *(f"  {name:<36} {count:>10,}" for name, count in sorted(total.checks.items())),
        f"violations           {len(total.violations)}",
        *(f"  seed {seed}: {violation}" for seed, violation in total.violations[:10]),
        f"wall time            {took:.1f} s",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
