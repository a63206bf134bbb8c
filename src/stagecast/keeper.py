"""The keeper of a node's disk: it tells what is there and what room there is, and frees what nobody needs.

It evicts models by itself only where it was given a budget; and what it decided is decided anew, with what is known
then, at the moment at which the files go.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Final

import msgspec

from stagecast import operations
from stagecast.bulk import aside
from stagecast.collection import begin, collection, elsewhere
from stagecast.commands import Question
from stagecast.errors import BusError
from stagecast.eviction import LEFTOVERS, Budget, Copy, Inventory, Leftover, orphans, why_kept, why_left
from stagecast.holders import Inquiry
from stagecast.messages import KEPT, Record
from stagecast.node import Node
from stagecast.ownership import Ownership
from stagecast.plan import Stock
from stagecast.presence import Presence
from stagecast.stocktaking import Found, Wanted, found, stock
from stagecast.tracker import Tracker
from stagecast.work import in_thread

_logger = logging.getLogger(__name__)

INTERVAL: Final = 10.0
"""Seconds between two looks at what lies on the disk."""
RETRY: Final = 600.0
"""Seconds for which a model stays that could not be deleted, before that is tried again."""
ABANDONED: Final = 3600.0
"""Seconds for which a leftover must have been still before it goes without anybody asking for that: should the log have
come back empty, whoever works on it tells so again by then."""


class Named(msgspec.Struct, frozen=True):
    """A model that a node is asked about."""

    model: str


class Keeper:
    """Keeps one node's disk within its budget, and answers what the node is asked about it."""

    def __init__(self, node: Node, tracker: Tracker, presence: Presence, budget: Budget, token: str = "") -> None:
        self._inquiry = Inquiry(node, tracker, presence, token)
        self._node = node
        self._store = node.store
        self._tracker = tracker
        self._presence = presence
        self._budget = budget
        self._collecting = asyncio.Lock()
        self._orphaned = 0
        self._failed: dict[str, float] = {}
        """When the deletion of a model failed that was to go, by the loop's clock."""

    @property
    def questions(self) -> Mapping[str, Question]:
        """What the node can be asked, by verb."""
        return {"stock": self._stock, "inventory": self._inventory, "pin": self._pin, "unpin": self._unpin}

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Keeper, None]:
        """Keep the disk for as long as the block lasts."""
        self._node.reclaim, self._node.make_room = self._reclaim, self._make_room
        self._node.tell(disk_budget=self._budget.limit, disk_keep_free=self._budget.keep_free)
        watching = asyncio.create_task(self._watch())
        try:
            yield self
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def inventory(self, more: int = 0) -> Inventory:
        """Return all that lies here, and why it may not go. ``more``: bytes that are to come beside it."""
        seen = await asyncio.to_thread(found, self._store, time.time())
        copies = [self._judged(copy, seen) for copy in seen.copies]
        lefts = [msgspec.structs.replace(each, keep=self._why_left(each)) for each in seen.leftovers]
        used = sum(copy.bytes for copy in copies) + sum(left.bytes for left in lefts)
        return Inventory(
            node=self._node.name, volume=self._node.volume, disk_free=seen.space.free, disk_total=seen.space.total,
            disk_reserved=seen.reserved, reserved_here=seen.reserved_here, copies=copies, leftovers=lefts,
            excess=self._budget.excess(
                used, seen.space.free, seen.reserved_here + more, seen.reserved - seen.reserved_here
            ),
        )  # fmt: skip

    async def _stock(self, question: msgspec.Raw) -> Stock:
        wanted = msgspec.json.decode(question, type=Wanted)
        return await asyncio.to_thread(stock, self._store, wanted, await self._inquiry.manifest(wanted))

    async def _inventory(self, _question: msgspec.Raw) -> Inventory:
        return await self.inventory()

    async def _pin(self, question: msgspec.Raw) -> list[str]:
        """Let a model stay; answer with all that are to. Raises `Unknown`."""
        model = msgspec.json.decode(question, type=Named).model
        await asyncio.to_thread(self._store.path, model)
        await asyncio.to_thread(self._store.marks.pin, model)
        return await self._tell_pins()

    async def _unpin(self, question: msgspec.Raw) -> list[str]:
        await asyncio.to_thread(self._store.marks.unpin, msgspec.json.decode(question, type=Named).model)
        return await self._tell_pins()

    async def _tell_pins(self) -> list[str]:
        self._node.tell()
        await self._node.settled()
        return await asyncio.to_thread(self._store.marks.pinned)

    def _neighbours(self) -> set[str]:
        """Return the nodes with this very folder, this one among them."""
        nodes = self._tracker.fold.nodes.values()
        return {self._node.name} | {node.name for node in nodes if node.volume == self._node.volume and not node.left}

    def _judged(self, copy: Copy, seen: Found, beside: str = "") -> Copy:
        """Return a copy with the reason why it may not go. ``beside``: the operation that wants it to."""
        fold, here = self._tracker.fold, self._neighbours()
        placement = fold.placements.get(copy.model)
        instances = [instance for node in here if (instance := fold.instance(node, copy.model)) is not None]
        keep = why_kept(
            copy.model, pinned=copy.pinned, used_at=copy.used_at, now=seen.now,
            loaded=any(each.state not in {"gone", "failed"} for each in instances)
            or (placement is not None and not here.isdisjoint(placement.nodes)),
            records=[record for record in fold.live() if record.id != beside],
            elsewhere=elsewhere(fold, self._node.name, copy.model, self._presence.is_node_alive),
        )  # fmt: skip
        return msgspec.structs.replace(copy, keep=keep or copy.keep)

    def _why_left(self, leftover: Leftover) -> str:
        here = self._neighbours() | {""}
        records = (slot.record for slot in self._tracker.fold.slots.values())
        return why_left(leftover, (record for record in records if record.node in here))

    async def _reclaim(self, ownership: Ownership) -> bool:
        """Do what a collection's deletion wants; tell whether that was all. A model that may go is left to the node."""
        model = ownership.record.model
        seen = await asyncio.to_thread(found, self._store, time.time())
        if model == LEFTOVERS:
            await self._remove(ownership, [each for each in seen.leftovers if not self._why_left(each)])
            return True
        keep = next(
            (self._judged(copy, seen, ownership.record.id).keep for copy in seen.copies if copy.model == model), ""
        )
        if keep:
            await ownership.end("succeeded", note=f"{KEPT}{keep}")
        return bool(keep)

    async def _remove(self, ownership: Ownership, lone: list[Leftover]) -> None:
        freed = 0
        for leftover in lone:
            freed += await in_thread(threading.Event(), aside(self._store.remove_leftover), leftover)
        self._tell_orphaned(sum(each.bytes for each in orphans((await self.inventory()).leftovers)))
        await ownership.change(bytes_total=freed, bytes_done=freed)

    async def _make_room(self, needed: int) -> bool:
        """Free what the budget allows so that ``needed`` bytes fit in; tell whether anything was freed."""
        if not self._budget:
            return False
        async with self._collecting:
            return await self._collect(needed)

    async def _collect(self, more: int = 0) -> bool:
        now = asyncio.get_running_loop().time()
        self._failed = {model: at for model, at in self._failed.items() if now - at < RETRY}
        seen = await self.inventory(more)
        able = [copy for copy in seen.copies if copy.model not in self._failed]
        wanted = collection(msgspec.structs.replace(seen, copies=able), seen.excess, time.time() - ABANDONED)
        ended = [await self._until_ended(record) for record in await begin(self._tracker, wanted)]
        self._failed |= {record.model: now for record in ended if record.state == "failed"}
        return any(record.bytes_done for record in ended)

    async def _until_ended(self, record: Record) -> Record:
        def held() -> Record | None:
            return self._tracker.fold.record(record.id)

        def has_ended() -> bool:
            now = held()
            is_this = now is not None and operations.fence(now) >= operations.fence(record)
            return now is not None and is_this and operations.is_ended(now)

        await self._tracker.until(has_ended)
        return held() or record

    async def _watch(self) -> None:
        await self._node.surveyed.wait()
        while True:
            try:
                await self._look()
            except (OSError, BusError) as error:
                _logger.warning("the disk of %s cannot be looked at: %s", self._node.name, error)
            await asyncio.sleep(INTERVAL)

    async def _look(self) -> None:
        if self._tracker.is_degraded:
            return  # nobody can tell now what is needed
        if self._budget:
            async with self._collecting:
                await self._collect()
        self._tell_orphaned(sum(each.bytes for each in orphans((await self.inventory()).leftovers)))

    def _tell_orphaned(self, count: int) -> None:
        if count != self._orphaned:
            self._orphaned = count
            self._node.tell(disk_orphaned=count)
