"""A backend: the model server that a worker runs as a child process, from its start to its end.

Only the end of the process is its death: a backend that is busy and answers nobody for a while is left alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import signal
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import aiohttp

from stagecast.errors import BackendFailed, StagecastError
from stagecast.leash import leashed
from stagecast.loopback import HOST, free_port
from stagecast.recipes import Recipe

TICK: Final = 1.0
"""Seconds between two signs of life while a backend loads."""
GRACE: Final = 5.0
"""Seconds that a backend has to end by itself after SIGTERM."""
KEPT_LINES: Final = 50
LOG_LIMIT: Final = 16 * 1024 * 1024
"""Bytes after which a log file makes room for a new one; the one before it is kept."""
PORTS: Final = 3
"""Ports to try while each is taken by somebody else before the backend listens on it."""
FIRST_DELAY: Final = 0.5
LONGEST_DELAY: Final = 30.0
STEADY: Final = 60.0
"""Seconds of serving after which a backend's earlier deaths are forgotten."""
MOST_FAILURES: Final = 5
"""Starts in a row that never got ready, after which a backend is given up."""

_LINE: Final = 300
_HEALTH_INTERVALS: Final = (0.1, 1.0)
_Spawn = Callable[[int, int], Awaitable[asyncio.subprocess.Process]]
"""Starts the process for (port, descriptor of its output)."""


class Backend:
    """One process of a model server. ``instance`` is its own for ever; ``url`` is its base URL."""

    def __init__(self, spawn: _Spawn, log: Path) -> None:
        self.instance = secrets.token_hex(8)
        self._spawn, self._log, self._port = spawn, log, 0
        self._output = _Output(log)
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

    async def until_ready(self, recipe: Recipe, tell: Callable[[str], None]) -> None:
        """Return once it answers its health check; ``tell`` gets its last line about once a second.

        Raises:
            BackendFailed: it ended, or showed no sign of progress for the recipe's patience.
        """
        for port in range(PORTS):
            if port > 0:
                await self.stop()
                await self.launch()
            with contextlib.suppress(_PortTaken):
                await self._load(recipe, tell)
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
            await asyncio.wait_for(self._output.closed.wait(), 1.0)
        return code

    async def ended(self) -> str:
        """Wait for the process to end; return how it did, for people."""
        return f"it ended with {_ending(await self.wait())}: {self._tail()}"

    async def launch(self) -> None:
        """Start the process on a port of its own. Raises `BackendFailed`."""
        self._port = free_port()
        self._output = _Output(self._log)
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
                await asyncio.wait_for(process.wait(), GRACE)
        finally:
            _signal(process.pid, signal.SIGKILL)
            await process.wait()

    async def _load(self, recipe: Recipe, tell: Callable[[str], None]) -> None:
        """Wait for health, for the end and for a second to pass, all at once. Raises `BackendFailed`, `_PortTaken`."""
        health = asyncio.create_task(self._until_healthy(recipe.health))
        death = asyncio.create_task(self.wait())
        try:
            while True:
                tell(self.last_line)
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
        if await asyncio.to_thread(_listener, self._port, self.pid) == "another":
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
        listener = await asyncio.to_thread(_listener, self._port, self.pid)
        if listener == "another":
            raise _PortTaken
        return listener == "ours" and status == 200

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


State = Literal["loading", "ready", "restarting", "failed"]


@dataclass(frozen=True)
class Deaths:
    """How a model's backends have ended so far. Pure.

    ``in_a_row``: since one last served steadily; ``failed_loads``: starts in a row that never got ready.
    """

    in_a_row: int = 0
    failed_loads: int = 0
    has_served: bool = False

    def after(self, ready_at: float | None, now: float) -> Deaths:
        """Return the history with one more end, ``now``, of a backend that was ready at ``ready_at``, or never."""
        if ready_at is None:
            return Deaths(self.in_a_row + 1, self.failed_loads + 1, self.has_served)
        return Deaths(1 if now - ready_at >= STEADY else self.in_a_row + 1, 0, has_served=True)

    def next_delay(self, tries: int = MOST_FAILURES) -> float | None:
        """Return the seconds until the next start, or None: a model that never loaded is not tried for ever."""
        return None if not self.has_served and self.failed_loads >= tries else delay(self.in_a_row)


