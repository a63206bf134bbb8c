"""What a child process says: all of it in a log file, the last lines at hand, and how long it has been silent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections import deque
from pathlib import Path
from typing import Final

KEPT_LINES: Final = 50
LOG_LIMIT: Final = 16 * 1024 * 1024
"""Bytes after which a log file makes room for a new one; the one before it is kept."""
_LINE: Final = 300


class Output(asyncio.Protocol):
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
