"""The rig: a real cluster with its readers, its witness and its load, and the hands that break it."""

from __future__ import annotations

import asyncio
import random
import secrets
import shutil
import signal
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from chaos.arrivals import Arrivals
from chaos.judge import Judge
from chaos.load import RATE, Load, answered, lay_out
from chaos.network import Network
from chaos.polling import BROWSER, PAGE, Readers
from chaos.polling import RATE as POLLS
from chaos.resumption import verified_on_disk
from chaos.timeline import Step, Timeline, first, is_settled, seconds_to_stalled, seconds_to_takeover
from chaos.witness import Witness, witness
from stagecast import operations
from stagecast.child import ChildFailed
from stagecast.client import Client
from stagecast.cluster import NATS, Cluster, ClusterSettings, cluster
from stagecast.errors import StagecastError
from stagecast.rows import Row

REPLICAS: Final = 3
WORKERS: Final = 3
AGREEMENT_PATIENCE: Final = 30.0
_LOOK: Final = 0.02
_END_PATIENCE: Final = 3.0
_STARTS: Final = 5
_MIDDLE: Final = 30.0


class NothingMoves(StagecastError):
    """No operation is in the middle of its bytes, so that a fault has nothing to break."""

    code = "nothing_moves"

    def __init__(self, patience: float) -> None:
        super().__init__(f"nothing was in the middle of its bytes for {patience:g} s")


