"""``/api/gc``, and the pins of ``/api/models``: what may go from the nodes' disks, and what is to stay."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final, Literal

import msgspec
from litestar import Controller, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from stagecast.collection import Collection, begin, elsewhere, goals, shared_out, waves
from stagecast.errors import BadInput, BusError, NodeRefused, Unknown
from stagecast.eviction import Copy, Inventory, Leftover
from stagecast.frontend.replica import Replica
from stagecast.keeper import Named
from stagecast.messages import NodeVerb, Record
from stagecast.quantities import MOST_SIZE

SURVEY_TIMEOUT: Final = 30.0
"""Seconds that a node may take to look at all that lies on its disk."""


class GcRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Where to free what. ``free``: bytes that are to be free on each disk then, 0 for what the node's budget says.

    A replica's folder is somebody's own: for ``free``, models go from there only where the replica is named.
    """

    nodes: list[str] | Literal["all"] = "all"
    free: int = 0
    dry_run: bool = False


class Freed(msgspec.Struct, kw_only=True):
    """What goes from one node's disk, or has gone: ``bytes`` in all. Nodes that share one folder are one.

    ``kept`` are models and leftovers that were not to go, each with its reason. ``missing``: bytes that should
    have gone from this disk beside all that may.
    """

    node: str
    bytes: int
    missing: int
    disk_free: int
    disk_reserved: int
    evicted: list[Copy]
    leftovers: list[Leftover]
    kept: list[Copy]
    kept_leftovers: list[Leftover]


class Collected(msgspec.Struct, kw_only=True):
    """``POST /api/gc``. ``failed``: nodes that could not be asked, or not do it, with the cause."""

    nodes: list[Freed]
    failed: dict[str, str]
    revision: str


class PinRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Where a model is to stay, or may go again; all are the nodes that hold it."""

    nodes: list[str] | Literal["all"] = "all"


class Pinned(msgspec.Struct, kw_only=True):
    """The models that are to stay, by node."""

    pinned: dict[str, list[str]]
    revision: str


class DiskApi(Controller):
    """Disks."""

    path = "/api"
    tags = ["disks"]  # noqa: RUF012  # litestar's own form

    @post("/gc", status_code=200, summary="Free what nobody needs, and models as far as room is wanted")
    async def collect(self, replica: NamedDependency[Replica], data: JSONBody[GcRequest]) -> Collected:
        """Answer when the files are gone; with ``dry_run`` say what would go, and do nothing."""
        if data.free < 0:
            raise BadInput("free cannot be negative")
        if data.free > MOST_SIZE:
            raise BadInput(f"free is more than any disk has; it can be {MOST_SIZE:,} bytes at most")
        inventories, failed = await _inventories(replica, _living(replica, data.nodes))
        if data.nodes == "all" and data.free:
            inventories = [_guarded(replica, each) for each in inventories]
        nodes = []
        for goal in goals(inventories, data.free):
            wanted = shared_out(goal, partial(_elsewhere, replica))
            if not data.dry_run:
                wanted, refused = await _collected(replica, wanted)
                failed |= refused
            missing = max(0, goal.excess - sum(each.bytes for each in wanted))
            nodes += [_freed(seen, gone, missing) for seen, gone in zip(goal.inventories, wanted, strict=True)]
        nodes.sort(key=lambda node: node.node)
        return Collected(nodes=nodes, failed=failed, revision=str(replica.tracker.revision))

    @post("/models/{name:str}/pin", status_code=200, summary="Let a model stay where it is, whatever room is wanted")
    async def pin(
        self, replica: NamedDependency[Replica], name: FromPath[str], data: JSONBody[PinRequest | None] = None
    ) -> Pinned:
        """Return once the nodes keep it."""
        return await _mark(replica, "pin", name, data)

    @post("/models/{name:str}/unpin", status_code=200, summary="Let a model go again where room is wanted")
    async def unpin(
        self, replica: NamedDependency[Replica], name: FromPath[str], data: JSONBody[PinRequest | None] = None
    ) -> Pinned:
        """Return once the nodes know."""
        return await _mark(replica, "unpin", name, data)


def _living(replica: Replica, nodes: list[str] | Literal["all"]) -> list[str]:
    """Return the nodes that are meant, replicas too. Raises `Unknown`, `BadInput`."""
    known = sorted(name for name, node in replica.fold.nodes.items() if not node.left)
    if nodes == "all":
        return [name for name in known if replica.presence.is_node_alive(name)]
    if not nodes:
        raise BadInput('say which nodes: "nodes" is a list of names, or "all"')
    for name in nodes:
        if name not in known:
            raise Unknown("node", name, known)
    return list(dict.fromkeys(nodes))


async def _inventories(replica: Replica, names: list[str]) -> tuple[list[Inventory], dict[str, str]]:
    """Return what lies on each node's disk, a shared one once, and why some could not be asked."""
    asked = (replica.commands.ask_node(name, "inventory", None, Inventory, SURVEY_TIMEOUT) for name in names)
    found: dict[str, Inventory] = {}
    failed: dict[str, str] = {}
    for name, answer in zip(names, await asyncio.gather(*asked, return_exceptions=True), strict=True):
        if isinstance(answer, Inventory):
            found.setdefault(answer.volume, answer)
        elif isinstance(answer, BusError | NodeRefused):
            failed[name] = answer.message
        else:
            raise answer
    return list(found.values()), failed


