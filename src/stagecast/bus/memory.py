"""The bus of one process alone: the same contract as NATS, in memory. Nothing leaves the process."""

from __future__ import annotations

import asyncio
import fnmatch
import time
from collections.abc import AsyncGenerator, Callable

from stagecast.bus import Anew, Answer, CaughtUp, Heard
from stagecast.errors import AppendConflict, BusUnavailable, NobodyListens
from stagecast.messages import Entry
from stagecast.revision import identity_of


class MemoryLog:
    """A log that lives as long as its process."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._identity = identity_of(clock())
        self._clock = clock
        self._last: dict[str, Entry] = {}
        self._sequence = 0
        self._followers: set[asyncio.Queue[Heard]] = set()

    async def append(self, subject: str, payload: bytes, *, expected: int | None = None) -> int:
        """See `stagecast.bus.Log.append`."""
        held = self._last.get(subject)
        if expected is not None and expected != (held.sequence if held else 0):
            raise AppendConflict(subject, expected)
        self._sequence += 1
        entry = Entry(subject, self._sequence, payload, self._clock())
        self._last[subject] = entry
        for follower in self._followers:
            follower.put_nowait(entry)
        return self._sequence

    async def last(self, subject: str) -> Entry | None:
        """See `stagecast.bus.Log.last`."""
        return self._last.get(subject)

    async def follow(self) -> AsyncGenerator[Heard, None]:
        """See `stagecast.bus.Log.follow`."""
        heard: asyncio.Queue[Heard] = asyncio.Queue()
        heard.put_nowait(Anew(self._identity))
        for entry in sorted(self._last.values(), key=lambda entry: entry.sequence):
            heard.put_nowait(entry)
        heard.put_nowait(CaughtUp(self._sequence))
        self._followers.add(heard)
        try:
            while True:
                yield await heard.get()
        finally:
            self._followers.discard(heard)


class MemoryBus:
    """The bus of a process that is alone."""

    def __init__(self) -> None:
        self.log = MemoryLog()
        self.history = MemoryLog()
        self._hearers: list[tuple[str, Callable[[str, bytes], None]]] = []
        self._answers: dict[str, Answer] = {}

    @property
    def is_connected(self) -> bool:
        """Always: there is nothing to lose."""
        return True

    async def publish(self, subject: str, payload: bytes) -> None:
        """See `stagecast.bus.Bus.publish`."""
        for pattern, hear in self._hearers:
            if fnmatch.fnmatchcase(subject, pattern):
                hear(subject, payload)

    async def subscribe(self, subject: str, hear: Callable[[str, bytes], None]) -> None:
        """See `stagecast.bus.Bus.subscribe`."""
        self._hearers.append((subject, hear))

    async def answer(self, subject: str, answer: Answer) -> None:
        """See `stagecast.bus.Bus.answer`."""
        self._answers[subject] = answer

    async def request(self, subject: str, payload: bytes, timeout: float) -> bytes:
        """See `stagecast.bus.Bus.request`."""
        answer = self._answers.get(subject)
        if answer is None:
            raise NobodyListens(subject)
        try:
            async with asyncio.timeout(timeout):
                return await answer(payload)
        except TimeoutError:
            raise BusUnavailable(f"no answer on {subject} within {timeout:g} s") from None
