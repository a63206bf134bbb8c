"""``/api/nodes``: the cluster's nodes, and their drain."""

from __future__ import annotations

from typing import Literal

import msgspec
from litestar import Controller, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath

from stagecast.frontend.replica import Replica


class NodeModel(msgspec.Struct, kw_only=True):
    """A backend of a node."""

    model: str
    state: str
    id: str


class NodeState(msgspec.Struct, kw_only=True):
    """A node as the cluster knows it. Disk in bytes; ``disk_reserved`` of what is free is promised to transfers.

    ``disk_orphaned`` is what `gc` would free without evicting a model; ``disk_budget`` and ``disk_keep_free`` are what
    the node was told, 0 for nothing. ``pinned`` models are never evicted.
    """

    name: str
    kind: Literal["replica", "worker"]
    alive: bool
    draining: bool
    address: str
    labels: dict[str, str]
    disk_free: int
    disk_total: int
    disk_reserved: int
    disk_orphaned: int
    disk_budget: int
    disk_keep_free: int
    pinned: list[str]
    models: list[str]
    instances: list[NodeModel]


class Nodes(msgspec.Struct, kw_only=True):
    """``GET /api/nodes``."""

    nodes: list[NodeState]


class NodesApi(Controller):
    """Nodes."""

    path = "/api/nodes"
    tags = ["nodes"]  # noqa: RUF012  # litestar's own form

    @get("/", summary="All nodes and what is on them")
    async def list_nodes(self, replica: NamedDependency[Replica]) -> Nodes:
        """Return every node that has not left."""
        found = [node for node in replica.fold.nodes.values() if not node.left]
        return Nodes(nodes=[_node(replica, node.name) for node in sorted(found, key=lambda node: node.name)])

    @post("/{name:str}/drain", status_code=200, summary="Place nothing new on a node")
    async def drain(self, replica: NamedDependency[Replica], name: FromPath[str]) -> NodeState:
        """Return the node once it drains."""
        await replica.commands.give_node(name, "drain")
        return _node(replica, name)

    @post("/{name:str}/resume", status_code=200, summary="End a node's drain")
    async def resume(self, replica: NamedDependency[Replica], name: FromPath[str]) -> NodeState:
        """Return the node once it takes new work again."""
        await replica.commands.give_node(name, "undrain")
        return _node(replica, name)


def _node(replica: Replica, name: str) -> NodeState:
    fold = replica.fold
    node = fold.nodes[name]
    instances = [instance for at, model in fold.instances if at == name and (instance := fold.instance(at, model))]
    return NodeState(
        name=name,
        kind=node.kind,
        alive=replica.presence.is_node_alive(name),
        draining=node.draining,
        address=node.address,
        labels=node.labels,
        disk_free=node.disk_free,
        disk_total=node.disk_total,
        disk_reserved=node.disk_reserved,
        disk_orphaned=node.disk_orphaned,
        disk_budget=node.disk_budget,
        disk_keep_free=node.disk_keep_free,
        pinned=list(node.pinned),
        models=sorted(model for (at, model), held in fold.holdings.items() if at == name and held.state == "held"),
        instances=[
            NodeModel(model=each.model, state=each.state, id=each.instance)
            for each in instances
            if each.state != "gone"
        ],
    )
