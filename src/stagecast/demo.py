"""The demo: everything on this machine, and the main job on a real model while a replica is killed.

Each step is held to a check; the exit code is 0 only if every one of them held.
"""

from __future__ import annotations

import asyncio
import fcntl
import importlib.util
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncGenerator, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from stagecast import demo_job, demo_model, display, operations
from stagecast.client import Client
from stagecast.cluster import LOCK, Cluster, ClusterSettings, cluster
from stagecast.demo_checks import BALANCER, Judge, Verdict, poll
from stagecast.demo_report import checks_of
from stagecast.demo_view import Check, View, summary
from stagecast.errors import StagecastError

_PREFIX: Final = "stagecast-demo-"
_UPSTREAM_RATE: Final = 60_000_000
"""Bytes per second that the gallery on this machine gives, so that the installation can be seen."""
_BALANCER_INTERVAL: Final = 1 / 40
_REPLICA_INTERVAL: Final = 1 / 15
_DRAW_INTERVAL: Final = 0.1
_SETTLING: Final = 3.0
"""Seconds at most for the last ends to reach every poller."""
_NEEDED: Final = ("numpy", "safetensors", "tokenizers")


class DemoIncomplete(StagecastError):
    """Something that the demo shows with is not here."""

    code = "demo_incomplete"

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"the demo needs {what}, which is not here; {remedy}")


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """``rate_limit``: bytes per second for each worker; ``port`` 0 takes a free one.

    ``cache`` defaults to `demo_model.default_cache`, ``data`` to a temporary folder that is removed afterwards.
    """

    rate_limit: int = 15_000_000
    keep: bool = False
    port: int = 0
    cache: Path | None = None
    data: Path | None = None
    replicas: int = 3
    workers: int = 2


async def run(settings: DemoSettings) -> int:
    """Run the demo; return 0 if every check held, else 1.

    Raises:
        StagecastError: it could not be run to its end; the message says why.
    """
    server = _backend_server()
    view = View()
    async with AsyncExitStack() as stack:
        view.say("Starting NATS, replicas, workers and a load balancer.")
        data = stack.enter_context(_data_folder(settings.data))
        folder = await asyncio.to_thread(demo_model.fetch, settings.cache or demo_model.default_cache())
        index = await stack.enter_async_context(demo_model.gallery(folder, _UPSTREAM_RATE))
        started = ClusterSettings(
            data=data,
            port=settings.port,
            replicas=settings.replicas,
            workers=settings.workers,
            rate_limit=settings.rate_limit,
            backends=write_backends(data, server),
        )
        running = await stack.enter_async_context(cluster(started, view.say))
        checks = await _show(running, index, view)
        all_held = all(check.held for check in checks)
        display.console().print(summary(checks))
        if not all_held:
            _print_logs(running)
        if settings.keep:
            view.say(f"It goes on until Ctrl-C; the page is at {running.url}/")
            await _interrupted()
    return 0 if all_held else 1


def write_backends(data: Path, server: Path) -> Path:
    """Write and return the file that says that ``server`` serves every model."""
    options = ("--model", "{path}", "--host", "{host}", "--port", "{port}", "--name", "{model}")
    recipe = {"name": "embeddings", "match": "*", "command": ["{python}", str(server), *options], "health": "/health"}
    path = data / "backends.yaml"
    path.write_text(yaml.safe_dump({"backends": [recipe]}, sort_keys=False))
    return path


async def _show(running: Cluster, index: str, view: View) -> list[Check]:
    view.say(f"Each its own process: {', '.join(running.children)}. The page is at {running.url}/")
    judge = Judge()
    try:
        async with Client(running.url) as client, _watched(running, judge, view):
            story = await demo_job.perform(running, client, index, view)
            verdict = await _judged(judge, client)
    except StagecastError:
        _print_logs(running)
        raise
    return checks_of(story, verdict, judge, [child.name for child in running.replicas if child.is_running],
                     [child.name for child in running.workers])  # fmt: skip


@asynccontextmanager
async def _watched(running: Cluster, judge: Judge, view: View) -> AsyncGenerator[None, None]:
    """Poll the balancer as a browser does, and each replica beside it, and draw what they answer."""
    async with AsyncExitStack() as stack:
        work: list[Coroutine[Any, Any, None]] = []
        for source, url, interval in (
            (BALANCER, running.url, _BALANCER_INTERVAL),
            *((replica.name, replica.url, _REPLICA_INTERVAL) for replica in running.replicas),
        ):
            client = await stack.enter_async_context(Client(url, patience=0))
            work.append(poll(client, source, judge, interval))
        stack.enter_context(view)
        await stack.enter_async_context(_beside(*work, _draw(running, judge, view)))
        yield


@asynccontextmanager
async def _beside(*work: Coroutine[Any, Any, None]) -> AsyncGenerator[None, None]:
    """Run endless work beside the block. What fails in it fails the block at its end."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.result()


async def _draw(running: Cluster, judge: Judge, view: View) -> None:
    while True:
        view.show(judge, running.replicas)
        await asyncio.sleep(_DRAW_INTERVAL)


async def _judged(judge: Judge, client: Client) -> Verdict:
    """Return the verdict once every source shows the end, or has had its time for that."""
    ended = {job for job in judge.jobs if (await client.operation(job)).state in operations.ENDED}
    deadline = asyncio.get_running_loop().time() + _SETTLING
    while not judge.is_quiet and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110  # polls change it
        await asyncio.sleep(_BALANCER_INTERVAL)
    return judge.verdict(ended)


async def _interrupted() -> None:
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, told.set)
    await told.wait()


def _backend_server() -> Path:
    server = Path(__file__).parents[2] / "examples" / "embeddings_server.py"
    if not server.exists():
        raise DemoIncomplete("examples/embeddings_server.py", "run it in a clone of the repository, with `make demo`")
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise DemoIncomplete(", ".join(missing), "install it with `pip install 'stagecast[demo]'`")
    return server


def _print_logs(running: Cluster) -> None:
    for child in running.children.values():
        print(f"--- {child.name}, last lines\n{child.tail(10)}", file=sys.stderr)


@contextmanager
def _data_folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given.absolute()
        return
    _sweep()
    made = Path(tempfile.mkdtemp(prefix=_PREFIX))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _sweep() -> None:
    """Remove what demos left that were killed: a folder whose lock nobody holds."""
    for lock in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{LOCK}"):
        with suppress(OSError), lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)
