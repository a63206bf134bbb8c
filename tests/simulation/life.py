"""The machines of the cluster and the processes on them, put together of the parts that run in production.

What is simulated is what lies outside of those parts: the disk, and the pieces that move.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec
from nats.errors import Error as NatsError

from stagecast import subjects
from stagecast.announcer import Announcer
from stagecast.bus.nats import NatsBus
from stagecast.duty import Duty
from stagecast.errors import StagecastError, TransferFailed
from stagecast.frontend.gate import Gate
from stagecast.frontend.replica import Replica
from stagecast.history import History
from stagecast.messages import Holding, NodeRecord, Record
from stagecast.ownership import Ownership
from stagecast.participant import participating
from stagecast.tracker import Tracker
from tests.simulation.client import Client
from tests.simulation.loop import Process
from tests.simulation.server import EPOCH
from tests.simulation.site import Site

if TYPE_CHECKING:
    from tests.simulation.cluster import Cluster

PIECE: Final = 16


@dataclass
class Disk:
    """What a node keeps through every crash: whole models, and the pieces of those that are on their way."""

    whole: set[str] = field(default_factory=set)
    pieces: dict[str, dict[int, int]] = field(default_factory=dict)
    """Per model and piece: bytes that were written; ``PIECE`` of them mean that the piece was verified."""

    def present(self, model: str) -> int:
        """Return how many bytes are written, verified or not."""
        return sum(self.pieces.get(model, {}).values())


class Life:
    """One process of a node, from its start to its end."""

    def __init__(self, cluster: Cluster, node: Node, number: int) -> None:
        self.cluster = cluster
        self.node = node
        self.process = cluster.loop.process(f"{node.name}.{number}")
        self.id = f"{node.name}/{number:08x}"
        self.client = Client(cluster.server, self.process)
        self.tracker: Tracker | None = None
        self.replica: Replica | None = None
        self.history: History | None = None
        self.gate: Gate | None = None
        self.duty: Duty | None = None
        self.announcer: Announcer | None = None
        self.is_ready = False
        self.began = cluster.loop.time()
        self.awake_since = self.began
        self.ready_since = self.began
        self.ended_at: float | None = None
        self.asked: dict[asyncio.Future[Any], Process] = {}
        """The answers that clients wait for from this process, and which client does."""
        self.chance = random.Random(f"{cluster.seed} {self.id}")
        cluster.ledger.born(self)
        self.main = self.process.spawn(self._live())
        self.main.add_done_callback(lambda done: node.ended(self, done))

    @property
    def is_alive(self) -> bool:
        """Tell whether it can take steps, now or once it wakes."""
        return not self.process.is_dead

    @property
    def well_since(self) -> float | None:
        """Since when it is alive, awake, ready and connected without a break, as far as anybody outside can tell."""
        if not self.is_ready or self.process.is_dead or self.process.is_paused or not self.client.is_connected:
            return None
        server = self.cluster.server
        if not server.is_up or server.process.is_paused or self.client.is_cut:
            return None
        return max(
            self.ready_since, self.awake_since, self.client.connected_since, self.client.healed_since,
            self.cluster.server_since,
        )  # fmt: skip

    def wall(self) -> float:
        """Return this node's own clock."""
        return EPOCH + self.node.skew + self.cluster.loop.time()

    async def _live(self) -> None:
        while not self.client.is_connected:
            with suppress(TimeoutError):
                await self.client.connect()
        bus = NatsBus(self.client, chance=self.chance)  # type: ignore[arg-type]  # the narrow part of it
        self.client.changed = bus.wake
        for log in (bus.log, bus.history):
            while True:
                try:
                    await log.ensure()
                    break
                except (NatsError, OSError):
                    await asyncio.sleep(0.2)
        try:
            await self._work(bus)
        finally:
            with suppress(Exception):
                async with asyncio.timeout(1.0):
                    await self.client.flush()

    async def _work(self, bus: NatsBus) -> None:
        loop, is_replica = self.cluster.loop, self.node.kind == "replica"
        async with AsyncExitStack() as stack:
            tracker = Tracker(bus, self.id, mends=is_replica, clock=self.wall, chance=self.chance)
            self.tracker = tracker
            self.process.watch = self.cluster.ledger.watch(self)
            taking_part = participating(bus, self.node.name, judges=is_replica, tracker=tracker)
            part = await stack.enter_async_context(taking_part)
            self.announcer = part.announcer
            record = NodeRecord(name=self.node.name, kind=self.node.kind, process=self.id)
            self._say_node(record)
            stack.callback(self._say_node, msgspec.structs.replace(record, left=True))
            if is_replica:
                for model in self.cluster.models:
                    self._say_holding(model)
                self.history = part.history
                self.replica = Replica(
                    participant=part, router=None, node=None, token="", galleries=(), wait_budget=0.0,  # type: ignore[arg-type]
                )  # fmt: skip
                self.duty = Duty(tracker, "installation", self._perform)
            else:
                self.duty = Duty(tracker, "staging", self._perform, node=self.node.name, clear=self._clear)
            await stack.enter_async_context(self.duty.running())
            if is_replica:
                self.gate = Gate(Site(self), tracker, self.node.name, "")
            self.is_ready, self.ready_since = True, loop.time()
            await asyncio.get_running_loop().create_future()

    def _say_node(self, record: NodeRecord) -> None:
        assert self.announcer is not None
        self.announcer.say(subjects.node(record.name), record)

    def _say_holding(self, model: str) -> None:
        assert self.announcer is not None
        holding = Holding(node=self.node.name, model=model, digest=f"digest of {model}", size=1, files=1)
        self.announcer.say(subjects.holding(self.node.name, model), holding)

    # The work that takes time.

    async def _perform(self, ownership: Ownership) -> None:
        """Move the pieces of a model, as `stagecast.worker` and `stagecast.frontend.installs` do."""
        disk, model = self.node.disk, ownership.record.model
        pieces = self.cluster.models[model]
        total = pieces * PIECE
        await ownership.change(phase="planning")
        await asyncio.sleep(0.05 * self.chance.random())
        if model in disk.whole:
            await ownership.change(bytes_present=total, bytes_done=total, bytes_total=total)
        else:
            present = disk.present(model)
            await ownership.change(
                phase="transferring", bytes_total=total, bytes_done=present, bytes_present=present, total_files=2,
            )  # fmt: skip
            try:
                await self._move(ownership, model, pieces)
            except asyncio.CancelledError:
                if ownership.stopped_by == "cancel" and not ownership.keep_partial:
                    disk.pieces.pop(model, None)
                raise
            await ownership.change(phase="publishing")
            disk.whole.add(model)
            disk.pieces.pop(model, None)
        await ownership.change(phase="publishing", bytes_total=total, bytes_done=total)
        ownership.settle()
        self._say_holding(model)
        assert self.announcer is not None
        await self.announcer.settled()

    async def _move(self, ownership: Ownership, model: str, pieces: int) -> None:
        pace = self.cluster.pace
        have = self.node.disk.pieces.setdefault(model, {})
        for piece in range(pieces):
            if have.get(piece) == PIECE:
                continue
            written = have.get(piece, 0)
            while written < PIECE:
                await asyncio.sleep(pace * (0.5 + self.chance.random()))
                if model in self.cluster.broken:
                    raise TransferFailed(f"{model}: its source is gone")
                self.cluster.ledger.moved(self, ownership.record)
                count = PIECE // 2
                written += count
                have[piece] = written
                ownership.advance(count)
            if piece == pieces // 2 - 1:
                ownership.complete(1, "first")
        ownership.enter(2, "second")

    async def _clear(self, record: Record) -> None:
        if not record.keep_partial:
            self.node.disk.pieces.pop(record.model, None)


