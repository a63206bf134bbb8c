"""What consistency costs: each figure beside its peer, both measured in this run, on this machine, with real processes.

    python benchmarks/consistency.py [--only latency following ...] [--times 5] [--markdown FILE]

It takes about two minutes, starts its own nats-server and its own replicas, and leaves nothing behind. Read the ratios:
what else the machine does moves both sides.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import uvloop

import catching_up
import counting
import following
import latency
import listing
import streaming
from processes import nats_server


@dataclass(frozen=True)
class Figure:
    """One line of the table. ``is_met`` is None where there is no goal."""

    what: str
    ours: str
    peer: str
    against: str
    ratio: float
    goal: str = ""
    is_met: bool | None = None


HEAD = ("figure", "ours", "peer", "ratio", "goal", "", "the peer")


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.0f} ns"


def _latency(url: str) -> Iterator[Figure]:
    found = uvloop.run(latency.measure(url))
    against = "core NATS, the same bytes, the same two processes"
    for name, goal in (("p50", ""), ("p99", "≤ 1.5 x")):
        ours, core = getattr(found.visible, name), getattr(found.core, name)
        what, is_met = f"publish to visible on a peer, {name}", ours <= 1.5 * core if goal else None
        stream = getattr(found.stream, name) / getattr(found.bare, name)
        note = f"; JetStream by itself is {stream:.2f} times core at {name}"
        yield Figure(what, _time(ours), _time(core), against + note, ours / core, goal, is_met)


def _catching_up(url: str) -> Iterator[Figure]:
    ours, bare = uvloop.run(catching_up.measure(url))
    what = f"a new replica ready, {catching_up.COUNT:,} running"
    against = "a bare nats-py reading the same messages"
    yield Figure(what, _time(ours), _time(bare), against, ours / bare, "≤ 0.5 s", ours <= 0.5)


def _counting(url: str) -> Iterator[Figure]:
    debounced, call, published, publish = uvloop.run(counting.measure(url))
    against = "a Python call that adds under a lock"
    what = "a byte tick, debounced"
    yield Figure(what, _time(debounced), _time(call), against, debounced / call, "≤ 1 µs", debounced <= 1e-6)
    against = "nats-py's own acknowledged publish"
    yield Figure("a byte tick that publishes, CPU", _time(published), _time(publish), against, published / publish)


def _following(url: str) -> Iterator[Figure]:
    ours, bare, rate = uvloop.run(following.measure(url))
    what = f"a replica follows {rate:,.0f} ticks a second"
    against = "a bare nats-py subscriber of the same messages"
    yield Figure(what, f"{ours:.1%} of a core", f"{bare:.1%}", against, ours / bare, "≤ 5 %", ours <= 0.05)


def _listing(url: str) -> Iterator[Figure]:
    for found in uvloop.run(listing.measure(url)):
        is_list, when = not found.known, ", all ticking" if found.ticking else ""
        what = f"GET /api/operations, {listing.COUNT:,} rows{when}" if is_list else f"the same, If-None-Match{when}"
        against = f"a constant body of {found.size:,} bytes, same server" if is_list else "a constant 304, same server"
        goal, is_met = ("≥ 0.9 x", found.ratio >= 0.9) if is_list else ("", None)
        yield Figure(what, f"{found.ours:,.0f}/s", f"{found.peer:,.0f}/s", against, found.ratio, goal, is_met)


def _streaming(url: str) -> Iterator[Figure]:
    ours, bare = uvloop.run(streaming.measure(url))
    what, against = f"{streaming.CLIENTS:,} event-stream clients", "a bare fan-out of the same bytes, same server"
    memory = f"{ours.memory / 1024:.1f} KiB", f"{bare.memory / 1024:.1f} KiB"
    yield Figure(f"{what}, memory of each", *memory, against, ours.memory / bare.memory)
    for name in ("p50", "p99"):
        mine, theirs = getattr(ours.delay, name), getattr(bare.delay, name)
        yield Figure(f"{what}, delay {name}", _time(mine), _time(theirs), against, mine / theirs)


FIGURES: tuple[Callable[[str], Iterator[Figure]], ...] = (
    _latency, _catching_up, _counting, _following, _listing, _streaming,
)  # fmt: skip


def _cells(figure: Figure) -> tuple[str, ...]:
    met = {True: "met", False: "MISSED", None: ""}[figure.is_met]
    return (figure.what, figure.ours, figure.peer, f"{figure.ratio:.2f}", figure.goal, met, figure.against)


def _line(cells: tuple[str, ...]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, (46, 15, 12, 6, 8, 6, 0), strict=True))


def _machine() -> str:
    load = os.getloadavg()[0]
    return f"{os.cpu_count()} cores, Python {platform.python_version()}, load {load:.1f} when it began"


def _markdown(figures: list[Figure], machine: str) -> str:
    lines = [HEAD, tuple("---" for _ in HEAD), *map(_cells, figures)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"`make bench`: {machine}.\n\n{table}\n"


def main() -> int:
    """Measure everything, print each line as it comes, and write the table if that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--markdown", type=Path, help="write the table into this file, too")
    names = {measure.__name__.strip("_"): measure for measure in FIGURES}
    parser.add_argument("--only", nargs="+", choices=names, default=list(names), help="some of the figures")
    parser.add_argument("--times", type=int, default=1, help="measure everything so often, by turns")
    options = parser.parse_args()
    machine, figures = _machine(), []
    print(f"{machine}\n{_line(HEAD)}")
    for measure in options.times * [names[name] for name in options.only]:
        with nats_server() as url:
            for figure in measure(url):
                figures.append(figure)
                print(_line(_cells(figure)), flush=True)
    if options.markdown:
        options.markdown.write_text(_markdown(figures, machine))
    return 0


if __name__ == "__main__":
    sys.exit(main())
