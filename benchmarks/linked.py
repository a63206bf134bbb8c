"""Nodes of the fan-out, each a process in a network namespace behind a link of its own, and what they take."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from chaos.network import Network, network
from stagecast.manifest import Manifest, ManifestFile, file_digest
from stagecast.store import Store

SCRIPT = Path(__file__).parent / "fanning.py"
SLOWER = 10
"""By how many times the link of a slow worker is slower."""


class Case(NamedTuple):
    """What is done: ``slow`` workers have a tenth of the rate; half way ``late`` ones join, ``dying`` ones are killed,
    and ``cut`` ones are cut off from everybody without a word.
    """

    workers: int
    slow: int = 0
    late: int = 0
    dying: int = 0
    cut: int = 0

    @property
    def words(self) -> str:
        named = (
            ("ten times slower", self.slow), ("joined half way", self.late), ("killed half way", self.dying),
            ("cut off half way", self.cut),
        )  # fmt: skip
        return "".join(f", {count} {word}" for word, count in named if count)

    @property
    def lost(self) -> int:
        """How many of them, the first ones, do not get to the end or are not waited for."""
        return self.slow + self.dying + self.cut


class Run(NamedTuple):
    """Seconds until the last of those who count had published; models that left the origin's link and all workers';
    and how many cores were busy meanwhile, with everything on this machine and with the nodes that were not killed.
    """

    seconds: float
    origin: float
    workers: float
    busy: float
    ours: float


class Node:
    """A process in a namespace; ``rate`` in bytes per second, of its link, in each direction."""

    def __init__(self, net: Network, name: str, folder: Path, rate: float) -> None:
        place = net.placed(name, (sys.executable, str(SCRIPT), str(folder), net.host(name)))
        self.name = name
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

    def processor_seconds(self) -> float:
        """Return what the process has used so far; 0 once it is gone."""
        if self.process.returncode is not None:
            return 0.0
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def make_small_files(folder: Path, count: int, size: int) -> Manifest:
    """Lay a model of so many files of ``size`` random bytes each out, recorded; return its manifest."""
    from blake3 import blake3

    base = folder / "models" / "model"
    base.mkdir(parents=True)
    entries = []
    for number in range(count):
        content = os.urandom(size)
        pieces = (blake3(content).hexdigest(),)
        (base / f"{number:06}").write_bytes(content)
        entries.append(ManifestFile(path=f"{number:06}", size=size, digest=file_digest(pieces, size), pieces=pieces))
    manifest = Manifest(model="model", files=tuple(entries))
    Store(folder / "models", folder / "data").record(manifest)
    return manifest


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


def measure(case: Case, root: Path, origin: Path, manifest: Manifest, rate: float) -> Run:
    """Run a case once, on new nodes."""
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
        idle, began, used = _idle_seconds(), time.monotonic(), _used(first, *nodes)
        seconds = _done(case, net, first, nodes, manifest, manifest.size / rate / 2)
        lasted = time.monotonic() - began
        busy = (os.cpu_count() or 1) - (_idle_seconds() - idle) / lasted
        ours = (_used(first, *nodes) - used) / lasted
        sent = [net.sent(each.name) / manifest.size for each in (first, *nodes)]
    return Run(seconds, sent[0], sum(sent[1:]), busy, ours)


def _done(case: Case, net: Network, first: Node, nodes: list[Node], manifest: Manifest, half: float) -> float:
    """Let them all receive, and what is to happen in the middle happen; return the seconds that it took."""
    urls = [each.url for each in nodes]
    early = case.workers - case.late

    def begin(number: int) -> float:
        peers = [url for url in urls if url != urls[number]]
        nodes[number].tell(origin=first.url, peers=peers, digest=manifest.digest)
        return time.monotonic()

    starts = [begin(number) for number in range(early)]
    if case.late or case.dying or case.cut:
        time.sleep(half)
    for each in nodes[case.slow : case.slow + case.dying]:
        each.close()
    for each in nodes[case.slow + case.dying : case.lost]:
        net.cut(each.name, [other.name for other in (first, *nodes) if other is not each])
    starts += [begin(number) for number in range(early, case.workers)]
    # Monotonic time is the same in all processes of a machine.
    return max(nodes[number].hear()["ended"] - starts[number] for number in range(case.lost, case.workers))


def _used(*nodes: Node) -> float:
    return sum(each.processor_seconds() for each in nodes)


def _idle_seconds() -> float:
    fields = Path("/proc/stat").read_text().splitlines()[0].split()
    return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")
