"""The time for N workers beside the time for one, measured between network namespaces, and simulated beyond that.

    python benchmarks/fanout.py [--workers 1 2 4 8 16] [--simulated 100 1000] [--size MIB] [--rate MB/S] [--write]

Each node is a process (`fanning.py`) in a namespace of its own, behind a link that `tc tbf` holds to the rate in each
direction; the origin has one like everybody. That needs root, iproute2, and room for N + 1 models in ``--folder``.
``--write`` puts the table into docs/scale.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from swarm import Plan, Simulation

sys.path.insert(0, str(Path(__file__).parent.parent))

from chaos.network import Network, network  # a sibling of this folder
from stagecast.manifest import Manifest, ManifestFile, file_digest
from stagecast.store import Store

PAGE = Path(__file__).parent.parent / "docs" / "scale.md"
BEGIN, END = "<!-- made by benchmarks/fanout.py: begin -->", "<!-- made by benchmarks/fanout.py: end -->"
MIB = 1 << 20
SLOWER = 10
HEAD = (
    "| what | workers | seconds for one | seconds for all | ratio | origin sent, models | workers sent, models |\n"
    "|---|---|---|---|---|---|---|\n"
)


class Case(NamedTuple):
    """What is done: ``slow`` workers have a tenth of the rate, ``late`` ones join half way, ``dying`` ones die then."""

    workers: int
    slow: int = 0
    late: int = 0
    dying: int = 0

    @property
    def words(self) -> str:
        named = (("ten times slower", self.slow), ("joined half way", self.late), ("died half way", self.dying))
        return "".join(f", {count} {word}" for word, count in named if count)


class Node:
    """A process in a namespace; ``rate`` in bytes per second."""

    def __init__(self, net: Network, name: str, folder: Path, rate: float) -> None:
        place = net.placed(
            name, (sys.executable, str(Path(__file__).parent / "fanning.py"), str(folder), net.host(name))
        )
        self.process = subprocess.Popen(place, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.url = str(self.hear()["url"])
        bound = ("root", "tbf", "rate", f"{int(rate * 8)}bit", "burst", "256kb", "latency", "50ms")
        inner = net.placed(name, ("tc", "qdisc", "replace", "dev", "eth0", *bound))
        outer = ("tc", "qdisc", "replace", "dev", net.device(name), *bound)
        for command in (inner, outer):
            subprocess.run(command, check=True)

    def tell(self, **wish: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(wish) + "\n")
        self.process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return dict(json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def make_model(folder: Path, size: int, piece_size: int) -> Manifest:
    """Lay a model of random bytes out, recorded; return its manifest."""
    from blake3 import blake3

    (folder / "models").mkdir(parents=True)
    pieces = []
    with (folder / "models" / "model").open("wb") as file:
        for _ in range(0, size, piece_size):
            content = os.urandom(piece_size)
            pieces.append(blake3(content).hexdigest())
            file.write(content)
    entry = ManifestFile(path="model", size=size, digest=file_digest(tuple(pieces), size), pieces=tuple(pieces))
    manifest = Manifest(model="model", files=(entry,), single=True, piece_size=piece_size)
    Store(folder / "models", folder / "data").record(manifest)
    return manifest


@contextmanager
def cleared(folder: Path) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(dir=folder, prefix="fanout-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def measure(case: Case, root: Path, origin: Path, manifest: Manifest, rate: float) -> tuple[float, float, float]:
    """Return the seconds for all who are not slow and did not die, and the models that origin and workers sent."""
    with network() as net, cleared(root) as folder, ExitStack() as stack:

        def node(name: str, where: Path, its_rate: float) -> Node:
            made = Node(net, name, where, its_rate)
            stack.callback(made.close)
            return made

        first = node("origin", origin, rate)
        nodes = [
            node(f"worker-{number}", folder / str(number), rate / SLOWER if number < case.slow else rate)
            for number in range(case.workers)
        ]
        urls = [each.url for each in nodes]
        half = manifest.size / rate / 2
        early = case.workers - case.late

        def begin(number: int) -> None:
            peers = [url for url in urls if url != urls[number]]
            nodes[number].tell(origin=first.url, peers=peers, digest=manifest.digest)

        for number in range(early):
            begin(number)
        if case.late or case.dying:
            stack.enter_context(_waited(half))
        for each in nodes[: case.dying]:
            each.close()
        for number in range(early, case.workers):
            begin(number)
        counted = nodes[case.slow + case.dying :]
        seconds = max(each.hear()["seconds"] for each in counted)
        sent = []
        for each in (first, *counted):
            each.tell()
            sent.append(each.hear()["sent"] / manifest.size)
        return seconds, sent[0], sum(sent[1:])


@contextmanager
def _waited(seconds: float) -> Iterator[None]:
    import time

    time.sleep(seconds)
    yield


def row(what: str, workers: int, one: float, seconds: float, origin: float, others: float) -> str:
    return f"| {what} | {workers:,} | {one:.1f} | {seconds:.1f} | {seconds / one:.2f} | {origin:.2f} | {others:.2f} |\n"


def simulate(case: Case, pieces: int, piece_size: int, rate: float) -> str:
    plan = Plan(case.workers, pieces, piece_size, rate, case.slow, case.late, case.dying)
    outcome = Simulation(plan).run()
    size = pieces * piece_size
    seconds = max(outcome.seconds[case.slow :])
    what = f"simulated{case.words}"
    return row(what, case.workers, plan.alone, seconds, outcome.origin / size, outcome.workers / size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4, 8, 16])
    parser.add_argument("--simulated", type=int, nargs="*", default=[1, 8, 16, 100, 1000])
    parser.add_argument("--size", type=int, default=512, help="MiB of the model")
    parser.add_argument("--piece", type=int, default=4, help="MiB of a piece")
    parser.add_argument("--rate", type=float, default=25.0, help="MB/s of every link")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"))
    parser.add_argument(
        "--mishaps", type=int, nargs="*", default=[8], help="workers of the runs in which one has bad luck"
    )
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    size, piece_size, rate = options.size * MIB, options.piece * MIB, options.rate * 1e6
    lines: list[str] = []

    def note(line: str) -> None:
        print(line, end="", flush=True)
        lines.append(line)

    print(HEAD, end="")
    with cleared(options.folder) as root:
        manifest = make_model(root / "origin", size, piece_size) if options.workers or options.mishaps else None
        one = 0.0
        cases = [Case(number) for number in dict.fromkeys([1, *options.workers])]
        for number in options.mishaps:
            cases += [Case(number, slow=1), Case(number, late=2), Case(number, dying=1)]
        for case in cases if manifest else []:
            seconds, origin, others = measure(case, root, root / "origin", manifest, rate)
            one = one or seconds
            note(row(f"measured{case.words}", case.workers, one, seconds, origin, others))
    for number in options.simulated:
        note(simulate(Case(number), size // piece_size, piece_size, rate))
    for number in options.mishaps:
        for case in (Case(number, slow=1), Case(number, late=2), Case(number, dying=1)):
            note(simulate(case, size // piece_size, piece_size, rate))
    if options.write:
        said = (
            f"`python benchmarks/fanout.py --write`: {options.size} MiB in {size // piece_size} pieces, each link "
            f"{options.rate:g} MB/s in each direction; {os.cpu_count()} cores.\n\n"
        )
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{said}{HEAD}{''.join(lines)}{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