class Node:
    """A machine: it has a name, a clock, a disk, and one process after another."""

    def __init__(self, cluster: Cluster, name: str, kind: str, skew: float) -> None:
        self.cluster = cluster
        self.name = name
        self.kind: Any = kind
        self.skew = skew
        self.disk = Disk()
        self.life: Life | None = None

    def start(self) -> None:
        """Start a process here, unless one lives."""
        if self.life is None or not self.life.is_alive:
            self.life = Life(self.cluster, self, self.cluster.number())

    def crash(self) -> None:
        """End the process here between two steps."""
        life = self.life
        if life is not None and life.is_alive:
            life.ended_at = self.cluster.deaths[life.id] = self.cluster.loop.time()
            self.cluster.mourned[life.id] = life.client
            life.client.die()
            life.process.kill()
            self.cluster.ledger.died(life)
            self.cluster.reset(life)

    def stop(self) -> None:
        """Ask the process here to end, as SIGTERM does."""
        if self.life is not None and self.life.is_alive:
            self.life.process.post(self.life.main.cancel)

    def ended(self, life: Life, main: asyncio.Task[None]) -> None:
        """Take leave of a process that has ended by itself. One that could not start is tried again."""
        if self.life is not life or not life.is_alive:
            return
        error = None if main.cancelled() else main.exception()
        self.crash()
        if error is not None:
            if not isinstance(error, StagecastError):
                self.cluster.loop.failures.append(f"{life.id} ended with {error!r}")
            self.cluster.loop.world.post_at(self.cluster.loop.time() + 0.5, self.start)

    def pause(self) -> None:
        """Let the process here take no step: SIGSTOP, a long collection, a suspended machine."""
        if self.life is not None and self.life.is_alive:
            self.life.process.pause()

    def wake(self) -> None:
        """Let it go on."""
        if self.life is not None and self.life.process.is_paused:
            self.life.awake_since = self.cluster.loop.time()
            self.life.process.wake()
