"""The worker: makes true what the log wants of its node. It stages what is queued for it, and loads what is placed.

Everything here follows from the fold: a worker that starts anew sees the same wishes and the same unfinished
operations, and goes on with them.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Final

import msgspec

from stagecast import operations
from stagecast.bulk import aside
from stagecast.duty import Duty
from stagecast.errors import AppendConflict, Busy, Fenced, NotEnoughSpace, StagecastError, TransferFailed
from stagecast.gathering import gather_files, gather_pieces
from stagecast.holders import holders, receivers
from stagecast.manifest import Manifest
from stagecast.messages import Record
from stagecast.node import Node
from stagecast.ownership import Ownership
from stagecast.partial import Partial
from stagecast.plan import SAMPLES, measured, planned, sentence
from stagecast.presence import Presence
from stagecast.remains import Remains
from stagecast.revision import Revision
from stagecast.room import promised
from stagecast.settings import STAGINGS_AT_ONCE
from stagecast.stocktaking import Wanted, stock
from stagecast.throttle import Throttle
from stagecast.tracker import Tracker
from stagecast.transfer import Holder, fetch_manifest, pull
from stagecast.transfer.pull import PATIENCE
from stagecast.verifier import Verifier
from stagecast.work import in_thread

LOOK_AGAIN: Final = 0.5
"""Seconds between two looks at a folder into which another process brings the same."""
HOLDER_PATIENCE: Final = 15.0
"""Seconds without any living holder after which a staging fails."""
_UNLESS_A_BYTE_COMES: Final = f"it fails after {PATIENCE:.0f} s without one from any holder"


class Worker:
    """Stages and loads for one node, ``at_once`` models at a time unless the log says otherwise (`messages.Limits`)."""

    def __init__(
        self, node: Node, tracker: Tracker, presence: Presence, *, token: str, throttle: Throttle | None = None,
        at_once: int = STAGINGS_AT_ONCE,
    ) -> None:  # fmt: skip
        self._node = node
        self._tracker = tracker
        self._presence = presence
        self._token = token
        self._limit = throttle.limit if throttle else None
        self._at_once = at_once
        self._pulled: deque[tuple[int, float]] = deque(maxlen=SAMPLES)
        """Bytes that moved and seconds that took, of the latest pulls, the last one first."""
        self._verifier = Verifier(node, self._holders, token=token, limit=self._limit)
        self._remains = Remains(node.store.partial_bytes, node.store.discard_partials)
        self._duty = Duty(
            tracker, "staging", self._stage, node=node.name, clear=self._remains.clear, at_once=self._room,
            is_short=self._is_here,
        )  # fmt: skip

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Worker, None]:
        """Work for as long as the block lasts; what is under way then is left to the node's next process."""
        async with self._duty.running():
            yield self

    async def stage(self, model: str, cause: str) -> None:
        """Have a model on this disk: return at once if it is, else once its staging has ended well.

        Raises:
            TransferFailed: the staging failed or was cancelled.
        """
        if await asyncio.to_thread(self._node.store.recorded, model) is not None:
            return
        record, at = await self._tracker.open(
            "staging", model, self._node.name, cause=cause, parameters={"priority": "request"}
        )
        await self._hasten(record)
        await self._tracker.until(lambda: self._has_ended(record, at))
        ended = self._tracker.fold.record(record.id)
        if ended is None and await asyncio.to_thread(self._node.store.recorded, model) is not None:
            return
        if ended is None or ended.state != "succeeded":
            raise TransferFailed(ended.error if ended and ended.error else f"{record.id} was cancelled")

    def _has_ended(self, record: Record, at: Revision) -> bool:
        held = self._tracker.fold.record(record.id)
        if held is None:  # not heard yet, or forgotten: it ended long before this process woke
            return at.reached_by(self._tracker.revision)
        return operations.fence(held) >= operations.fence(record) and operations.is_ended(held)

    async def _hasten(self, record: Record) -> None:
        """Let a staging that was under way already be as urgent as if it had been asked for now."""
        while operations.priority(record) != "request":
            wish = {**record.parameters, "priority": "request"}
            with suppress(AppendConflict, Fenced):
                ownership = self._tracker.owned.get(record.id)
                if ownership is not None:
                    await ownership.change(parameters=wish)
                    return
                held, sequence = await self._tracker.standing(record.id, record.kind, record.model, record.node)
                if held is None or held.state not in {"queued", "paused"}:
                    return
                record = held
                following = operations.succeeding(held, self._tracker.now(), parameters=wish)
                await self._tracker.write(following, sequence)
                return

    def _room(self) -> int:
        said = self._tracker.fold.limits.nodes.get(self._node.name)
        return said.stagings_at_once if said and said.stagings_at_once else self._at_once

    async def _is_here(self, record: Record) -> bool:
        """Tell whether a staging has nothing to move, so that it need not wait for those that have."""
        if operations.is_verification(record):
            return False
        held = await asyncio.to_thread(self._node.store.recorded, record.model)
        return held is not None and record.parameters.get("digest", held.digest) == held.digest

    async def _stage(self, ownership: Ownership) -> None:
        async with self._remains.of(ownership):
            await (self._verifier.verify if operations.is_verification(ownership.record) else self._bring)(ownership)

    async def _bring(self, ownership: Ownership) -> None:
        await ownership.change(phase="planning")
        arriving: Partial | None = None
        try:
            with ExitStack() as stack:
                manifest, arriving = await self._begun(ownership, stack)
                if arriving is not None:
                    await self._pull(ownership, manifest, arriving)
                    await ownership.change(phase="publishing")
                    ownership.settle()
                    await in_thread(threading.Event(), aside(arriving.publish))
        except NotEnoughSpace:
            if arriving is not None:
                await self._recount(ownership, arriving.manifest)
            raise
        await self._node.conclude(ownership, manifest)

    async def _recount(self, ownership: Ownership, manifest: Manifest) -> None:
        """Count what the disk says is there: one that was full may have lost what was written, or have kept more."""
        kept = await asyncio.to_thread(self._node.store.arrived, manifest.model, manifest.digest)
        count = sum(kept[1].values()) if kept else 0
        if count != ownership.bytes_done:
            await ownership.change(bytes_done=count)

    async def _begun(self, ownership: Ownership, stack: ExitStack) -> tuple[Manifest, Partial | None]:
        """Return the revision that is wanted with what has arrived of it, which ``stack`` keeps, or None if it is here.

        While another process brings it into the same folder it waits for that, and then finds it here.
        """
        wanted: Manifest | None = None
        while True:
            try:
                held = await self._held(ownership)
                if held is not None:
                    return held, None
                wanted = wanted or await self._manifest(ownership)
                arriving = await in_thread(ownership.stop, stack.enter_context, self._node.store.partial(wanted))
            except Busy:
                ownership.wait("target disk", "another process brings it into this folder; then it is here, too")
                await asyncio.sleep(LOOK_AGAIN)
            else:
                ownership.wait("")
                return wanted, arriving

    async def _held(self, ownership: Ownership) -> Manifest | None:
        """Return the manifest of the model that lies here, if it is the revision that is wanted; hashed if need be."""
        model, store = ownership.record.model, self._node.store
        if model not in await asyncio.to_thread(store.names):
            return None
        held = await asyncio.to_thread(store.recorded, model)
        if held is None:
            await ownership.change(phase="verifying")
            check = partial(ownership.check, total=ownership.record.bytes_total)
            held = await in_thread(ownership.stop, store.manifest, model, check, ownership.stop)
        if ownership.record.parameters.get("digest", held.digest) != held.digest:
            await ownership.change(phase="planning")
            return None
        await ownership.change(bytes_present=held.size, bytes_done=held.size, bytes_total=held.size)
        return held

    async def _pull(self, ownership: Ownership, manifest: Manifest, arriving: Partial) -> None:
        """Get what is missing, from this disk where it lies there already.

        What had arrived is hashed again where nobody has verified it, and counted already.
        """
        store, stop = self._node.store, ownership.stop
        await in_thread(stop, gather_files, store, arriving, lambda _: None)
        written = sum(arriving.written(piece) for piece in arriving.missing())
        present = arriving.verified_bytes + written
        with ExitStack() as stack:
            await self._plan(ownership, manifest, arriving, present)
            room = await promised(stack, ownership, self._node, manifest.size - present, present)

            def advance(count: int) -> None:
                ownership.advance(count)
                room.landed(count)

            def find(count: int) -> None:
                ownership.find(count)
                room.landed(count)

            await ownership.change(
                phase="transferring", bytes_total=manifest.size, bytes_done=present, bytes_present=present,
                total_files=len(manifest.files),
            )  # fmt: skip
            await in_thread(stop, aside(gather_pieces), store, arriving, find, stop)
            pulled = await in_thread(
                ownership.stop, pull, manifest, arriving, lambda: self._sources(manifest.model, manifest.digest),
                token=self._token, tls=self._node.tls, limit=self._limit, advance=advance,
                checked=partial(ownership.check, total=written),
                waiting=partial(ownership.wait, then=_UNLESS_A_BYTE_COMES), received=self._node.receive,
                spent=ownership.spend,
                entered=lambda index: ownership.enter(index + 1, manifest.files[index].path),
                completed=lambda index: ownership.complete(index + 1, manifest.files[index].path),
                stop=ownership.stop,
            )  # fmt: skip
        self._pulled.appendleft((pulled.bytes_verified, pulled.seconds))

    async def _plan(self, ownership: Ownership, manifest: Manifest, arriving: Partial, present: int) -> None:
        """Say what is to come, in the phase before the first byte; the rate is that of the pulls before this one."""
        wanted = Wanted(model=manifest.model, digest=manifest.digest, size=manifest.size)
        there = await asyncio.to_thread(stock, self._node.store, wanted, manifest, arriving.written)
        holders = [holder.name for holder in self._holders(manifest.model, manifest.digest)]
        plan = planned(self._node.name, manifest.size, there, holders, measured(self._pulled))
        await ownership.change(
            phase="planning", bytes_total=manifest.size, bytes_done=present, bytes_present=present,
            total_files=len(manifest.files), note=sentence(plan),
        )  # fmt: skip

    async def _manifest(self, ownership: Ownership) -> Manifest:
        """Return the manifest of the revision that is wanted, from any holder that answers."""
        model = ownership.record.model
        loop = asyncio.get_running_loop()
        deadline, causes = loop.time() + HOLDER_PATIENCE, ["none is alive"]
        waiting = partial(ownership.wait, then=f"it fails after {HOLDER_PATIENCE:.0f} s without an answer")
        while True:
            digest = ownership.record.parameters.get("digest") or self._digest(model)
            holders = self._holders(model, digest) if digest else []
            if not holders:
                waiting("source")
            for holder in holders:
                try:
                    manifest = await in_thread(
                        ownership.stop, fetch_manifest, holder, digest, self._token, ownership.stop, waiting=waiting,
                        tls=self._node.tls,
                    )  # fmt: skip
                    # Equal files may have other names elsewhere: a digest says what a model is, not what it is called.
                    return msgspec.structs.replace(manifest, model=model)
                except StagecastError as error:
                    causes = [error.message]
            if any(copy.state == "reading" for copy in self._tracker.fold.copies(model)):
                deadline, causes = loop.time() + HOLDER_PATIENCE, ["a holder is still reading it in"]
            if loop.time() > deadline:
                raise TransferFailed(f"no holder gave the manifest of {model}: {'; '.join(causes)}")
            ownership.tell(f"waiting for a holder: {causes[0]}")
            await self._tracker.changed(self._tracker.revision, 1.0)

    def _digest(self, model: str) -> str:
        return next((holding.digest for holding in self._tracker.fold.holders(model)), "")

    def _sources(self, model: str, digest: str) -> list[Holder]:
        """Return the living nodes that have the model, or are just getting it: they pass on what they have verified."""
        whole = self._holders(model, digest)
        names = {holder.name for holder in whole}
        coming = receivers(self._tracker, self._presence, self._node.name, model)
        return [*whole, *(holder for holder in coming if holder.name not in names)]

    def _holders(self, model: str, digest: str) -> list[Holder]:
        return holders(self._tracker, self._presence, self._node.name, model, digest)
