"""The announcer: keeps standing in the log what this process says of itself, through every loss of the log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Final

import msgspec

from stagecast.errors import BusError
from stagecast.tracker import Tracker

RETRY_INTERVAL: Final = 0.2
LAST_WORDS: Final = 1.0
"""Seconds that the log gets, at the end, to take what is not written yet."""


class Announcer:
    """The last words of this process on subjects that nobody else writes."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._wanted: dict[str, bytes] = {}
        self._standing: dict[str, bytes] = {}
        self._woken = asyncio.Event()
        self._settled = asyncio.Event()

    def say(self, subject: str, message: msgspec.Struct) -> None:
        """Make ``message`` the last word on ``subject``, now or as soon as the log can be reached."""
        payload = msgspec.json.encode(message)
        if self._wanted.get(subject) != payload:
            self._wanted[subject] = payload
            self._settled.clear()
            self._woken.set()

    async def settled(self) -> None:
        """Return once the log has everything that was said."""
        await self._settled.wait()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Announcer, None]:
        """Write for as long as the block lasts, and then what was said in it last."""
        writer = asyncio.create_task(self._write())
        with self._tracker.listening("identity", self._say_again):
            try:
                yield self
            finally:
                if self._standing != self._wanted:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(LAST_WORDS):
                            await self.settled()
                writer.cancel()
                await asyncio.gather(writer, return_exceptions=True)

    async def _write(self) -> None:
        while True:
            await self._woken.wait()
            self._woken.clear()
            for subject, payload in list(self._wanted.items()):
                if self._standing.get(subject) == payload:
                    continue
                try:
                    await self._tracker.say(subject, payload)
                except BusError:
                    self._woken.set()
                    await asyncio.sleep(RETRY_INTERVAL)
                    break
                self._standing[subject] = payload
            if self._standing == self._wanted:
                self._settled.set()

    def _say_again(self) -> None:
        """Say everything in a log that came back as another one, or without its latest words."""
        if self._standing:
            self._standing.clear()
            self._settled.clear()
            self._woken.set()