@dataclass
class Rig:
    """Everything that a fault may lay its hands on, and look at."""

    cluster: Cluster
    network: Network | None
    judge: Judge
    timeline: Timeline
    readers: Readers
    witness: Witness
    load: Load
    client: Client
    arrivals: Arrivals
    random: random.Random
    events: list[dict[str, Any]]
    began: float
    _stack: AsyncExitStack
    _processes: dict[str, str] = field(default_factory=dict)
    _visitors: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _down: set[str] = field(default_factory=set)
    _clients: dict[str, Client] = field(default_factory=dict)

    @property
    def now(self) -> float:
        """The loop's time, by which everything here is timed."""
        return asyncio.get_running_loop().time()

    def note(self, what: str, **facts: Any) -> None:
        """Write an event down."""
        self.events.append({"t": round(self.now - self.began, 3), "what": what, **facts})

    @property
    def replicas(self) -> list[str]:
        """The replicas that are up and awake."""
        return [child.name for child in self.cluster.replicas if child.name not in self._down]

    @property
    def workers(self) -> list[str]:
        """The workers' names."""
        return [child.name for child in self.cluster.workers]

    async def kill(self, name: str) -> str:
        """End a process with SIGKILL; return what it was called on the log."""
        self._down.add(name)
        async with self._counted(name):
            self.note("kill", process=name)
            process = self._fell(name)
            await self.cluster.kill(name)
        return process

    async def stop(self, name: str) -> None:
        """End a process gently."""
        self._down.add(name)
        async with self._counted(name):
            self.note("stop", process=name)
            self._fell(name)
            await self.cluster.children[name].stop()

    async def start(self, name: str) -> float:
        """Start what was killed or stopped; return when it was ready."""
        for attempt in range(_STARTS):
            try:
                await self.cluster.restart(name)
                break
            except ChildFailed as error:
                # It found no bus, and gave up; whoever supervises it starts it again.
                self.note("start failed", process=name, error=error.message)
                if attempt == _STARTS - 1:
                    raise
        ready = self.now
        self.note("ready", process=name)
        await self._rose(name)
        return ready

    def freeze(self, name: str) -> str:
        """Stop a process with SIGSTOP; return what it is called on the log."""
        self._down.add(name)
        self.note("freeze", process=name)
        self.cluster.send(name, signal.SIGSTOP)
        return self._fell(name)

    def thaw(self, name: str) -> float:
        """Let it go on; return when."""
        self.cluster.send(name, signal.SIGCONT)
        self.note("thaw", process=name)
        self._down.discard(name)
        self.judge.woke(self._processes.get(name, ""))
        self.judge.reachable(name, self.now)
        return self.now

    def cut(self, name: str, *others: str) -> None:
        """Let nothing pass between a process and others."""
        assert self.network is not None
        self.note("cut", process=name, others=others)
        self.network.cut(name, others)

    def heal(self, name: str) -> float:
        """Undo every cut between a process and others; return when."""
        assert self.network is not None
        self.network.heal(name)
        self.note("heal", process=name)
        return self.now

    def empty_nats(self) -> None:
        """Delete everything that nats-server keeps; it must be down."""
        shutil.rmtree(self.cluster.data / NATS)

    def verified(self, row: Row) -> int:
        """Return how many bytes of what a dead worker was staging are verified on its disk."""
        return verified_on_disk(self.cluster.data / row.node_name / "models", row.name)

    def received(self, name: str) -> int:
        """Return the bytes that were sent to a process so far; 0 without a network of our own."""
        return self.network.received(name) if self.network else 0

    async def add_replica(self) -> str:
        """Start one more replica; return its name."""
        child = await self.cluster.add_replica()
        self.note("added", process=child.name)
        await self._rose(child.name)
        self._visit(child.name)
        return child.name

    async def remove_replica(self, name: str) -> None:
        """End a replica gently, for good."""
        self._visitors.pop(name).cancel()
        async with self._counted(name):
            await self.cluster.remove_replica(name)
        self.note("removed", process=name)

    async def agreed(self, since: float) -> float | None:
        """Return how long after ``since`` all living replicas agreed."""
        seconds = await self.readers.agreed(self.replicas, since, AGREEMENT_PATIENCE)
        self.note("agreed", seconds=seconds)
        return seconds

    async def look_for_ghosts(self) -> None:
        """Have the judge know what the page still shows, where nothing is under way any more."""
        await self.until(lambda: not self.readers.page, _END_PATIENCE)
        self.judge.ghosts(self.now, PAGE, self.readers.page.values())

    async def without_end(self, jobs: Iterable[str]) -> list[str]:
        """Return the runs whose end some living replica does not know; it is asked for a moment until it does."""
        left = {(job, name) for job in jobs for name in self.replicas}
        deadline = self.now + _END_PATIENCE
        while left:
            asked = sorted(left)
            known = await asyncio.gather(*(self._knows_end(name, job) for job, name in asked))
            left -= {pair for pair, is_known in zip(asked, known, strict=True) if is_known}
            if self.now > deadline:
                break
            await asyncio.sleep(_LOOK)
        for job, name in sorted(left):
            self.note("no end", job=job, replica=name)
        return sorted({job for job, _ in left})

    async def _knows_end(self, name: str, job: str) -> bool:
        url = self.cluster.children[name].url
        if url not in self._clients:
            client = Client(url, api_key=self.cluster.settings.api_key)
            self._clients[url] = await self._stack.enter_async_context(client)
        try:
            async with answered(f"GET of {job} at {name}", self.note):
                return (await self._clients[url].operation(job)).state in operations.ENDED
        except StagecastError:
            return False

    async def pause(self, least: float, most: float) -> None:
        """Let a random time pass."""
        await asyncio.sleep(self.random.uniform(least, most))

    async def until(self, condition: Callable[[], bool], patience: float) -> bool:
        """Wait for a condition; tell whether it came true."""
        deadline = self.now + patience
        while not condition() and self.now < deadline:
            await asyncio.sleep(_LOOK)
        return condition()

    async def transferring(
        self, among: Callable[[Row], bool], least: float = 0.05, most: float = 0.7, patience: float = _MIDDLE
    ) -> Row:
        """Wait for an operation of those that is in the middle of its bytes; return its row. Raises `NothingMoves`."""

        def found() -> list[Row]:
            return [
                row for row in self.timeline.rows.values()
                if row.state == "running" and row.phase == "transferring" and among(row)
                and least * row.total_bytes <= row.current_bytes <= most * row.total_bytes
            ]  # fmt: skip

        if not await self.until(lambda: bool(found()), patience):
            raise NothingMoves(patience)
        return self.random.choice(sorted(found(), key=lambda row: row.id))

    async def stalled(self, row: Row, died: float, patience: float) -> float | None:
        """Wait until an operation is shown as stalled; return how long after ``died``, None if it never was."""
        steps = self.timeline.since
        await self.until(lambda: is_settled(steps(row.job_id, died), died, row.owner), patience)
        return seconds_to_stalled(steps(row.job_id, died), died)

    async def taken_over(self, row: Row, owner: str, able: float, patience: float) -> float | None:
        """Wait until somebody else than ``owner`` goes on with an operation; return how long after ``able``."""
        await self.until(lambda: seconds_to_takeover(self._steps(row, able), owner, able) is not None, patience)
        return seconds_to_takeover(self._steps(row, able), owner, able)

    async def moved(self, row: Row, since: float, patience: float) -> float | None:
        """Wait until more bytes are shown than at ``since``, or the end; return how long after."""
        held = self.timeline.rows.get(row.job_id)
        count = held.current_bytes if held else 0

        def step() -> Step | None:
            return first(self._steps(row, since), lambda step: step.bytes > count or step.state == "gone")

        await self.until(lambda: step() is not None, patience)
        found = step()
        return found.time - since if found else None

    def _counted(self, name: str) -> AbstractAsyncContextManager[None]:
        return self.arrivals.ending(name) if name != NATS else nullcontext()

    def _steps(self, row: Row, since: float) -> list[Step]:
        return self.timeline.since(row.job_id, since)

    def _fell(self, name: str) -> str:
        process = self._processes.get(name, "")
        if process:
            self.judge.died(process, self.now)
        return process

    async def _rose(self, name: str) -> None:
        self._down.discard(name)
        self.judge.reachable(name, self.now)
        if name == NATS:
            return
        for _ in range(50):
            process = await self.witness.process_of(name)
            if process and process != self._processes.get(name):
                self._processes[name] = process
                return
            await asyncio.sleep(0.05)
        self.note("no process", node=name)

    def _visit(self, name: str) -> None:
        visiting = self.readers.visit(
            lambda: self.cluster.children[name].url, name, self.cluster.settings.api_key, REPLICAS / POLLS
        )
        self._visitors[name] = asyncio.create_task(visiting, name=f"newcomer at {name}")

    async def open(self) -> None:
        """Begin to watch."""
        url, key = self.cluster.url, self.cluster.settings.api_key
        reading = {BROWSER: self.readers.browse(url, key), PAGE: self.readers.follow(url, key)}
        tasks = [asyncio.create_task(work, name=name) for name, work in reading.items()]
        for name in (*self.replicas, *self.workers):
            await self._rose(name)
        for name in self.replicas:
            self._visit(name)
        self._stack.push_async_callback(self._close, tasks)
        await self.arrivals.look()

    async def _close(self, tasks: list[asyncio.Task[None]]) -> None:
        ending = [*tasks, *self._visitors.values()]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)


