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


class Nodes(msgspec.Struct, kw_only=True):
    """``GET /api/nodes``."""

    nodes: list[Node] = []


class PlannedNode(msgspec.Struct, kw_only=True):
    """What staging would move to one node. ``seconds`` is an estimate, absent where there is no ground for one."""

    node: str
    bytes: int = 0
    present: int = 0
    to_move: int = 0
    disk_free: int = 0
    fits: bool = True
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