def delay(deaths: int) -> float:
    """Return the seconds to wait before a start that follows ``deaths`` deaths in a row."""
    return 0.0 if deaths == 0 else min(FIRST_DELAY * 2.0 ** min(deaths - 1, 16), LONGEST_DELAY)


async def keep_running(
    run: Callable[[Callable[[], None]], Awaitable[str]],
    report: Callable[[State, str], None],
    *,
    tries: int = MOST_FAILURES,
) -> None:
    """Start a backend again whenever it ends, with back-off; return when it is given up.

    ``run(ready)`` runs one backend to its end, calls ``ready`` once it serves, and returns or raises (a
    `StagecastError`) how it ended. ``report`` gets each state with its detail: the cause, the time of the next try.
    """
    loop, deaths = asyncio.get_running_loop(), Deaths()
    ready_at: float | None = None

    def ready() -> None:
        nonlocal ready_at
        ready_at = loop.time()
        report("ready", "")

    while True:
        ready_at = None
        report("loading", "")
        try:
            ending = await run(ready)
        except StagecastError as error:
            ending = error.message
        deaths = deaths.after(ready_at, loop.time())
        pause = deaths.next_delay(tries)
        if pause is None:
            report("failed", ending)
            return
        report("restarting", f"{ending}; next try in {pause:g} s")
        await asyncio.sleep(pause)


class _PortTaken(Exception):
    """Another process listens on the backend's port."""


class _Output(asyncio.Protocol):
    """What a process says: all of it goes to a log file, its last lines are kept.

    Read for as long as the process lives, whatever becomes of the log: a full pipe would stop the process.
    """

    def __init__(self, log: Path) -> None:
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self.closed = asyncio.Event()
        self._log = log
        self._rest = b""
        self._transport: asyncio.BaseTransport | None = None
        self.hear()

    async def attach(self, reader: int) -> None:
        """Read from a pipe, and own it."""
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.connect_read_pipe(lambda: self, os.fdopen(reader, "rb", buffering=0))

    def detach(self) -> None:
        """Stop reading."""
        if self._transport is not None:
            self._transport.close()

    def hear(self) -> None:
        """Note a sign of life."""
        self._heard_at = asyncio.get_running_loop().time()

    def silence(self) -> float:
        """Return the seconds since the last sign of life."""
        return asyncio.get_running_loop().time() - self._heard_at

    def data_received(self, data: bytes) -> None:
        """Keep what it said; a progress bar that returns to its line's start counts as lines."""
        self.hear()
        with contextlib.suppress(OSError):
            self._write(data)
        *whole, rest = re.split(rb"[\r\n]+", self._rest + data)
        self._rest = rest[: _LINE * 4]
        self._keep(whole)

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that nothing more will come."""
        del exc
        self._keep([self._rest])
        self.closed.set()

    def _keep(self, lines: list[bytes]) -> None:
        texts = (line.decode("utf-8", "replace").strip()[:_LINE] for line in lines)
        self.lines.extend(text for text in texts if text)

    def _write(self, data: bytes) -> None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            log.write(data)
            size = log.tell()
        if size > LOG_LIMIT:
            self._log.replace(self._log.with_name(f"{self._log.name}.1"))


async def _status(session: aiohttp.ClientSession, url: str) -> int:
    try:
        async with session.get(url, allow_redirects=False) as response:
            return response.status
    except (aiohttp.ClientError, OSError, TimeoutError):
        return 0


def _signal(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def _listener(port: int, leader: int) -> Literal["nobody", "ours", "another"]:
    """Tell who listens on a port: a recycled port may answer for another model."""
    sockets = _listening_sockets(port)
    for pid in _session(leader) if sockets else ():
        with contextlib.suppress(OSError):
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if str(descriptor.readlink()) in sockets:
                        return "ours"
    # Looked at again, because ours may have ended since the first look.
    return "another" if sockets & _listening_sockets(port) else "nobody"


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


def _session(leader: int) -> list[int]:
    """Return the processes of a session: the backend and its children, whatever process groups they made."""
    found = []
    for pid in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
        with contextlib.suppress(OSError):
            if os.getsid(pid) == leader:
                found.append(pid)
    return found


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    why = " (perhaps for want of memory)" if -code == signal.SIGKILL else ""
    return f"signal {signal.Signals(-code).name}{why}"
