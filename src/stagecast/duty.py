"""A duty: one kind of work that this process does, for its own node or for the whole cluster.

It hears every record, takes each operation that is free, and performs it in a task of its own. What another process of
the cluster left behind is as good as new: the claim fences that one, and the work goes on from what is on the disk.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext

from stagecast import operations
from stagecast.messages import Kind, Record
from stagecast.ownership import Ownership
from stagecast.tracker import Tracker
from stagecast.turnstile import Turnstile

_logger = logging.getLogger(__name__)

Perform = Callable[[Ownership], Awaitable[None]]
Clear = Callable[[Record], Awaitable[None]]
Check = Callable[[Record], Awaitable[bool]]


class Duty:
    """Performs the operations of one ``kind``: those of ``node``, which no other process can do, or those of no node.

    ``clear`` is called for each that was cancelled while nobody worked on it, to free what it left. Of ``at_once``
    operations at a time, 0 for any number, the rest is left to whoever is free; it is asked anew when the limits of the
    log change. What ``is_short`` does not have to wait for its turn.
    """

    def __init__(
        self, tracker: Tracker, kind: Kind, perform: Perform, *, node: str = "", clear: Clear | None = None,
        at_once: int | Callable[[], int] = 0, is_short: Check | None = None,
    ) -> None:  # fmt: skip
        self._tracker = tracker
        self._kind = kind
        self._node = node
        self._work = perform
        self._clear = clear
        self._is_short = is_short
        room = at_once if callable(at_once) else lambda: at_once
        self._turnstile = Turnstile(room, self._record, self._give_way) if at_once else None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._next: dict[str, Record] = {}

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Duty, None]:
        """Perform for as long as the block lasts; what is under way then is left to another process."""
        self._tracker.hearers.append(self._hear)
        if self._tracker.caught_up.is_set():
            self._look()  # before anything more can be heard, or that would be looked at twice
        beginning = asyncio.create_task(self._begin(self._tracker.caught_up.is_set()))
        try:
            with self._tracker.listening("limits", self._look_again):
                yield self
        finally:
            self._tracker.hearers.remove(self._hear)
            self._next.clear()
            tasks = [beginning, *self._tasks.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def take(self, record: Record) -> None:
        """Work on an operation; where this process does so already, once that has ended."""
        if record.id in self._tasks:
            self._next[record.id] = record
        else:
            task = asyncio.create_task(self._pursue(record), name=record.id)
            self._tasks[record.id] = task
            task.add_done_callback(lambda _: self._end(record.id))

    def _end(self, identifier: str) -> None:
        del self._tasks[identifier]
        # A retry that came before the task has ended is its own to see: the log says nothing more of it.
        following = self._next.pop(identifier, None)
        if following is not None and not self._is_over(following):
            self.take(following)

    async def _begin(self, has_looked: bool) -> None:  # noqa: FBT001  # the one thing it has to know
        await self._tracker.caught_up.wait()
        if not has_looked:
            self._look()

    def _look(self) -> None:
        for slot in list(self._tracker.fold.slots.values()):
            self._hear(slot.record)

    def _hear(self, record: Record) -> None:
        is_mine = record.kind == self._kind and record.node == self._node
        if is_mine and self._tracker.caught_up.is_set() and self._is_due(record):
            self.take(record)
        if is_mine and self._turnstile is not None and self._turnstile.is_waiting(record.id):
            if operations.is_ended(record) or record.state == "paused":
                self._tasks[record.id].cancel()  # what follows, like freeing what it left, need not wait
            else:
                self._turnstile.look()  # it may be more urgent than before

    def _is_due(self, record: Record) -> bool:
        return self._is_free(record) or (self._clear is not None and record.state == "cancelled")

    def _is_free(self, record: Record) -> bool:
        """Tell whether an operation waits for somebody to take it: new, or left behind by a process that is gone."""
        if record.state == "queued":
            return True
        if operations.is_bound(record):
            return False
        if record.owner == self._tracker.process:
            # Claimed by this very process, which then lost sight of it: the answer of the log never came.
            is_in_hand = record.id in self._tasks or record.id in self._tracker.owned
            return record.state in {"running", "stalled"} and not is_in_hand
        if not self._node:
            return record.state == "stalled" and record.waits_on == "owner"
        return record.state in {"running", "stalled"}

    async def _pursue(self, record: Record) -> None:
        try:
            if record.state != "cancelled" or self._clear is None:
                await self._perform(record)
            elif self._tracker.fold.record(record.id) in (None, record):
                await self._clear(record)
        except Exception:
            _logger.exception("%s", record.id)

    async def _perform(self, record: Record) -> None:
        turn = await self._turn(record)
        if self._turnstile is not None and self._is_over(record):
            return
        async with turn:
            if self._turnstile is not None and self._is_taken(record):
                return
            async with self._tracker.own(record) as ownership:
                if ownership is not None:
                    self._look_again()  # from now on it can give way
                    await self._work(ownership)

    async def _turn(self, record: Record) -> AbstractAsyncContextManager[None]:
        if self._turnstile is None or (self._is_short is not None and await self._is_short(record)):
            return nullcontext()
        return self._turnstile.turn(record)

    def _look_again(self) -> None:
        if self._turnstile is not None:
            self._turnstile.look()

    def _give_way(self, operation: str, why: str) -> bool:
        ownership = self._tracker.owned.get(operation)
        if ownership is not None:
            ownership.halt("turn", why=why)
        return ownership is not None

    def _record(self, operation: str) -> Record | None:
        return self._tracker.fold.record(operation)

    def _is_over(self, record: Record) -> bool:
        """Tell whether a later word than ``record`` says that there is nothing to work on now, and nothing to free."""
        held = self._record(record.id)
        is_later = held is not None and operations.outranks(held, record)
        return held is not None and is_later and (operations.is_ended(held) or held.state == "paused")

    def _is_taken(self, record: Record) -> bool:
        """Tell whether somebody took an operation, or ended it, while it waited here for its turn."""
        held = self._tracker.fold.record(record.id)
        return held is not None and held.owner != self._tracker.process and not self._is_free(held)
