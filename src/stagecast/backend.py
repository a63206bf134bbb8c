"""A backend: the model server that a worker runs as a child process, from its start to its end.

Only the end of the process is its death: a backend that is busy and answers nobody for a while is left alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import aiohttp

from stagecast.errors import BackendFailed
from stagecast.leash import leashed
from stagecast.recipes import Recipe

HOST: Final = "127.0.0.1"
HEALTH_INTERVAL: Final = 0.1
GRACE: Final = 5.0
"""Seconds that a backend has to end by itself after SIGTERM."""
KEPT_LINES: Final = 50
FIRST_DELAY: Final = 0.5
LONGEST_DELAY: Final = 30.0
STEADY: Final = 60.0
"""Seconds of running after which a backend's earlier deaths are forgotten."""


class Backend:
    """One process of a model server. ``instance`` is its own for ever; ``url`` is its base URL."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, log: Path) -> None:
        self.instance = secrets.token_hex(8)
        self.url = f"http://{HOST}:{port}"
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self.lines_seen = 0
        self._process = process
        self._port = port
        self._log = log

    @property
    def last_line(self) -> str:
        """What it said last."""
        return self.lines[-1] if self.lines else ""

    async def until_ready(self, recipe: Recipe, tell: Callable[[str], None]) -> None:
        """Return once it answers its health check; ``tell`` gets a sign of life about once a second.

        Raises:
            BackendFailed: it ended, or showed no sign of progress for the recipe's patience.
        """
        loop = asyncio.get_running_loop()
        seen, changed, told = -1, loop.time(), float("-inf")
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
            while not (await self._is_healthy(session, recipe.health) and self._owns_port()):
                if self._process.returncode is not None:
                    raise BackendFailed(f"{recipe.name} ended with {_ending(self._process.returncode)}: {self._tail()}")
                now = loop.time()
                if self.lines_seen != seen:
                    seen, changed = self.lines_seen, now
                if now - changed > recipe.patience:
                    raise BackendFailed(f"{recipe.name} showed no progress for {recipe.patience:.0f} s: {self._tail()}")
                if now - told >= 1.0:
                    told = now
                    tell(self.last_line)
                await asyncio.sleep(HEALTH_INTERVAL)

    async def ended(self) -> str:
        """Wait for the process to end; return how it did, for people."""
        code = await self._process.wait()
        return f"it ended with {_ending(code)}: {self._tail()}"

    async def listen(self) -> None:
        """Keep the log and the last lines, until the process closes its output."""
        assert self._process.stdout is not None  # noqa: S101  # it was opened as a pipe
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            while chunk := await self._process.stdout.read(65536):
                log.write(chunk)
                log.flush()
                for line in chunk.decode("utf-8", "replace").splitlines():
                    if line.strip():
                        self.lines.append(line.strip()[:300])
                        self.lines_seen += 1

    async def stop(self) -> None:
        """End the process and its children: gently, then not."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            try:
                async with asyncio.timeout(GRACE):
                    await self._process.wait()
                    break
            except TimeoutError:
                continue
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def _is_healthy(self, session: aiohttp.ClientSession, path: str) -> bool:
        try:
            async with session.get(self.url + path) as response:
                return response.status == 200
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False

    def _owns_port(self) -> bool:
        """Tell whether who listens on the port is a process of ours: a recycled port answers for another model."""
        sockets = _listening_sockets(self._port)
        for pid in _group(self._process.pid):
            with contextlib.suppress(OSError):
                for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                    with contextlib.suppress(OSError):
                        if str(descriptor.readlink()) in sockets:
                            return True
        return False

    def _tail(self) -> str:
        return " | ".join(list(self.lines)[-5:]) or "it said nothing"


@asynccontextmanager
async def running(recipe: Recipe, model: str, path: Path, logs: Path) -> AsyncGenerator[Backend, None]:
    """Start a backend and yield it; it is not ready yet. It does not outlive the block, nor this process.

    Raises:
        BackendFailed: its program cannot be started.
    """
    port = _free_port()
    try:
        process = await asyncio.create_subprocess_exec(
            *leashed(recipe.arguments(model, path, HOST, port)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=recipe.working_directory,
            env={**os.environ, **recipe.environment},
            start_new_session=True,
        )
    except OSError as error:
        raise BackendFailed(f"{recipe.name} cannot be started: {error}") from error
    backend = Backend(process, port, logs / f"{model}.log")
    listener = asyncio.create_task(backend.listen())
    try:
        yield backend
    finally:
        await asyncio.shield(backend.stop())
        await asyncio.wait([listener], timeout=1.0)
        listener.cancel()
        await asyncio.gather(listener, return_exceptions=True)


def delay(deaths: int) -> float:
    """Return the seconds to wait before a start that follows ``deaths`` deaths in a row."""
    return 0.0 if deaths == 0 else min(FIRST_DELAY * 2.0 ** min(deaths - 1, 16), LONGEST_DELAY)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _listening_sockets(port: int) -> set[str]:
    """Return the sockets that listen on a port, as /proc/<pid>/fd names them (proc(5))."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    found.add(f"socket:[{fields[9]}]")
    return found


def _group(leader: int) -> list[int]:
    """Return the processes of a process group."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if os.getpgid(int(entry.name)) == leader:
                    found.append(int(entry.name))
    return found


def _ending(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
