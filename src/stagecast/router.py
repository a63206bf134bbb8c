"""The router: which backend answers for a model, and how it comes to be loaded.

A request for a model that is loaded nowhere writes a placement with a compare-and-set, so however many replicas get
such requests at once, one load follows. Waiting is bounded by the caller; the load is not bound to any request.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

import msgspec

from stagecast import operations, placement, subjects
from stagecast.errors import AppendConflict, BackendFailed, ModelLoading, NotReady, Unknown
from stagecast.messages import Instance, Placement, Record
from stagecast.placement import Candidate
from stagecast.presence import Presence
from stagecast.rows import Row, row
from stagecast.tracker import Tracker

LOOK_AGAIN: Final = 1.0
"""Seconds after which a waiting request looks again even if the log said nothing: a lease may have run out."""


@dataclass(frozen=True, slots=True)
class Target:
    """A backend that is ready: the worker's ``address`` (a base URL) and the exact instance that is meant."""

    node: str
    address: str
    instance: str


class Loading(msgspec.Struct, omit_defaults=True, kw_only=True):
    """Where a load stands: the ``loading`` object of WIRE section 3. Sizes in bytes."""

    model: str
    state: str
    node: str | msgspec.UnsetType = msgspec.UNSET
    progress: int
    bytes_sent: int
    total_bytes: int
    file_index: int
    total_files: int
    eta_seconds: float | msgspec.UnsetType = msgspec.UNSET