def _guarded(replica: Replica, inventory: Inventory) -> Inventory:
    """Keep the models in a folder that is a replica's, too."""
    if not any(node.kind == "replica" and node.volume == inventory.volume for node in replica.fold.nodes.values()):
        return inventory
    copies = [
        msgspec.structs.replace(copy, keep=copy.keep or "in a replica's own folder: name its node")
        for copy in inventory.copies
    ]
    return msgspec.structs.replace(inventory, copies=copies)


def _elsewhere(replica: Replica, node: str, model: str) -> frozenset[str]:
    return elsewhere(replica.fold, node, model, replica.presence.is_node_alive)


async def _collected(replica: Replica, wanted: list[Collection]) -> tuple[list[Collection], dict[str, str]]:
    """Carry out collections; return what has really gone, and what failed. A model that is wanted by now stays."""
    ended: list[Record] = []
    for part in waves(wanted):
        begun = await asyncio.gather(*(begin(replica.tracker, each) for each in part))
        ended += await replica.until_ended([record for records in begun for record in records])
    failed = {record.node: f"{record.id}: {record.error}" for record in ended if record.state == "failed"}
    ends = {(record.node, record.model): record for record in ended}
    return [each.told(ends) for each in wanted], failed


def _freed(inventory: Inventory, gone: Collection, missing: int) -> Freed:
    stayed = {copy.model: copy for copy in gone.kept}
    names, folders = {copy.model for copy in gone.copies}, {left.folder for left in gone.leftovers}
    return Freed(
        node=inventory.node, bytes=gone.bytes, missing=missing, disk_free=inventory.disk_free,
        disk_reserved=inventory.disk_reserved, evicted=list(gone.copies), leftovers=list(gone.leftovers),
        kept=[stayed.get(copy.model, copy) for copy in inventory.copies if copy.model not in names],
        kept_leftovers=[left for left in inventory.leftovers if left.folder not in folders],
    )  # fmt: skip


async def _mark(replica: Replica, verb: NodeVerb, name: str, data: PinRequest | None) -> Pinned:
    holders = [holding.node for holding in replica.holdings(name)]
    chosen = holders if data is None or data.nodes == "all" else list(data.nodes)
    for node in chosen:
        if node not in holders:
            raise Unknown(f"copy of {name} on node", node, holders)
    answers = [await replica.commands.ask_node(node, verb, Named(name), list[str]) for node in chosen]
    await replica.tracker.until(
        lambda: all((name in replica.fold.nodes[node].pinned) == (verb == "pin") for node in chosen), 2.0
    )
    return Pinned(pinned=dict(zip(chosen, answers, strict=True)), revision=str(replica.tracker.revision))
