"""A log in memory that can lose everything, and of which a follower can be kept from hearing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

from stagecast.bus import Anew, CaughtUp, Heard
from stagecast.bus.memory import MemoryBus
from stagecast.errors import AppendConflict
from stagecast.messages import Entry
from stagecast.revision import identity_of


class LosingLog:
    """The contract of `stagecast.bus.Log`, and `lose`."""

    def __init__(self) -> None:
        self.identity = identity_of(1.7e9)
        self.standing: dict[str, Entry] = {}
        self.sequence = 0
        self._followers: set[asyncio.Queue[Heard]] = set()
        self._deaf: list[asyncio.Queue[Heard]] = []

    def lose(self) -> None:
        """Come back as another log, empty."""
        self.identity = identity_of(int(self.identity, 16) / 1e6 + 60)
        self.standing, self.sequence = {}, 0
        for heard in self._followers:
            heard.put_nowait(Anew(self.identity))
            heard.put_nowait(CaughtUp(0))

    @contextmanager
    def unheard(self) -> Iterator[None]:
        """Let nobody hear what is written within the block, nor afterwards."""
        followers, self._followers = self._followers, set()
        try:
            yield
        finally:
            self._followers = followers

    async def append(self, subject: str, payload: bytes, *, expected: int | None = None) -> int:
        held = self.standing.pop(subject, None)
        if expected is not None and expected != (held.sequence if held else 0):
            if held is not None:
                self.standing[subject] = held
            raise AppendConflict(subject, expected)
        self.sequence += 1
        entry = self.standing[subject] = Entry(subject, self.sequence, payload, 1.7e9)
        for heard in self._followers:
            heard.put_nowait(entry)
        return self.sequence

    async def last(self, subject: str) -> Entry | None:
        return self.standing.get(subject)

    async def follow(self) -> AsyncGenerator[Heard, None]:
        heard: asyncio.Queue[Heard] = asyncio.Queue()
        heard.put_nowait(Anew(self.identity))
        for entry in sorted(self.standing.values(), key=lambda entry: entry.sequence):
            heard.put_nowait(entry)
        heard.put_nowait(CaughtUp(self.sequence))
        self._followers.add(heard)
        try:
            while True:
                yield await heard.get()
        finally:
            self._followers.discard(heard)


class LosingBus(MemoryBus):
    """The bus in memory, with such a log."""

    def __init__(self) -> None:
        super().__init__()
        self.log: LosingLog = LosingLog()  # type: ignore[assignment]
