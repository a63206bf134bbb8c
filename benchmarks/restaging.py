"""What it costs to stage a model that is there already, beside reading it: each a median, in one run.

    .venv/bin/python benchmarks/restaging.py [--size 2GiB] [--files 8] [--times 21] [--folder DIR]

A real process alone (`stagecast serve`) with a model of so many files. Measured from the request to the row that says
``succeeded``, with what the process has read by then: /proc/PID/io counts every byte of every read of a file, also of
what the system remembers. Goal (issue 4, section 4): at most 50 ms, and no read of the model's bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from stagecast.client import Client
from stagecast.following import follow
from stagecast.quantities import format_size, parse_size
from stagecast.store import Store

GOAL = 0.050


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=parse_size, default=parse_size("2GiB"))
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--times", type=int, default=21)
    parser.add_argument("--folder", help="where the model lies (default: the system's folder for such)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        models = Path(folder, "models")
        lay_out(models / "m", options.size, options.files)
        began = time.perf_counter()
        manifest = Store(models, Path(folder, "data")).manifest("m")
        hashed = time.perf_counter() - began
        asked = look_up(models, Path(folder, "data"), options.times)
        with serving(Path(folder)) as (url, process):
            took, read = asyncio.run(restage(url, process, options.times))
    median, size = statistics.median(took), format_size(manifest.size)
    print(f"a model of {size} in {options.files} files, {options.times} times; load {os.getloadavg()[0]:.1f}")
    row("", "median", "worst", "read")
    row("reading and hashing it (adoption, once)", milliseconds(hashed), "", size)
    row("asking the store whether it is there", milliseconds(statistics.median(asked)), milliseconds(max(asked)), "")
    row(
        "staging it again, request to succeeded", milliseconds(median), milliseconds(max(took)),
        format_size(read // options.times),
    )  # fmt: skip
    verdict = "met" if median <= GOAL else "MISSED"
    print(f"{hashed / median:.0f} times faster than reading it; goal of {GOAL * 1e3:.0f} ms {verdict}")
    sys.exit(0 if median <= GOAL and read < manifest.size / 100 else 1)


def row(what: str, *cells: str) -> None:
    print(f"{what:42}" + "".join(f"{cell:>12}" for cell in cells))


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"


def lay_out(model: Path, size: int, files: int) -> None:
    model.mkdir(parents=True)
    block = os.urandom(1024 * 1024)
    for number in range(files):
        with (model / f"shard-{number:03}").open("wb") as file:
            for at in range(0, size // files, len(block)):
                file.write(block[: size // files - at])


def look_up(models: Path, data: Path, times: int) -> list[float]:
    """Return how long a process takes that has just started, each time, to say that the model is there."""
    took = []
    for _ in range(times):
        store = Store(models, data)
        began = time.perf_counter()
        assert store.recorded("m") is not None
        took.append(time.perf_counter() - began)
    return took


async def restage(url: str, process: int, times: int) -> tuple[list[float], int]:
    took: list[float] = []
    async with Client(url) as client:
        for number in range(times + 1):
            if number == 1:
                before = read_by(process)
            began = time.perf_counter()
            rows = await client.stage("m")
            async with contextlib.aclosing(follow(client, rows)) as words:
                ended = [row async for row in words][-1:] or rows
            if number:
                took.append(time.perf_counter() - began)
            assert ended[-1].state == "succeeded", ended
    return took, read_by(process) - before


def read_by(process: int) -> int:
    lines = dict(line.split(": ") for line in Path(f"/proc/{process}/io").read_text().splitlines())
    return int(lines["rchar"])


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[tuple[str, int]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        str(Path(sys.executable).parent / "stagecast"), "serve", "--listen", f"127.0.0.1:{port}",
        "--models", str(folder / "models"), "--data", str(folder / "data"), "--name", "here",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield f"http://127.0.0.1:{port}", until_ready(port, process.pid)
        finally:
            process.terminate()


def until_ready(port: int, process: int) -> int:
    for _ in range(400):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            if b" 200 " in connection.recv(4096):
                return process
        time.sleep(0.05)
    raise RuntimeError("the replica did not get ready")


if __name__ == "__main__":
    main()