class Router:
    """Finds backends, and writes the placements that make them come to be."""

    def __init__(self, tracker: Tracker, presence: Presence) -> None:
        self._tracker = tracker
        self._presence = presence
        self._busy: Counter[str] = Counter()

    def targets(self, model: str) -> list[Target]:
        """Return the backends that are ready for a model, the least busy first."""
        fold = self._tracker.fold
        found = []
        for node, name in fold.instances:
            instance = fold.instance(node, name) if name == model else None
            if instance and instance.state == "ready" and self._presence.is_node_alive(node):
                found.append(Target(node, fold.nodes[node].address, instance.instance))
        return sorted(found, key=lambda target: (self._busy[target.instance], target.node))

    @contextmanager
    def using(self, target: Target) -> Iterator[None]:
        """Count a request against a backend for as long as the block lasts."""
        self._busy[target.instance] += 1
        try:
            yield
        finally:
            self._busy[target.instance] -= 1
            if not self._busy[target.instance]:
                del self._busy[target.instance]

    def knows(self, model: str) -> bool:
        """Tell whether the model is somewhere in the cluster, or on its way."""
        fold = self._tracker.fold
        return (
            bool(fold.copies(model))
            or bool(self.targets(model))
            or any(record.model == model and record.kind != "deletion" for record in fold.live())
        )

    async def ready(self, model: str, budget: float, avoid: frozenset[str] = frozenset()) -> Target:
        """Return a backend for a model, loading it first if need be; ``avoid`` names instances that did not answer.

        Raises:
            Unknown: nobody has the model.
            ModelLoading: it is not ready within ``budget`` seconds; `standing` says where it is.
            BackendFailed: it could be loaded nowhere, with the cause.
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + budget
        while True:
            usable = [target for target in self.targets(model) if target.instance not in avoid]
            if usable:
                return usable[0]
            if not self.knows(model):
                raise Unknown("model", model, self._tracker.fold.models())
            await self.place(model)
            if self._tracker.is_closing:
                raise NotReady("this replica is stopping; ask again")
            left = deadline - clock()
            if left <= 0:
                raise ModelLoading(model)
            await self._tracker.changed(self._tracker.revision, min(left, LOOK_AGAIN))

    async def place(self, model: str, node: str | None = None) -> Placement:
        """Make sure that a living worker is asked to load the model; return the wish as it stands.

        Raises:
            BackendFailed: every worker that could has failed to load it.
            Unknown: ``node`` is no living worker.
        """
        known = self._tracker.fold.placements.get(model)
        if known is not None and self._wanted(model, known, node) is known:
            return known
        subject = subjects.placement(model)
        while True:
            entry = await self._tracker.bus.log.last(subject)
            held = msgspec.json.decode(entry.payload, type=Placement) if entry else None
            wanted = self._wanted(model, held, node)
            if wanted is held and held is not None:
                return held
            with suppress(AppendConflict):
                revision = await self._tracker.say(
                    subject, msgspec.json.encode(wanted), expected=entry.sequence if entry else 0
                )
                await self._tracker.reached(revision, LOOK_AGAIN)
                return wanted

    def standing(self, model: str) -> Loading:
        """Return where the load of a model stands, from the operation that is at it now."""
        record = self._current(model)
        if record is None:
            return Loading(
                model=model, state="queued", progress=0, bytes_sent=0, total_bytes=0, file_index=0, total_files=0
            )
        shown: Row = row(record)
        return Loading(
            model=model,
            state=shown.state if shown.state != "running" else shown.phase,
            node=shown.node_name or msgspec.UNSET,
            progress=shown.progress,
            bytes_sent=shown.current_bytes,
            total_bytes=shown.total_bytes,
            file_index=shown.file_index,
            total_files=shown.total_files,
            eta_seconds=shown.eta_seconds,
        )

    def _wanted(self, model: str, held: Placement | None, node: str | None) -> Placement:
        now = self._tracker.now()
        if node is not None:
            if node not in {candidate.name for candidate in self._candidates(model)}:
                raise Unknown("worker", node, [candidate.name for candidate in self._candidates(model)])
            if held is not None and node in held.nodes and not self._failed(held, node):
                return held
            return placement.placed(held, model, node, now)
        refused = set(held.refused) if held else set()
        if held is not None and held.nodes:
            living = [name for name in held.nodes if self._presence.is_node_alive(name)]
            failed = {name: instance for name in living if (instance := self._failed(held, name))}
            if len(failed) < len(living):
                return held
            refused |= failed.keys()
            if failed and now - held.placed_at >= placement.COOL_DOWN:
                refused = set()
        chosen = placement.choose(self._candidates(model), self._size(model), refused)
        if chosen is None:
            raise BackendFailed(self._why_nowhere(model, refused))
        return placement.placed(held, model, chosen, now, sorted(refused))

    def _candidates(self, model: str) -> list[Candidate]:
        fold = self._tracker.fold
        # One that still reads the files in has them, too: a load waits for that.
        holders = {holding.node for holding in fold.copies(model)}
        loaded = Counter(name for held in fold.placements.values() for name in held.nodes)
        return [
            Candidate(name, name in holders, loaded[name], node.disk_free)
            for name, node in fold.nodes.items()
            if node.kind == "worker" and not node.draining and self._presence.is_node_alive(name)
        ]

    def _failed(self, held: Placement, node: str) -> Instance | None:
        instance = self._tracker.fold.instance(node, held.model)
        is_answer = instance is not None and instance.generation == held.generation
        return instance if is_answer and instance and instance.state == "failed" else None

    def _size(self, model: str) -> int:
        return max((holding.size for holding in self._tracker.fold.holders(model)), default=0)

    def _why_nowhere(self, model: str, refused: set[str]) -> str:
        causes = [
            f"{name}: {instance.error}"
            for name in sorted(refused)
            if (instance := self._tracker.fold.instance(name, model)) is not None and instance.error
        ]
        if causes:
            return f"{model} could not be loaded: {'; '.join(causes)}"
        if not self._candidates(model):
            return f"no living worker can load {model}; start one, or end a drain, then retry"
        return f"no worker has room for {model} ({self._size(model):,} bytes); free some disk, then retry"

    def _current(self, model: str) -> Record | None:
        """Return the operation that people who wait for a model wait for, the one furthest on its way first."""
        held = self._tracker.fold.placements.get(model)
        nodes = held.nodes if held else ()
        order = {"loading": 0, "staging": 1, "installation": 2}
        found = [
            record
            for record in self._tracker.fold.live()
            if record.model == model and record.kind in order and (not record.node or record.node in nodes)
        ]
        return min(found, key=lambda record: (order[record.kind], operations.rank(record)), default=None)
