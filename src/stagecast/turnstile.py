"""A turnstile: lets so many operations work at once in this process, the most urgent first (`stagecast.urgency`)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from stagecast import urgency
from stagecast.messages import Record


class Turnstile:
    """``room`` says how many may work at once, 0 for any number, and ``record`` how an operation stands by now.

    ``give_way`` is to make an operation let go of its turn, for the reason given; it tells whether that was heard.
    """

    def __init__(
        self, room: Callable[[], int], record: Callable[[str], Record | None], give_way: Callable[[str, str], bool]
    ) -> None:
        self._room = room
        self._record = record
        self._give_way = give_way
        self._waiting: dict[str, tuple[Record, asyncio.Event]] = {}
        self._working: dict[str, Record] = {}
        self._leaving: set[str] = set()

    @asynccontextmanager
    async def turn(self, record: Record) -> AsyncGenerator[None, None]:
        """Work for as long as the block lasts, once it is the operation's turn. None must ask twice at a time."""
        begin = asyncio.Event()
        self._waiting[record.id] = (record, begin)
        self.look()
        try:
            await begin.wait()
            yield
        finally:
            for held in (self._waiting, self._working):
                held.pop(record.id, None)
            self._leaving.discard(record.id)
            self.look()

    def is_waiting(self, operation: str) -> bool:
        """Tell whether an operation waits here."""
        return operation in self._waiting

    def look(self) -> None:
        """Let begin who may by now, and give way who must: to be called when anything that decides this has changed."""
        waiting = {name: self._record(name) or held for name, (held, _) in self._waiting.items()}
        working = {name: self._record(name) or held for name, held in self._working.items()}
        decision = urgency.decide(waiting, working, self._leaving, self._room())
        for name in decision.begin:
            self._working[name], begin = self._waiting.pop(name)
            begin.set()
        if decision.give_way:
            left = [record for name, record in waiting.items() if name not in decision.begin]
            first = min(left, key=urgency.order, default=None)
            why = f"gave way to {first.id}" if first else "fewer may work at once now"
            self._leaving.update(name for name in decision.give_way if self._give_way(name, why))
