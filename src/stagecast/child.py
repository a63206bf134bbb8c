"""One child process of ours: started on a leash, waited for, started again when it ends by itself, and ended."""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from stagecast.errors import StagecastError
from stagecast.leash import leashed
from stagecast.quantities import format_duration

Probe = Callable[[], Awaitable[bool]]
Say = Callable[[str], None]

PATIENCE: Final = 60.0
"""Seconds that a child may take until it answers."""
STEADY: Final = 30.0
"""Seconds after which a child counts as having started well, so that its next end is the first of a new row."""
_LONGEST_BACK_OFF: Final = 30.0
_PROBE_INTERVAL: Final = 0.05
_LINES: Final = 15


class ChildFailed(StagecastError):
    """A child process did not come up. ``log`` holds its last lines."""

    code = "child_failed"

    def __init__(self, name: str, why: str, log: str) -> None:
        lines = f"; its last lines:\n{log}" if log else "; it said nothing"
        super().__init__(f"{name} {why}{lines}")


@dataclass(frozen=True, kw_only=True)
class Program:
    """What a child runs. ``probe`` tells whether it answers; ``grace``: seconds between SIGTERM and SIGKILL."""

    name: str
    command: tuple[str, ...]
    log: Path
    probe: Probe
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    folder: Path | None = None
    url: str = ""
    grace: float = 5.0


class Child:
    """``async with Child(program, say) as child``: it runs in the block, in a process group of its own.

    Enter it on the main thread: the leash is pulled when the thread that started the child ends.
    """

    def __init__(self, program: Program, say: Say) -> None:
        self.name = program.name
        self.url = program.url
        self._program = program
        self._say = say
        self._process: Process | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """Its process id, also after its end; 0 before its start."""
        return self._process.pid if self._process else 0

    @property
    def is_running(self) -> bool:
        """Whether the process has not ended."""
        return self._process is not None and self._process.returncode is None

    async def __aenter__(self) -> Child:
        """Start the process, without waiting for its first answer."""
        await self._spawn()
        return self

    async def __aexit__(self, *_: object) -> None:
        """End it: SIGTERM, grace, SIGKILL."""
        await self.stop()

    async def ready(self, patience: float = PATIENCE) -> None:
        """Wait until it answers; from then on it is started again when it ends by itself.

        Raises:
            ChildFailed: it ended, or did not answer for ``patience`` seconds.
        """
        try:
            async with asyncio.timeout(patience):
                while not await self._program.probe():
                    self._check_running()
                    await asyncio.sleep(_PROBE_INTERVAL)
        except TimeoutError:
            raise ChildFailed(self.name, f"did not answer for {format_duration(patience)}", self.tail()) from None
        self._check_running()
        self._keeper = asyncio.create_task(self._keep(), name=f"keeper of {self.name}")

    async def kill(self) -> None:
        """End it with SIGKILL, as a crash would; it stays down until `restart`."""
        await self._release()
        if self._process is not None and self.is_running:
            self._process.kill()
            await self._process.wait()

    def send(self, signal_number: int) -> None:
        """Send it a signal, if it runs: SIGSTOP and SIGCONT, for one that hangs and wakes."""
        if self._process is not None and self.is_running:
            self._process.send_signal(signal_number)

    async def restart(self) -> None:
        """End it if it runs, start it and wait until it answers. Raises `ChildFailed`."""
        await self.stop()
        await self._spawn()
        await self.ready()

    async def stop(self) -> None:
        """End it gently, and whatever it left in its process group. It stays down until `restart`."""
        await self._release()
        process = self._process
        if process is None or process.returncode is not None:
            return
        try:
            process.terminate()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._program.grace):
                    await process.wait()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        await process.wait()

    def tail(self, lines: int = _LINES) -> str:
        """Return the last lines of its log."""
        with suppress(OSError):
            return "\n".join(self._program.log.read_text(errors="replace").splitlines()[-lines:])
        return ""

    async def _spawn(self) -> None:
        with self._program.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *leashed(self._program.command),
                stdin=DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(self._program.environment),
                cwd=self._program.folder,
                start_new_session=True,
            )

    async def _keep(self) -> None:
        loop, failures = asyncio.get_running_loop(), 0
        while self._process is not None:
            started = loop.time()
            ending = describe_ending(await self._process.wait())
            failures = 1 if loop.time() - started > STEADY else failures + 1
            delay = back_off(failures)
            self._say(f"{self.name} {ending}; it is started again in {delay:g} s")
            await asyncio.sleep(delay)
            await self._spawn()

    async def _release(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait([keeper])

    def _check_running(self) -> None:
        if self._process is None or self._process.returncode is not None:
            code = self._process.returncode if self._process else None
            raise ChildFailed(self.name, describe_ending(code or 0), self.tail())


def back_off(failures: int) -> float:
    """Return the seconds to wait before the next start, after so many ends in a row."""
    return float(min(_LONGEST_BACK_OFF, 0.25 * 2 ** min(failures, 10)))


def describe_ending(code: int) -> str:
    """Return in words how a process ended."""
    if code >= 0:
        return f"ended with exit code {code}"
    return f"was ended by {signal.Signals(-code).name}"
