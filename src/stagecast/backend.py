"""A backend: the model server that a worker runs as a child process, from its start to its end.

Only the end of the process is its death: a backend that is busy and answers nobody for a while is left alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import aiohttp

from stagecast.errors import BackendFailed
from stagecast.leash import leashed
from stagecast.listening import listener
from stagecast.loopback import HOST, free_port
from stagecast.output import Output
from stagecast.recipes import Recipe

TICK: Final = 1.0
"""Seconds between two signs of life while a backend loads."""
GRACE: Final = 5.0
"""Seconds that a backend has to end by itself after SIGTERM."""
PORTS: Final = 3
"""Ports to try while each is taken by somebody else before the backend listens on it."""

_HEALTH_INTERVALS: Final = (0.1, 1.0)
_Spawn = Callable[[int, int], Awaitable[asyncio.subprocess.Process]]
"""Starts the process for (port, descriptor of its output)."""


class Backend:
    """One process of a model server. ``instance`` is its own for ever; ``url`` is its base URL."""

    def __init__(self, spawn: _Spawn, log: Path) -> None:
        self.instance = secrets.token_hex(8)
        self._spawn, self._log, self._port = spawn, log, 0
        self._output = Output(log)
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """Its base URL. It may change until the backend is ready, where somebody else took the port."""
        return f"http://{HOST}:{self._port}"

    @property
    def pid(self) -> int:
        """The id of its process, and of the process group; 0 before its start."""
        return self._process.pid if self._process else 0

    @property
    def lines(self) -> tuple[str, ...]:
        """What it said last: 50 lines at most."""
        return tuple(self._output.lines)

    @property
    def last_line(self) -> str:
        """The last of its lines, or nothing."""
        return self._output.lines[-1] if self._output.lines else ""

    async def until_ready(
        self, recipe: Recipe, tell: Callable[[str], None], quiet: Callable[[bool], None] = lambda _: None
    ) -> None:
        """Return once it answers its health check; ``tell`` gets its last line about once a second.

        ``quiet`` is told then whether it has given no sign of life in that second.

        Raises:
            BackendFailed: it ended, or showed no sign of progress for the recipe's patience.
        """
        for port in range(PORTS):
            if port > 0:
                await self.stop()
                await self.launch()
            with contextlib.suppress(_PortTaken):
                await self._load(recipe, tell, quiet)
                return
        raise BackendFailed(
            f"{recipe.name} got none of {PORTS} ports, the last {self._port}: others listen there; "
            "see that its command uses {port}, then retry"
        )

    async def wait(self) -> int:
        """Wait for the process to end; return its exit code, or minus the signal's number."""
        code = await self._process.wait() if self._process else 0
        # What it said last may still be in the pipe; a child that it left behind may hold that open.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await self._output.closed.wait()
        return code

    async def ended(self) -> str:
        """Wait for the process to end; return how it did, for people."""
        return f"it ended with {_ending(await self.wait())}: {self._tail()}"

    async def launch(self) -> None:
        """Start the process on a port of its own. Raises `BackendFailed`."""
        self._port = free_port()
        self._output = Output(self._log)
        reader, writer = os.pipe()
        try:
            await self._output.attach(reader)
            self._process = await self._spawn(self._port, writer)
        except OSError as error:
            raise BackendFailed(f"the backend's process cannot be started: {error}") from error
        finally:
            os.close(writer)

    async def stop(self) -> None:
        """End the process and its children: gently, then not. A cancellation cuts the grace short."""
        try:
            if self._process is not None:
                await self._end(self._process)
        finally:
            self._output.detach()

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        try:
            _signal(process.pid, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GRACE):
                    await process.wait()
        finally:
            _signal(process.pid, signal.SIGKILL)
            await process.wait()

    async def _load(self, recipe: Recipe, tell: Callable[[str], None], quiet: Callable[[bool], None]) -> None:
        """Wait for health, for the end and for a second to pass, all at once. Raises `BackendFailed`, `_PortTaken`."""
        health = asyncio.create_task(self._until_healthy(recipe.health))
        death = asyncio.create_task(self.wait())
        try:
            while True:
                tell(self.last_line)
                quiet(self._output.silence() > TICK)
                await asyncio.wait({health, death}, timeout=TICK, return_when=asyncio.FIRST_COMPLETED)
                if death.done():
                    await self._explain(recipe, death.result())
                if health.done():
                    return health.result()
                if self._output.silence() > recipe.patience:
                    raise BackendFailed(
                        f"{recipe.name} showed no progress for {recipe.patience:g} s: {self._tail()}; "
                        f"see {self._log}, or give the recipe more patience"
                    )
        finally:
            health.cancel()
            death.cancel()
            await asyncio.gather(health, death, return_exceptions=True)

    async def _explain(self, recipe: Recipe, code: int) -> None:
        """Raise the cause of an end before it was ready."""
        if await asyncio.to_thread(listener, self._port, self.pid) == "another":
            raise _PortTaken
        raise BackendFailed(f"{recipe.name} ended with {_ending(code)}: {self._tail()}")

    async def _until_healthy(self, path: str) -> None:
        interval, longest = _HEALTH_INTERVALS
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
            while not await self._is_healthy(session, path):
                await asyncio.sleep(interval)
                interval = min(interval * 1.1, longest)

    async def _is_healthy(self, session: aiohttp.ClientSession, path: str) -> bool:
        """Tell whether our own process answers 200. Raises `_PortTaken` where another one answers."""
        status = await _status(session, self.url + path)
        if status == 0:
            return False
        self._output.hear()
        found = await asyncio.to_thread(listener, self._port, self.pid)
        if found == "another":
            raise _PortTaken
        return found == "ours" and status == 200

    def _tail(self) -> str:
        return " | ".join(self.lines[-5:]) or "it said nothing"


@asynccontextmanager
async def running(recipe: Recipe, model: str, path: Path, logs: Path) -> AsyncGenerator[Backend, None]:
    """Start a backend and yield it; it is not ready yet. It does not outlive the block, nor this process.

    Enter it on the main thread: the process ends when the thread that started it does.

    Raises:
        BackendFailed: its program cannot be started.
    """

    async def spawn(port: int, output: int) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *leashed(recipe.arguments(model, path, HOST, port)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=recipe.working_directory,
            env={**os.environ, **recipe.environment},
            start_new_session=True,
        )

    backend = Backend(spawn, logs / f"{model}.log")
    try:
        await backend.launch()
        yield backend
    finally:
        await backend.stop()


class _PortTaken(Exception):
    """Another process listens on the backend's port."""


async def _status(session: aiohttp.ClientSession, url: str) -> int:
    try:
        async with session.get(url, allow_redirects=False) as response:
            return response.status
    except (aiohttp.ClientError, OSError, TimeoutError):
        return 0


def _signal(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    why = " (perhaps for want of memory)" if -code == signal.SIGKILL else ""
    return f"signal {signal.Signals(-code).name}{why}"
