"""A whole system for a test: every part its own process, all of it in one folder, and all of it gone afterwards."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
import yaml

from stagecast.client import Client
from stagecast.cluster import Cluster, ClusterSettings, cluster
from stagecast.following import follow
from stagecast.rows import Row

MB: Final = 1_000_000


@asynccontextmanager
async def deployment(data: Path, **options: Any) -> AsyncGenerator[Cluster, None]:
    """Run a cluster in ``data`` for as long as the block lasts, and see that no process of it is left then."""
    said: list[str] = []
    async with cluster(ClusterSettings(data=data, **options), said.append) as running:
        yield running
        seen = processes_of(data)
        assert {child.pid for child in running.children.values() if child.is_running} <= seen
    assert [pid for pid in seen | processes_of(data) if is_alive(pid)] == []
    assert said == [], "a process ended by itself"


def processes_of(data: Path) -> set[int]:
    """Return every process, backends too, that was started for the cluster in ``data``: its environment tells."""
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and f"XDG_DATA_HOME={data}\0".encode() in _environment(folder):
            found.add(int(folder.name))
    return found


def is_alive(pid: int) -> bool:
    """Tell whether a process runs, any thread of it: until the last one has ended its sockets are open."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        threads = len(list(Path(f"/proc/{pid}/task").iterdir()))
    except OSError:
        return False
    return state not in "ZX" or threads > 1


def lay_out_random(folder: Path, sizes: Mapping[str, int]) -> dict[str, bytes]:
    """Write files of random bytes, of those sizes, below ``folder``; return their contents by path."""
    contents = {path: os.urandom(size) for path, size in sizes.items()}
    for path, content in contents.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return contents


def write_backends(path: Path, **options: tuple[str, ...]) -> Path:
    """Write the file that says with which options a stand-in serves each model; return its path."""
    server = Path(__file__).parent / "backend_stand_in.py"
    recipes = [
        {"name": model, "match": model, "command": ["{python}", str(server), "--port", "{port}", *words]}
        for model, words in options.items()
    ]
    path.write_text(yaml.safe_dump({"backends": recipes}))
    return path


async def until_ended(client: Client, *rows: Row) -> list[Row]:
    """Return the last word on each of these operations, in the same order."""
    return await _followed(client, rows, lambda _: False)


async def until_percent(client: Client, percent: float, *rows: Row) -> list[Row]:
    """Return where these operations stand once ``percent`` of all their bytes have come."""

    def is_there(held: list[Row]) -> bool:
        total = sum(row.total_bytes for row in held)
        return total > 0 and 100 * sum(row.current_bytes for row in held) >= percent * total

    held = await _followed(client, rows, is_there)
    assert is_there(held), held
    return held


async def _followed(client: Client, rows: tuple[Row, ...], is_enough: Callable[[list[Row]], bool]) -> list[Row]:
    held = {row.job_id: row for row in rows}
    async with asyncio.timeout(60), aclosing(follow(client, rows)) as words:
        async for word in words:
            held[word.job_id] = word
            if is_enough(list(held.values())):
                break
    return list(held.values())


async def metric(running: Cluster, name: str, *children: str) -> float:
    """Return the sum of a metric over processes."""
    headers = {"Authorization": f"Bearer {running.token}"}
    total = 0.0
    async with aiohttp.ClientSession(headers=headers) as session:
        for child in children:
            async with session.get(f"{running.children[child].url}/metrics") as response:
                lines = (await response.text()).splitlines()
            total += sum(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))
    return total


async def until_known(client: Client, model: str, *nodes: str) -> None:
    """Return once these nodes are known to hold a model whole."""
    async with asyncio.timeout(60):
        while not set(nodes) <= await _holders(client, model):
            await asyncio.sleep(0.02)


async def _holders(client: Client, model: str) -> set[str]:
    found = [each for each in await client.models() if each.name == model]
    return {holder.node for each in found for holder in each.holders if holder.complete}


def _environment(folder: Path) -> bytes:
    try:
        return (folder / "environ").read_bytes()
    except OSError:
        return b""
