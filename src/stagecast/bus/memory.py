"""The bus of one process alone: the same contract as NATS, in memory. Nothing leaves the process."""

from __future__ import annotations

import asyncio
import fnmatch
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable

from stagecast.bus import Anew, Answer, CaughtUp, Heard
from stagecast.errors import AppendConflict, BusUnavailable, NobodyListens
from stagecast.messages import Entry
from stagecast.revision import identity_of
from stagecast.settings import Bounds


class MemoryLog:
    """A log that lives as long as its process. With ``bounds`` it drops what they leave no room for, oldest first."""

    def __init__(self, clock: Callable[[], float] = time.time, bounds: Bounds | None = None) -> None:
        self._identity = identity_of(clock())
        self._clock = clock
        self._bounds = bounds
        self._last: OrderedDict[str, Entry] = OrderedDict()
        self._sequence = 0
        self._followers: set[asyncio.Queue[Heard]] = set()

    async def append(self, subject: str, payload: bytes, *, expected: int | None = None) -> int:
        """See `stagecast.bus.Log.append`."""
        if expected not in {None, self._standing(subject)}:
            raise AppendConflict(subject, expected or 0)
        self._take(Entry(subject, self._sequence + 1, payload, self._clock()))
        return self._sequence

    async def last(self, subject: str) -> Entry | None:
        """See `stagecast.bus.Log.last`."""
        self._expire()
        return self._last.get(subject)

    async def remove(self, subject: str, through: int) -> None:
        """See `stagecast.bus.Log.remove`."""
        if 0 < self._standing(subject) <= through:
            del self._last[subject]

    async def follow(self) -> AsyncGenerator[Heard, None]:
        """See `stagecast.bus.Log.follow`."""
        self._expire()
        heard: asyncio.Queue[Heard] = asyncio.Queue()
        heard.put_nowait(Anew(self._identity))
        for entry in self._last.values():
            heard.put_nowait(entry)
        heard.put_nowait(CaughtUp(self._sequence))
        self._followers.add(heard)
        try:
            while True:
                yield await heard.get()
        finally:
            self._followers.discard(heard)

    def _standing(self, subject: str) -> int:
        """Return the sequence of a subject's last word, 0 if there is none."""
        self._expire()
        held = self._last.get(subject)
        return held.sequence if held else 0

    def _take(self, entry: Entry) -> None:
        self._last[entry.subject] = entry
        self._last.move_to_end(entry.subject)
        self._sequence = entry.sequence
        self._expire()
        self._tell(entry)

    def _expire(self) -> list[str]:
        """Drop what the bounds leave no room for, and return the subjects."""
        dropped: list[str] = []
        while self._bounds and self._last:
            oldest = next(iter(self._last.values()))
            if len(self._last) <= self._bounds.count and oldest.time > self._clock() - self._bounds.age:
                break
            dropped.append(self._last.popitem(last=False)[0])
        return dropped

    def _tell(self, heard: Heard) -> None:
        for follower in self._followers:
            follower.put_nowait(heard)


class MemoryBus:
    """The bus of a process that is alone."""

    log: MemoryLog
    history: MemoryLog

    def __init__(self, bounds: Bounds = Bounds()) -> None:  # noqa: B008  # frozen
        self.log = MemoryLog()
        self.history = MemoryLog(bounds=bounds)
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
