"""The loader: runs the backends that placements ask of this worker, and says in the log how each of them fares."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

from stagecast import backend, recipes, subjects
from stagecast.announcer import Announcer
from stagecast.backend import Backend
from stagecast.errors import BackendFailed, StagecastError
from stagecast.messages import Instance, Placement, Record
from stagecast.node import Node
from stagecast.recipes import Recipe
from stagecast.supervision import State, keep_running
from stagecast.tracker import Tracker

_logger = logging.getLogger(__name__)

Stage = Callable[[str, str], Awaitable[None]]


class Loader:
    """The backends of one worker. ``stage`` makes sure that a model is on this disk."""

    def __init__(
        self, node: Node, tracker: Tracker, announcer: Announcer, known: Sequence[Recipe], stage: Stage, *, logs: Path
    ) -> None:
        self._node = node
        self._tracker = tracker
        self._announcer = announcer
        self._recipes = known
        self._stage = stage
        self._logs = logs
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._generations: dict[str, int] = {}
        self._ready: dict[str, Backend] = {}
        self._woken = asyncio.Event()
        self._beginning: set[asyncio.Task[None]] = set()

    def url(self, instance: str) -> str | None:
        """Return the base URL of an instance that is ready, or None if it does not run here (any more).

        Whoever asks sends a request there: that is a use of the model.
        """
        model = next((model for model, each in self._ready.items() if each.instance == instance), None)
        if model is None:
            return None
        self._node.store.marks.use(model)
        return self._ready[model].url

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Loader, None]:
        """Load what is placed here for as long as the block lasts; end every backend at its end."""
        watcher = asyncio.create_task(self._watch())
        self._tracker.hearers.append(self._hear)
        try:
            yield self
        finally:
            self._tracker.hearers.remove(self._hear)
            tasks = [watcher, *self._tasks.values(), *self._beginning]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self) -> None:
        await self._tracker.caught_up.wait()
        with self._tracker.listening("placement", self._woken.set):
            while True:
                self._woken.clear()
                for model, placement in list(self._tracker.fold.placements.items()):
                    await self._heed(model, placement)
                await self._woken.wait()

    async def _heed(self, model: str, placement: Placement) -> None:
        """Start what is newly placed here; end what no longer is."""
        task = self._tasks.get(model)
        if self._node.name not in placement.nodes:
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                del self._tasks[model]
                self._report(model, "gone")
        elif self._generations.get(model) != placement.generation and (task is None or task.done()):
            self._generations[model] = placement.generation
            failed = self._failed_before(model, placement)
            if failed is None:
                self._begin(model)
            else:
                self._report(model, "failed", error=failed.error)

    def _failed_before(self, model: str, placement: Placement) -> Instance | None:
        """Return what an earlier process of this node said of a wish that it tried in vain: it is not tried again."""
        said = self._tracker.fold.instances.get((self._node.name, model))
        is_answer = said is not None and (said.state, said.generation) == ("failed", placement.generation)
        return said if is_answer and said and said.process != self._tracker.process else None

    def _begin(self, model: str) -> None:
        task = self._tasks[model] = asyncio.create_task(self._keep(model), name=f"backend of {model}")
        # What was placed anew while it ran is heeded then.
        task.add_done_callback(lambda _: self._woken.set())

    def _hear(self, record: Record) -> None:
        is_mine = record.kind == "loading" and record.node == self._node.name
        if is_mine and record.state == "queued" and record.begun_by and self._tracker.caught_up.is_set():
            task = asyncio.create_task(self._begin_again(record))
            self._beginning.add(task)
            task.add_done_callback(self._beginning.discard)

    async def _begin_again(self, record: Record) -> None:
        """Load once more what was retried or resumed; where it is no longer wanted here, say so."""
        held = self._tasks.get(record.model)
        if held is not None:
            await asyncio.gather(held, return_exceptions=True)
        placement = self._tracker.fold.placements.get(record.model)
        if placement is not None and self._node.name in placement.nodes:
            if self._tasks.get(record.model) is held:
                self._begin(record.model)
            return
        async with self._tracker.own(record) as ownership:
            if ownership is not None:
                raise BackendFailed(f"{record.model} is no longer wanted on {self._node.name}; ask for it anew")

    async def _keep(self, model: str) -> None:
        """Keep a backend of the model running, with back-off, until it is given up or no longer wanted.

        One that was never ready is given up at once, so that another node is tried; one that has served is not.
        """
        self._report(model, "loading")
        try:
            await self._stage(model, "placement")
        except StagecastError as error:
            self._note(model, "failed", error.message)
        else:
            await keep_running(partial(self._run, model), partial(self._note, model), tries=1)

    async def _run(self, model: str, ready: Callable[[], None]) -> str:
        """Load the model and serve it until its process ends; return how it did. Raises `StagecastError`."""
        async with AsyncExitStack() as stack:
            try:
                started = await self._load(model, stack)
                ready()
                return await started.ended()
            finally:
                self._ready.pop(model, None)
                self._node.store.marks.use(model)

    def _note(self, model: str, state: State, detail: str) -> None:
        if state in ("restarting", "failed"):
            _logger.warning("backend of %s: %s; %s", model, state, detail)
            self._report(model, state, error=detail)

    async def _load(self, model: str, stack: AsyncExitStack) -> Backend:
        """Start a backend as an operation that people see, and return it once it is ready."""
        store = self._node.store
        manifest = await asyncio.to_thread(store.manifest, model)
        record, _ = await self._tracker.open(
            "loading", model, self._node.name, cause="placement", bytes_total=manifest.size
        )
        failure: StagecastError = BackendFailed(f"loading {model} was stopped from outside")
        async with self._tracker.own(record) as ownership:
            if ownership is None:
                raise BackendFailed(f"{record.id} is somebody else's already")
            try:
                await ownership.change(phase="loading", total_files=len(manifest.files))
                recipe = recipes.choose(self._recipes, model, [file.path for file in manifest.files])
                started = await stack.enter_async_context(backend.running(recipe, model, store.path(model), self._logs))
                self._report(model, "loading", started.instance)
                then = f"it fails after {recipe.patience:g} s of silence"
                await started.until_ready(
                    recipe, ownership.tell, lambda is_quiet: ownership.wait("backend" if is_quiet else "", then)
                )
            except StagecastError as error:
                failure = error
                raise
            ownership.settle()
            self._ready[model] = started
            store.marks.use(model)
            self._report(model, "ready", started.instance)
            await self._announcer.settled()
            await ownership.change(bytes_done=manifest.size)
            return started
        raise failure

    def _report(self, model: str, state: str, instance: str = "", error: str = "") -> None:
        said = Instance(
            node=self._node.name, model=model, process=self._tracker.process, instance=instance,
            generation=self._generations.get(model, 0), state=state, error=error,  # type: ignore[arg-type]
        )  # fmt: skip
        self._announcer.say(subjects.instance(self._node.name, model), said)
