"""What a replica answers, as its clients read it. Sizes in bytes; fields that a reader does not know are ignored."""

from __future__ import annotations

import msgspec

from stagecast.rows import Row


class Operations(msgspec.Struct, kw_only=True):
    """``GET /api/operations``, the history, and whatever begins operations."""

    operations: list[Row] = []
    revision: str = ""
    degraded: bool = False
    next: str = ""
    """What the next page of the history goes on before."""


class Holder(msgspec.Struct, kw_only=True):
    """A process that can serve pieces of a model; ``complete`` if all of them."""

    node: str
    kind: str = ""
    complete: bool = True


class RunningInstance(msgspec.Struct, kw_only=True):
    """One backend that serves a model, or will."""

    node: str
    state: str = ""
    id: str = ""


class Model(msgspec.Struct, kw_only=True):
    """A model as the cluster knows it: ``bytes`` over ``files`` many files."""

    name: str
    bytes: int = 0
    files: int = 0
    digest: str = ""
    holders: list[Holder] = []
    instances: list[RunningInstance] = []


class Models(msgspec.Struct, kw_only=True):
    """``GET /api/models``."""

    models: list[Model] = []


class Node(msgspec.Struct, kw_only=True):
    """A process as the cluster knows it, with the disk under its models."""

    name: str
    kind: str = ""
    alive: bool = True
    draining: bool = False
    address: str = ""
    labels: dict[str, str] = {}
    disk_free: int = 0
    disk_total: int = 0
    disk_reserved: int = 0
    disk_orphaned: int = 0
    disk_budget: int = 0
    disk_keep_free: int = 0
    pinned: list[str] = []


class Nodes(msgspec.Struct, kw_only=True):
    """``GET /api/nodes``."""

    nodes: list[Node] = []


class NodeLimit(msgspec.Struct, kw_only=True):
    """What one node may do: bytes per second, and of the cluster's rate just now while it moves any; 0 for any."""

    node: str
    rate: int = 0
    stagings_at_once: int = 0
    moving: bool = False
    share: int = 0


class Limits(msgspec.Struct, kw_only=True):
    """``/api/limits``: bytes per second over all nodes, 0 for any, and the nodes that have limits or move bytes."""

    rate: int = 0
    nodes: list[NodeLimit] = []


class PlannedNode(msgspec.Struct, kw_only=True):
    """What staging would move to one node, and from where. Of the free bytes, the reserved ones are promised to others.

    ``disk_taken`` more are for nodes on the same disk that stand before this one in the plan.

    Of the ``present`` bytes, ``to_copy`` are copied on that disk, and take room there.

    ``seconds`` is an estimate, absent where there is no ground for one.
    """

    node: str
    bytes: int = 0
    present: int = 0
    to_move: int = 0
    to_copy: int = 0
    disk_free: int = 0
    disk_reserved: int = 0
    disk_taken: int = 0
    fits: bool = True
    holders: list[str] = []
    seconds: float | None = None


class Plan(msgspec.Struct, kw_only=True):
    """What staging a model would do; nothing was done."""

    model: str
    bytes: int = 0
    nodes: list[PlannedNode] = []


class Planned(msgspec.Struct, kw_only=True):
    """``POST /api/models/{name}/stage`` with ``dry_run``."""

    plan: Plan


class RemovedFiles(msgspec.Struct, kw_only=True):
    """What one node has freed."""

    node: str
    bytes: int = 0


class Removed(msgspec.Struct, kw_only=True):
    """``DELETE /api/models/{name}``."""

    removed: list[RemovedFiles] = []


class HeldCopy(msgspec.Struct, kw_only=True):
    """A model on a node's disk: when it came and was used last, in seconds since 1970. ``keep``: why it may not go."""

    model: str
    bytes: int = 0
    came_at: float = 0.0
    used_at: float = 0.0
    pinned: bool = False
    keep: str = ""


class LeftBehind(msgspec.Struct, kw_only=True):
    """What work has left on a node's disk. ``keep``: why it may not go."""

    folder: str
    kind: str = ""
    model: str = ""
    bytes: int = 0
    keep: str = ""


class FreedNode(msgspec.Struct, kw_only=True):
    """What goes from one node's disk, or has gone, and what stays there."""

    node: str
    bytes: int = 0
    missing: int = 0
    disk_free: int = 0
    disk_reserved: int = 0
    evicted: list[HeldCopy] = []
    leftovers: list[LeftBehind] = []
    kept: list[HeldCopy] = []
    kept_leftovers: list[LeftBehind] = []


class Collected(msgspec.Struct, kw_only=True):
    """``POST /api/gc``. ``failed``: nodes that could not be asked, or not do it, with the cause."""

    nodes: list[FreedNode] = []
    failed: dict[str, str] = {}


class Pinned(msgspec.Struct, kw_only=True):
    """``POST /api/models/{name}/pin``: the models that are to stay, by node."""

    pinned: dict[str, list[str]] = {}


class Vector(msgspec.Struct, kw_only=True):
    """One text's embedding."""

    embedding: list[float]
    index: int = 0


class Vectors(msgspec.Struct, kw_only=True):
    """``POST /v1/embeddings``."""

    data: list[Vector] = []


class Fault(msgspec.Struct, kw_only=True):
    """Why something was refused. ``code`` is absent in some of OpenAI's errors."""

    message: str = ""
    code: str | None = None


class Refusal(msgspec.Struct, kw_only=True):
    """The body of every error."""

    error: Fault
