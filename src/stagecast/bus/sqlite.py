"""The bus of one process alone whose logs survive it: in memory for whoever reads, in a file for the next process.

Writing is a thread's, so that a disk that is slow, or a checkpoint that waits for it, holds up only who waits for the
word that is written, never the loop. Whatever is said meanwhile goes into the next transaction together. Nobody hears
of a message before it is committed: a revision that anybody has seen is in the file.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from stagecast.bus import CaughtUp, Lost
from stagecast.bus.database import Change, Database, Stored
from stagecast.bus.memory import MemoryBus, MemoryLog
from stagecast.errors import AppendConflict, BusUnavailable, LogNotWritten
from stagecast.messages import Entry
from stagecast.settings import Bounds

_logger = logging.getLogger(__name__)

PROBE_INTERVAL: Final = 0.5
"""Seconds between two looks at whether a disk that took nothing more does again."""

_Result = TypeVar("_Result")


class _Request(NamedTuple):
    """Something to be written, and whom to tell its sequence."""

    log: SqliteLog
    subject: str
    payload: bytes
    expected: int | None
    done: asyncio.Future[int]


class SqliteLog(MemoryLog):
    """A log whose messages are in the file before anybody hears them."""

    def __init__(
        self, name: str, stored: Stored, pen: _Pen, clock: Callable[[], float], bounds: Bounds | None = None
    ) -> None:
        super().__init__(clock, bounds)
        self.name = name
        self._pen = pen
        self._identity = stored.identity
        self._last.update((entry.subject, entry) for entry in stored.entries)
        self._sequence = stored.sequence
        self._surplus: dict[str, None] = {}
        """What the file still has, and shall not."""
        self._expire()

    async def append(self, subject: str, payload: bytes, *, expected: int | None = None) -> int:
        """See `stagecast.bus.Log.append`. Raises `LogNotWritten` while the disk takes nothing."""
        return await self._pen.write(self, subject, payload, expected)

    async def remove(self, subject: str, through: int) -> None:
        """See `stagecast.bus.Log.remove`. It leaves the file with whatever is written next."""
        if 0 < self._standing(subject) <= through:
            del self._last[subject]
            self._surplus[subject] = None

    def judged(self, requests: Sequence[_Request]) -> list[Entry | AppendConflict]:
        """Return what each request is to become, in their order, as if those before it were written already."""
        found: list[Entry | AppendConflict] = []
        ahead: dict[str, int] = {}
        sequence = self._sequence
        for each in requests:
            standing = ahead.get(each.subject) or self._standing(each.subject)
            if each.expected not in {None, standing}:
                found.append(AppendConflict(each.subject, each.expected or 0))
            else:
                sequence += 1
                ahead[each.subject] = sequence
                found.append(Entry(each.subject, sequence, each.payload, self._clock()))
        return found

    def change(self, judged: Sequence[Entry | AppendConflict]) -> Change:
        """Return what the file needs so that it has these entries, and no more what was dropped meanwhile."""
        return Change([each for each in judged if isinstance(each, Entry)], tuple(self._surplus))

    def written(self, change: Change) -> None:
        """Let everybody hear what is in the file now."""
        for subject in change.dropped:
            self._surplus.pop(subject, None)
        for entry in change.entries:
            self._surplus.pop(entry.subject, None)
            self._take(entry)

    def lose(self) -> None:
        """Let everybody hear that nothing is written at the moment."""
        self._tell(Lost())

    def recover(self) -> None:
        """Let everybody hear that it is written again."""
        self._tell(CaughtUp(self._sequence))

    def _expire(self) -> list[str]:
        dropped = super()._expire()
        self._surplus |= dict.fromkeys(dropped)
        return dropped


class _Pen:
    """The one writer of a file: takes what is asked of it, transaction by transaction."""

    def __init__(self, database: Database, thread: ThreadPoolExecutor) -> None:
        self.logs: list[SqliteLog] = []
        self.fault = ""
        self._database = database
        self._thread = thread
        self._queue: list[_Request] = []
        self._woken = asyncio.Event()
        self._closing = asyncio.Event()

    async def write(self, log: SqliteLog, subject: str, payload: bytes, expected: int | None) -> int:
        """Return the sequence of a message once it is committed. Raises `AppendConflict`, `BusUnavailable`."""
        if self._closing.is_set():
            raise BusUnavailable("this process is ending")
        if self.fault:
            raise self._refusal()
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._queue.append(_Request(log, subject, payload, expected, done))
        self._woken.set()
        return await done

    def close(self) -> None:
        """Take nothing more; `run` ends when what was taken is written."""
        self._closing.set()
        self._woken.set()

    async def run(self) -> None:
        """Write until closed."""
        while self._queue or not self._closing.is_set():
            await self._woken.wait()
            self._woken.clear()
            requests, self._queue = self._queue, []
            try:
                await self._write(requests)
            except (sqlite3.Error, ValueError) as error:
                self._fail(requests, str(error) or type(error).__name__)
                await self._recover()

    async def _write(self, requests: Sequence[_Request]) -> None:
        asked = {log.name: [each for each in requests if each.log is log] for log in self.logs}
        judged = {log.name: log.judged(asked[log.name]) for log in self.logs}
        changes = {log.name: log.change(judged[log.name]) for log in self.logs}
        if any(change.entries or change.dropped for change in changes.values()):
            await _in_thread(self._thread, partial(self._database.commit, changes))
        for log in self.logs:
            log.written(changes[log.name])
            for request, outcome in zip(asked[log.name], judged[log.name], strict=True):
                _answer(request, outcome if isinstance(outcome, AppendConflict) else outcome.sequence)

    def _fail(self, requests: Sequence[_Request], why: str) -> None:
        self.fault = why
        _logger.error("%s", self._refusal().message)
        for request in (*requests, *self._queue):
            _answer(request, self._refusal())
        self._queue.clear()
        for log in self.logs:
            log.lose()

    async def _recover(self) -> None:
        while not self._closing.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(PROBE_INTERVAL):
                    await self._closing.wait()
            with suppress(sqlite3.Error):
                await _in_thread(self._thread, self._database.probe)
                self.fault = ""
                _logger.info("the log %s is written again", self._database.path)
                for log in self.logs:
                    log.recover()
                return

    def _refusal(self) -> LogNotWritten:
        return LogNotWritten(str(self._database.path), self.fault)


class SqliteBus(MemoryBus):
    """The bus of a process that is alone, with what it must not forget in a file."""

    def __init__(self, pen: _Pen, log: SqliteLog, history: SqliteLog) -> None:
        super().__init__()
        self._pen = pen
        self.log, self.history = log, history

    @property
    def is_connected(self) -> bool:
        """Tell whether the file can be written."""
        return not self._pen.fault


@asynccontextmanager
async def opened(
    path: Path, bounds: Bounds = Bounds(), *, clock: Callable[[], float] = time.time,  # noqa: B008  # frozen
) -> AsyncGenerator[SqliteBus, None]:  # fmt: skip
    """Yield a bus whose logs are in the file at ``path``, which is made if it is not there.

    Raises:
        LogUnusable: another process has it, a later version wrote it, or it cannot be opened at all.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="log") as thread:
        database = await _in_thread(thread, partial(Database, path))
        try:
            pen = _Pen(database, thread)
            stored = {name: await _in_thread(thread, partial(database.stored, name)) for name in ("log", "history")}
            log = SqliteLog("log", stored["log"], pen, clock)
            history = SqliteLog("history", stored["history"], pen, clock, bounds)
            pen.logs += [log, history]
            writing = asyncio.create_task(pen.run(), name="log")
            try:
                yield SqliteBus(pen, log, history)
            finally:
                pen.close()
                await writing
        finally:
            await _in_thread(thread, database.close)


async def _in_thread(thread: ThreadPoolExecutor, work: Callable[[], _Result]) -> _Result:
    """Return what ``work`` returns in that thread; a cancellation waits for its end."""
    running = asyncio.get_running_loop().run_in_executor(thread, work)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise


def _answer(request: _Request, outcome: int | Exception) -> None:
    if request.done.done():
        return
    if isinstance(outcome, Exception):
        request.done.set_exception(outcome)
    else:
        request.done.set_result(outcome)
