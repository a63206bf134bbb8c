"""A node: what replicas and workers have in common. It holds models, serves their pieces, and says so in the log."""

from __future__ import annotations

import asyncio
import logging
import ssl
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Final, Literal

from stagecast import installation, subjects
from stagecast.announcer import Announcer
from stagecast.bulk import aside
from stagecast.duty import Duty
from stagecast.errors import Interrupted, StagecastError, Unknown
from stagecast.eviction import GC
from stagecast.manifest import Manifest
from stagecast.messages import Holding, NodeRecord
from stagecast.ownership import Ownership
from stagecast.store import Store
from stagecast.tracker import Tracker
from stagecast.transfer import FileServer
from stagecast.volume import volume_of
from stagecast.work import in_thread

_logger = logging.getLogger(__name__)

DISK_INTERVAL: Final = 10.0
"""Seconds between two looks at the disk; what it says is announced when it has moved by `DISK_STEP`."""
DISK_STEP: Final = 64 * 1024 * 1024


Reclaim = Callable[[Ownership], Awaitable[bool]]
MakeRoom = Callable[[int], Awaitable[bool]]


async def _no_room(_needed: int) -> bool:
    return False


class Node:
    """One machine's part of the cluster: its models, its file server, its name."""

    def __init__(
        self, tracker: Tracker, announcer: Announcer, store: Store, *, name: str, kind: Literal["replica", "worker"],
        address: str, labels: dict[str, str] | None = None, tls: ssl.SSLContext | None = None, rate_limit: int = 0,
    ) -> None:  # fmt: skip
        self.name = name
        self.tls = tls
        """Which certificates of other holders are believed; None: those that the system believes."""
        self.store = store
        self._tracker = tracker
        self._announcer = announcer
        self._record = NodeRecord(
            name=name, kind=kind, process=tracker.process, address=address, labels=labels or {}, rate_limit=rate_limit
        )
        self._server: FileServer | None = None
        self.surveyed = asyncio.Event()
        """Set once the fold has every model that lies here, if only as one that is being read in."""
        self._digests: dict[str, str] = {}
        self._refused: set[str] = set()
        """What lies here and could not be adopted: that is said once, and looked at again each time."""
        self._adopting = asyncio.Lock()
        self._stop = threading.Event()
        self.volume = volume_of(store.models)
        """Names the models folder; nodes that share it have the same."""
        self.reclaim: Reclaim | None = None
        """Does what a collection's deletion wants, up to the end; False where the files are to be deleted as ever."""
        self.make_room: MakeRoom = _no_room
        """Frees some bytes for a transfer, as far as that is allowed; tells whether it did."""
        self._counting = threading.Lock()
        self.bytes_received = 0
        """Bytes of files that holders sent here since the start, also in vain."""

    @property
    def bytes_sent(self) -> int:
        """Bytes of files that were served to others since the start."""
        return self._server.bytes_sent if self._server else 0

    def receive(self, count: int) -> None:
        """Count bytes of files that came; from any thread."""
        with self._counting:
            self.bytes_received += count

    @asynccontextmanager
    async def running(
        self, host: str, port: int, token: str, advertise: str, tls: ssl.SSLContext | None = None
    ) -> AsyncGenerator[Node, None]:
        """Hold and serve for as long as the block lasts; the file server listens on ``host:port``, over TLS if told."""
        async with AsyncExitStack() as stack:
            server = stack.enter_context(FileServer(self.store, host, port, token, tls=tls))
            self._server = server
            files = server.url.replace(f"//{host}:", f"//{advertise}:")
            self._announce(files=files)
            deleting = Duty(self._tracker, "deletion", self._delete, node=self.name)
            tasks = [asyncio.create_task(work()) for work in (self._watch_models, self._watch_disk)]
            try:
                async with deleting.running():
                    yield self
            finally:
                self._stop.set()
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                self._announce(left=True)

    @property
    def record(self) -> NodeRecord:
        """What it has said of itself last."""
        return self._record

    def tell(self, **changes: object) -> None:
        """Say how the disk stands now, and new values for fields of the node's record."""
        self._announce(**changes)

    def drain(self, draining: bool) -> None:  # noqa: FBT001  # the one thing it says
        """Say whether new work may be placed here."""
        self._announce(draining=draining)

    async def settled(self) -> None:
        """Return once the log has everything that this node has said of itself."""
        await self._announcer.settled()

    async def announce(self, name: str) -> None:
        """Say that a model which was just recorded is held here, whatever else is being read in meanwhile."""
        if not await self._say_recorded(name):
            await self.adopt()

    async def conclude(self, ownership: Ownership, manifest: Manifest) -> None:
        """Announce the model, and only then let the operation end: whoever sees the end finds the model."""
        await ownership.change(
            phase="publishing", bytes_total=manifest.size, bytes_done=manifest.size, total_files=len(manifest.files)
        )
        ownership.settle()
        await self.announce(manifest.model)
        await self.settled()

    async def adopt(self) -> None:
        """Look at the models folder and announce what is new, changed or gone there."""
        async with self._adopting:
            known = set(self._digests)
            names = await asyncio.to_thread(self.store.names)
            for name in sorted(known - set(names)):
                self._say_gone(name)
            # Announced before the first of them is hashed, which may take long: none is unknown meanwhile.
            unread = [name for name in names if not await self._say_recorded(name)]
            self._refused &= set(unread)
            for name in [name for name in unread if name not in self._refused]:
                self._digests.setdefault(name, "")
                self._say(Holding(node=self.name, model=name, state="reading"))
            await self._survey()
            for name in unread:
                await self._read_in(name)

    async def _survey(self) -> None:
        if not self.surveyed.is_set():
            await self._tracker.until(lambda: all(map(self._is_known, self._digests)))
            self.surveyed.set()

    def _is_known(self, name: str) -> bool:
        holding = self._tracker.fold.holdings.get((self.name, name))
        return holding is not None and holding.state != "gone"

    async def _say_recorded(self, name: str) -> bool:
        """Announce a model whose files are as they were recorded; tell whether they are."""
        manifest = await asyncio.to_thread(self.store.recorded, name)
        if manifest is not None:
            self._say_held(manifest)
        return manifest is not None

    async def _read_in(self, name: str) -> None:
        try:
            self._say_held(await in_thread(self._stop, self.store.manifest, name, None, self._stop))
        except Interrupted:
            return
        except (StagecastError, OSError) as error:
            if name not in self._refused:
                self._refused.add(name)
                _logger.warning("%s cannot be adopted: %s", name, error)
                self._say_gone(name)

    def _say_held(self, manifest: Manifest) -> None:
        self._digests[manifest.model] = manifest.digest
        self._say(
            Holding(
                node=self.name, model=manifest.model, digest=manifest.digest, size=manifest.size,
                files=len(manifest.files),
            )
        )  # fmt: skip

    def _say(self, holding: Holding) -> None:
        self._announcer.say(subjects.holding(self.name, holding.model), holding)

    def _say_gone(self, name: str) -> None:
        self._digests.pop(name, None)
        self._say(Holding(node=self.name, model=name, state="gone"))

    def _announce(self, **changes: object) -> None:
        space, reserved = self.store.space(), sum(promise.left for promise in self.store.promises())
        values = {field: getattr(self._record, field) for field in self._record.__struct_fields__}
        disk = {
            "disk_free": space.free, "disk_total": space.total, "disk_reserved": reserved, "volume": self.volume,
            "pinned": tuple(self.store.marks.pinned()),
        }  # fmt: skip
        self._record = NodeRecord(**{**values, **disk, **changes})
        self._announcer.say(subjects.node(self.name), self._record)

    async def _watch_disk(self) -> None:
        while True:
            await asyncio.sleep(DISK_INTERVAL)
            await self._look()

    async def _look(self) -> None:
        """Adopt, and say how much room there is; a disk that fails is looked at again the next time."""
        try:
            await self.adopt()
            if await asyncio.to_thread(self._has_moved):
                self._announce()
        except OSError as error:
            _logger.warning("the models of %s cannot be looked at: %s", self.name, error)

    def _has_moved(self) -> bool:
        """Tell whether the disk is another one than was announced, by enough to matter."""
        free, reserved = self.store.space().free, sum(promise.left for promise in self.store.promises())
        said = self._record
        is_other = reserved == 0 != said.disk_reserved or tuple(self.store.marks.pinned()) != said.pinned
        return is_other or max(abs(free - said.disk_free), abs(reserved - said.disk_reserved)) >= DISK_STEP

    async def _watch_models(self) -> None:
        """Adopt at the start, and whenever somebody else says that it holds a model which is not known here yet.

        That is how replicas on one shared folder come to know what one of them has installed or deleted there.
        """
        await self._tracker.caught_up.wait()
        self._disown()
        seen: object = None
        woken = asyncio.Event()
        with self._tracker.listening("holding", woken.set):
            while True:
                woken.clear()
                others = self._others()
                if others != seen:
                    seen = others
                    await self._look()
                await woken.wait()

    def _disown(self) -> None:
        """Take back what an earlier process of this node announced, and the disk no longer has."""
        names = set(self.store.names())
        for (node, model), holding in list(self._tracker.fold.holdings.items()):
            if node == self.name and holding.state != "gone" and model not in names:
                self._say_gone(model)

    def _others(self) -> frozenset[tuple[str, str, str]]:
        return frozenset(
            (holding.model, holding.digest, holding.state)
            for holding in self._tracker.fold.holdings.values()
            if holding.node != self.name
        )

    async def _delete(self, ownership: Ownership) -> None:
        model = ownership.record.model
        async with self._adopting:
            if ownership.record.cause == GC and self.reclaim is not None and await self.reclaim(ownership):
                return
            freed = await in_thread(threading.Event(), aside(self._free), model)
            self._say_gone(model)
        await self._announcer.settled()
        self._announce()
        await ownership.change(bytes_total=freed, bytes_done=freed)

    def _free(self, model: str) -> int:
        """Delete a model, and what was kept of one that never was whole; return how many bytes that was."""
        freed = self.store.discard_partials(model) + installation.discard(self.store, model)
        with suppress(Unknown):
            freed += self.store.remove(model)
        return freed
