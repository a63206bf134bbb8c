"""The replica: what the routes of a frontend share, and what they do. It keeps nothing that could be lost."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Final, Literal

import msgspec

from stagecast import leftovers, operations, placement, subjects
from stagecast.commands import Commands
from stagecast.errors import (
    AppendConflict,
    BadInput,
    BusError,
    NodeRefused,
    StagecastError,
    TransferFailed,
    Unknown,
    WrongState,
)
from stagecast.fold import Fold
from stagecast.history import History
from stagecast.manifest import Manifest
from stagecast.messages import Holding, NodeRecord, Priority, Record
from stagecast.node import Node
from stagecast.participant import Participant
from stagecast.past import Sought
from stagecast.plan import WAIT_FOR_SPACE, Place, Plan, Stock, measured, planned, together
from stagecast.presence import Presence
from stagecast.revision import Revision
from stagecast.router import Router
from stagecast.stocktaking import Wanted
from stagecast.tracker import Tracker
from stagecast.transfer import Holder, fetch_manifest
from stagecast.volume import disk_of

REMEMBERED: Final = 64
"""Manifests that are kept in memory."""
DELETION_TIMEOUT: Final = 30.0
"""Seconds without any deletion ending for which a request waits for the files to be gone."""


@dataclass(frozen=True)
class Replica:
    """One frontend process's parts, and what its routes do with them."""

    participant: Participant
    router: Router
    node: Node
    token: str
    galleries: tuple[str, ...]
    wait_budget: float
    _manifests: dict[str, Manifest] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What this replica is called."""
        return self.participant.name

    @property
    def tracker(self) -> Tracker:
        """Its view of everything, and its pen."""
        return self.participant.tracker

    @property
    def presence(self) -> Presence:
        """Who is alive."""
        return self.participant.presence

    @property
    def history(self) -> History:
        """What has ended."""
        return self.participant.history

    @property
    def commands(self) -> Commands:
        """How operations and nodes are told what to do."""
        return self.participant.commands

    @property
    def fold(self) -> Fold:
        """The picture at this replica's revision."""
        return self.tracker.fold

    def workers(self) -> dict[str, NodeRecord]:
        """Return the workers that have not left, by name."""
        return {name: node for name, node in self.fold.nodes.items() if node.kind == "worker" and not node.left}

    def holdings(self, model: str) -> list[Holding]:
        """Return who holds a model, or is reading it in. Raises `Unknown`."""
        found = self.fold.copies(model)
        if not found:
            raise Unknown("model", model, self.fold.models())
        return found

    def targets(self, nodes: list[str] | Literal["all"]) -> list[str]:
        """Return the workers that are meant. Raises `Unknown`, `WrongState`, `BadInput`."""
        workers = self.workers()
        if nodes == "all":
            able = sorted(name for name, node in workers.items() if not node.draining)
            chosen = [name for name in able if self.presence.is_node_alive(name)]
            if not chosen:
                raise BadInput("there is no living worker to stage to; start one with `stagecast worker`")
        else:
            chosen = list(dict.fromkeys(nodes))
            if not chosen:
                raise BadInput('say which workers: "nodes" is a list of names, or "all"')
        for name in chosen:
            if name not in workers:
                raise Unknown("worker", name, list(workers))
            if not self.presence.is_node_alive(name):
                raise WrongState(f"worker {name}", "not answering", "stage to")
        return chosen

    async def stage(
        self, model: str, nodes: list[str], cause: str, *, wait_for_space: bool = False, priority: Priority = "normal"
    ) -> tuple[list[Record], Revision]:
        """Queue a staging for each node; the workers do the rest. Stagings under way are returned as they stand.

        Those keep the call that began them; what is queued here tells of them beside it. ``wait_for_space``: where a
        disk has no room now, it waits until there is some, instead of failing.
        """
        holdings = self.holdings(model)
        size = max(holding.size for holding in holdings)
        digest = newest_digest(holdings)
        parameters = ({"digest": digest} if digest else {}) | ({WAIT_FOR_SPACE: "yes"} if wait_for_space else {})
        parameters |= {"priority": priority} if priority != "normal" else {}
        files = max(holding.files for holding in holdings)
        call, beside = self.tracker.new_id(), list[str]()
        opened: dict[str, tuple[Record, Revision]] = {}
        # Those that are under way come first, so that all the others can tell of them.
        for node in sorted(nodes, key=lambda node: not self._is_under_way(model, node)):
            opened[node] = record, _ = await self.tracker.open(
                "staging", model, node, cause=cause, parameters=parameters, bytes_total=size, total_files=files,
                call=call, beside=tuple(beside),
            )  # fmt: skip
            if record.call != call:
                beside.append(record.job)
        revision = max((revision for _, revision in opened.values()), key=lambda revision: revision.sequence)
        await self.tracker.reached(revision, 2.0)
        return [self.fold.record(opened[node][0].id) or opened[node][0] for node in nodes], revision

    def _is_under_way(self, model: str, node: str) -> bool:
        held = self.fold.record(operations.operation_id("staging", model, node))
        return held is not None and not operations.is_ended(held)

    async def verify(self, model: str, nodes: list[str] | Literal["all"], cause: str) -> tuple[list[Record], Revision]:
        """Have the copies of a model read anew and repaired, on these nodes or wherever one is that can be reached.

        Raises:
            Unknown: nobody has the model, or one of the nodes has not.
            WrongState: a node is out of reach, or at something else with the model.
        """
        holdings = self.holdings(model)
        holders = [holding.node for holding in holdings]
        living = [name for name in holders if self.presence.is_node_alive(name)]
        chosen = living if nodes == "all" else list(dict.fromkeys(nodes))
        for name in chosen:
            if name not in holders:
                raise Unknown(f"copy of {model} on node", name, holders)
            if name not in living:
                raise WrongState(f"{model} on {name}", "out of reach", "verify")
        if not chosen:
            raise WrongState(model, f"out of reach on {', '.join(holders)}", "verify")
        size = max(holding.size for holding in holdings)
        files = max(holding.files for holding in holdings)
        call = self.tracker.new_id()
        opened = [
            await self.tracker.open(
                "staging", model, name, cause=cause, parameters={operations.VERIFY: "all"}, bytes_total=size,
                total_files=files, call=call,
            )
            for name in chosen
        ]  # fmt: skip
        busy = [record for record, _ in opened if not operations.is_verification(record)]
        if busy:
            raise WrongState(f"{model} on {', '.join(record.node for record in busy)}", "being staged", "verify")
        revision = max((revision for _, revision in opened), key=lambda revision: revision.sequence)
        await self.tracker.reached(revision, 2.0)
        return [self.fold.record(record.id) or record for record, _ in opened], revision

    async def plan(self, model: str, nodes: list[str]) -> list[Plan]:
        """Return what staging to all of them would take, without doing it. Each node says what is on its disk."""
        holdings = self.holdings(model)
        wanted = Wanted(model=model, digest=newest_digest(holdings), size=max(holding.size for holding in holdings))
        stocks = await asyncio.gather(*(self._stock(name, wanted) for name in nodes))
        sources = [holding.node for holding in holdings if self._can_give(holding, wanted.digest)]
        plans = []
        for name, stock in zip(nodes, stocks, strict=True):
            others = [each for each in sources if each != name]
            volume = self.fold.nodes[name].volume
            place = Place(volume, disk_of(volume), stock.disk_own)
            plans.append((planned(name, wanted.size, stock, others, self._rate(name)), place))
        return together(plans)

    async def _stock(self, node: str, wanted: Wanted) -> Stock:
        """Return what a node says of its disk; of one that does not answer now, what it has said of itself last."""
        try:
            return await self.commands.ask_node(node, "stock", wanted, Stock)
        except (BusError, NodeRefused):
            known, held = self.fold.nodes[node], self.fold.holdings.get((node, wanted.model))
            is_there = held is not None and held.state == "held" and held.digest == wanted.digest
            kept = leftovers.arrived(self.fold, wanted.model, node, wanted.digest)
            return Stock(
                present=wanted.size if is_there else kept, disk_free=known.disk_free,
                disk_reserved=known.disk_reserved, disk_total=known.disk_total,
            )  # fmt: skip

    def _can_give(self, holding: Holding, digest: str) -> bool:
        return holding.state == "held" and holding.digest == digest and self.presence.is_node_alive(holding.node)

    def _rate(self, node: str) -> float | None:
        """Return the bytes per second at which the last stagings to a node moved, if there were any."""
        ended = self.history.page(Sought(kind="staging", node=node, state="succeeded"), limit=100).records
        # How long one waited for room says nothing of how fast it moved.
        timed = (record for record in ended if WAIT_FOR_SPACE not in record.parameters)
        return measured((operations.moved(record), operations.took(record)) for record in timed)

    async def delete(self, model: str, node: str | None) -> list[Record]:
        """Delete a model where it is, if only in part, and return the deletions once they have ended."""
        rests = [name for name in leftovers.abandoned(self.fold, model) if self.presence.is_node_alive(name)]
        copies = self.fold.copies(model) if rests else self.holdings(model)
        holders = sorted({holding.node for holding in copies} | set(rests))
        if node is not None and node not in holders:
            raise Unknown(f"copy of {model} on node", node, holders)
        wanted = [name for name in holders if node in {None, name}]
        away = [name for name in wanted if not self.presence.is_node_alive(name)]
        if away:
            raise WrongState(f"{model} on {', '.join(away)}", "out of reach; name the other nodes one by one", "delete")
        await self._withdraw(model, wanted)
        opened = [await self.tracker.open("deletion", model, name, cause="api") for name in wanted]
        ended = await self.until_ended([record for record, _ in opened])
        failed = [f"{record.node}: {record.error}" for record in ended if record.state == "failed"]
        if failed:
            raise TransferFailed(f"{model} could not be deleted everywhere: {'; '.join(failed)}")
        return ended

    def manifest(self, model: str) -> Manifest:
        """Return a model's manifest: from this disk or from a holder the first time, later from memory. Blocking.

        A digest's manifest never changes. Raises `Unknown`, `TransferFailed`.
        """
        digest = newest_digest(self.holdings(model))
        found = self._manifests.get(digest)
        if found is None:
            found = self._fetched(model, digest)
            self._manifests[digest] = found
            for old in list(self._manifests)[:-REMEMBERED]:
                self._manifests.pop(old, None)
        return found

    def _fetched(self, model: str, digest: str) -> Manifest:
        own = self.node.store.recorded(model)
        if own is not None and own.digest == digest:
            return own
        causes = []
        for holding in self.holdings(model):
            if holding.digest == digest and self.presence.is_node_alive(holding.node):
                try:
                    return fetch_manifest(
                        Holder(holding.node, self.fold.nodes[holding.node].files), digest, self.token, tls=self.node.tls
                    )
                except StagecastError as error:
                    causes.append(error.message)
        raise TransferFailed(f"no holder gave the manifest of {model}: {'; '.join(causes) or 'none is alive'}")

    async def _withdraw(self, model: str, nodes: list[str]) -> None:
        """Take back the wish that these workers have the model loaded."""
        subject = subjects.placement(model)
        while (held := self.fold.placements.get(model)) is not None and set(held.nodes) & set(nodes):
            entry = await self.tracker.bus.log.last(subject)
            wish = held
            for name in nodes:
                wish = placement.withdrawn(wish, name, self.tracker.now())
            try:
                at = await self.tracker.say(subject, msgspec.json.encode(wish), expected=entry.sequence if entry else 0)
                await self.tracker.reached(at, 2.0)
            except AppendConflict:
                await asyncio.sleep(0)

    async def until_ended(self, records: list[Record]) -> list[Record]:
        """Return the ends of deletions, in the same order. Raises `TransferFailed` where none ends for too long."""

        def has_ended(opened: Record) -> bool:
            # The fold may not have this run yet, but still the end of an earlier one.
            held = self.fold.record(opened.id)
            is_this = held is not None and operations.fence(held) >= operations.fence(opened)
            return held is not None and is_this and operations.is_ended(held)

        def ended() -> int:
            return sum(map(has_ended, records))

        done = -1
        while (count := ended()) < len(records):
            if count == done:
                nodes = ", ".join(record.node for record in records)
                raise TransferFailed(f"{nodes}: not all deleted within {DELETION_TIMEOUT:.0f} s; it goes on, see there")
            done = count
            await self.tracker.until(lambda: ended() > done, DELETION_TIMEOUT)  # noqa: B023  # awaited right here
        return [self.fold.record(record.id) or record for record in records]


def newest_digest(holdings: list[Holding]) -> str:
    """Return the digest that most holders have, the first by order among equals; empty while all are reading."""
    votes: dict[str, int] = defaultdict(int)
    for holding in holdings:
        if holding.state == "held":
            votes[holding.digest] += 1
    return min(votes, key=lambda digest: (-votes[digest], digest), default="")
