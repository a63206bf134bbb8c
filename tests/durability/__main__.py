"""Tries every point, or by chance a share of them, and prints how many there were and what was found at them."""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final
from unittest import mock

from stagecast import adoption, partial
from tests.durability.cuts import course_of, cut_off
from tests.durability.jobs import JOBS
from tests.durability.kills import Job, killed, points

LAWS: Final = ("moved twice", "half published", "marked wrong", "failed")
HEAD: Final = ("job", "kills", "twice killed", "power cuts", *LAWS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 if every law held at every point that was tried."""
    parser = argparse.ArgumentParser(prog="python -m tests.durability", description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="of all points, taken by chance (default: all)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    chance = random.Random(options.seed)
    with in_small():
        found = [tried(job, chance, options.share) for job in JOBS]
    rows = [(job.name, *(tally[key] for key in HEAD[1:])) for job, tally in zip(JOBS, found, strict=True)]
    total = sum(found, Counter())
    rows.append(("all", *(total[key] for key in HEAD[1:])))
    print(
        "\n".join(
            "  ".join(f"{cell:>14}" if at else f"{cell:30}" for at, cell in enumerate(row)) for row in (HEAD, *rows)
        )
    )
    for line in [key for key in total if ": " in key][:20]:
        print(line)
    print(
        f"{total['kills'] + total['twice killed']} kill points and {total['power cuts']} power cuts tried "
        f"(seed {options.seed}): {total['moved twice']} bytes moved twice, {total['half published']} times a model "
        f"half published, {total['marked wrong']} times a wrong piece marked good, {total['failed']} failures"
    )
    return 1 if any(total[law] for law in LAWS) else 0


def tried(job: Job, chance: random.Random, share: float) -> Counter[str]:
    """Try one job at a share of its points."""
    every = points(job)
    once = killed(job, [(point,) for point in every if chance.random() < share])
    pairs = [(chance.choice(every), chance.choice(every)) for _ in range(round(len(every) * share / 2))]
    twice = killed(job, pairs)
    course = course_of(job)
    cuts = cut_off(job, course, [cut for cut in course.cuts(chance, 6) if chance.random() < share])
    tally = once + twice + cuts
    del tally["points"]
    return tally + Counter({"kills": once["points"], "twice killed": twice["points"], "power cuts": cuts["points"]})


@contextmanager
def in_small() -> Iterator[None]:
    """Settle after every second piece of a model of a few bytes, and do not wait for a clock's tick."""
    with mock.patch.object(partial, "SYNC_EVERY", 16), mock.patch.object(adoption, "_TICK", 0):
        yield


if __name__ == "__main__":
    sys.exit(main())
