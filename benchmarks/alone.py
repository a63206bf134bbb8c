"""What it costs a process alone to outlive itself: its log in a file beside the one in memory, and bare SQLite.

    .venv/bin/python benchmarks/alone.py [--seconds 5] [--operations 100]

Every operation ticks as fast as it is acknowledged, then all of them once a second while a neighbour fills the disk.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from stagecast.bus import Log
from stagecast.bus.memory import MemoryLog
from stagecast.bus.sqlite import opened

PAYLOAD = b"x" * 700  # a record in its broadcast


@asynccontextmanager
async def in_memory(_: Path) -> AsyncIterator[Log]:
    yield MemoryLog()


@asynccontextmanager
async def in_file(folder: Path) -> AsyncIterator[Log]:
    async with opened(folder / "log") as bus:
        yield bus.log


def bare_commits(folder: Path, seconds: float) -> list[float]:
    """Return how long each of many commits of one row takes, in the same mode of SQLite, in seconds."""
    connection = sqlite3.connect(folder / "bare", isolation_level=None)
    for pragma in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = NORMAL"):
        connection.execute(f"PRAGMA {pragma}")
    connection.execute("CREATE TABLE word (subject TEXT PRIMARY KEY, payload BLOB)")
    took, end = [], time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("REPLACE INTO word VALUES (?, ?)", (f"staging.{len(took) % 100}.progress", PAYLOAD))
        connection.execute("COMMIT")
        took.append(time.perf_counter() - began)
    connection.close()
    return took


async def ticks(log: Log, operations: int, seconds: float, interval: float) -> tuple[list[float], list[float], float]:
    """Return how long each append took, how late the loop was, and the processor's seconds of an append."""
    took: list[float] = []
    late: list[float] = []
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds

    async def tick(number: int) -> None:
        await asyncio.sleep(interval * number / operations)
        while loop.time() < end:
            began = time.perf_counter()
            await log.append(f"staging.{number}.progress", PAYLOAD)
            took.append(time.perf_counter() - began)
            await asyncio.sleep(interval)

    async def watch() -> None:
        while loop.time() < end:
            due = loop.time() + 0.005
            await asyncio.sleep(0.005)
            late.append(loop.time() - due)

    before = time.process_time()
    await asyncio.gather(watch(), *(tick(number) for number in range(operations)))
    return took, late, (time.process_time() - before) / len(took)


def fill(folder: Path, end: float) -> None:
    """Write to the same disk as fast as it takes it, as a transfer does."""
    block = os.urandom(8 * 1024 * 1024)
    while time.monotonic() < end:
        with (folder / "neighbour").open("wb") as file:
            for _ in range(32):
                file.write(block)
            os.fsync(file.fileno())


def show(name: str, values: list[float], more: str = "") -> None:
    ranked = sorted(values)
    p99, most = ranked[int(len(ranked) * 0.99)], ranked[-1]
    print(f"{name:<58} {statistics.median(values) * 1e6:8.0f} {p99 * 1e6:8.0f} {most * 1e3:9.1f}  {more}")


async def measure(
    make: Callable[[Path], AbstractAsyncContextManager[Log]], operations: int, seconds: float, *, busy: bool
) -> tuple[list[float], list[float], float]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with make(folder) as log:
            neighbour = asyncio.to_thread(fill, folder, time.monotonic() + seconds) if busy else asyncio.sleep(0)
            filling = asyncio.create_task(neighbour)  # type: ignore[arg-type]
            measured = await ticks(log, operations, seconds, 1.0 if busy else 0.0)
            await filling
            return measured


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--operations", type=int, default=100)
    given = parser.parse_args()
    print(f"{'':<58} {'p50 µs':>8} {'p99 µs':>8} {'most ms':>9}")
    with tempfile.TemporaryDirectory() as name:
        bare = bare_commits(Path(name), given.seconds)
    show("bare SQLite, a commit of one row", bare)
    one, _, _ = await measure(in_file, 1, given.seconds, busy=False)
    show("in the file, one writer: acknowledged", one, f"{statistics.median(one) / statistics.median(bare):.1f} x bare")
    many, _, cost = await measure(in_file, given.operations, given.seconds, busy=False)
    show(f"in the file, {given.operations} writers: acknowledged", many, f"{len(many) / given.seconds:,.0f} a second")
    _, _, free = await measure(in_memory, given.operations, given.seconds, busy=False)
    print(f"{'processor time of an append, in the file and in memory':<58} {cost * 1e6:8.0f} {free * 1e6:8.0f}")
    for make, name in ((in_memory, "in memory"), (in_file, "in the file")):
        took, late, _ = await measure(make, given.operations, given.seconds, busy=True)
        show(f"{name}, a tick a second, disk being filled: acknowledged", took)
        show(f"{name}, a tick a second, disk being filled: loop late", late)


asyncio.run(main())