@asynccontextmanager
async def rig(data: Path, network: Network | None, seed: random.Random) -> AsyncGenerator[Rig, None]:
    """Run all of it for as long as the block lasts."""
    models = lay_out(data / "models")
    key = secrets.token_urlsafe(16)
    settings = ClusterSettings(data=data, replicas=REPLICAS, workers=WORKERS, rate_limit=RATE, api_key=key)
    events: list[dict[str, Any]] = []
    judge, timeline = Judge(), Timeline()
    began = asyncio.get_running_loop().time()

    def say(line: str) -> None:
        events.append({"t": round(asyncio.get_running_loop().time() - began, 3), "what": "unexpected", "text": line})

    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(cluster(settings, say, network))
        seen = await stack.enter_async_context(witness(running.nats_url, judge))
        client = await stack.enter_async_context(Client(running.url, api_key=key))
        arrivals = await stack.enter_async_context(Arrivals(running, network).open())
        nodes = [child.name for child in running.workers]

        def note(what: str, **facts: Any) -> None:
            made.note(what, **facts)

        load = Load(client, models, nodes, note)
        made = Rig(
            cluster=running, network=network, judge=judge, timeline=timeline, readers=Readers(judge, timeline),
            witness=seen, load=load, client=client, arrivals=arrivals, random=seed, events=events, began=began,
            _stack=stack,
        )  # fmt: skip
        await made.open()
        yield made
