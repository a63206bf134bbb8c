"""``/api/models``: what is where, and what people want done with it."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

import msgspec
from litestar import Controller, Response, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody, QueryParameter

from stagecast import rows
from stagecast.errors import BadInput
from stagecast.frontend.installs import Installs
from stagecast.frontend.replica import Replica
from stagecast.messages import Placement
from stagecast.plan import Plan
from stagecast.rows import Row


class ModelHolder(msgspec.Struct, kw_only=True):
    """A node that holds a model; ``complete`` is false while it reads the files in."""

    node: str
    kind: str
    complete: bool
    digest: str


class ModelInstance(msgspec.Struct, kw_only=True):
    """A backend that serves a model, or is about to."""

    node: str
    state: str
    id: str
    error: str = ""


class Model(msgspec.Struct, kw_only=True):
    """A model as the cluster knows it. ``bytes`` over all files; ``digest`` is the manifest's."""

    name: str
    bytes: int
    files: int
    digest: str
    holders: list[ModelHolder]
    instances: list[ModelInstance]


class File(msgspec.Struct, kw_only=True):
    """A file of a manifest, without the digests of its pieces."""

    path: str
    size: int
    digest: str
    sha256: str


class ModelDetail(Model, kw_only=True):
    """A model with the files of its manifest."""

    manifest: list[File]


class Models(msgspec.Struct, kw_only=True):
    """``GET /api/models``."""

    models: list[Model]


class StageRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What to stage where. ``wait_for_space``: where a disk has no room now, wait for it, instead of failing."""

    nodes: list[str] | Literal["all"] = "all"
    dry_run: bool = False
    wait_for_space: bool = False
    priority: Literal["low", "normal", "high"] = "normal"


class VerifyRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Where to verify a model; ``all`` is wherever it is."""

    nodes: list[str] | Literal["all"] = "all"


class StagePlan(msgspec.Struct, kw_only=True):
    """What a staging would take."""

    model: str
    bytes: int
    nodes: list[Plan]


class Planned(msgspec.Struct, kw_only=True):
    """The answer to a dry run."""

    plan: StagePlan


class Started(msgspec.Struct, kw_only=True):
    """Operations that were queued, or were under way already, and the revision that shows them."""

    operations: list[Row]
    revision: str


class InstallRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What to install: ``ref`` or ``url``, or ``gallery`` with ``name``. ``wait_for_space`` is that of a staging."""

    ref: str = ""
    url: str = ""
    gallery: str = ""
    name: str = ""
    sha256: str = ""
    wait_for_space: bool = False


class LoadRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Where to load a model; without a node the cluster chooses."""

    node: str | None = None


class Placed(msgspec.Struct, kw_only=True):
    """The wish that a model be loaded, as it stands."""

    placement: Placement
    revision: str


class Removal(msgspec.Struct, kw_only=True):
    """What was freed on one node, in bytes."""

    node: str
    bytes: int


class Removed(msgspec.Struct, kw_only=True):
    """The answer to a deletion."""

    removed: list[Removal]
    revision: str


class ModelsApi(Controller):
    """Models and who holds them."""

    path = "/api/models"
    tags = ["models"]  # noqa: RUF012  # litestar's own form

    @get("/", summary="All models, who holds them, what serves them")
    async def list_models(self, replica: NamedDependency[Replica]) -> Models:
        """Return the models that a node holds or reads in."""
        return Models(models=[describe(replica, name) for name in replica.fold.models()])

    @get("/{name:str}", summary="One model with the files of its manifest")
    async def show(self, replica: NamedDependency[Replica], name: FromPath[str]) -> ModelDetail:
        """Return one model; the manifest comes from this disk, or from a holder."""
        model = describe(replica, name)
        manifest = await asyncio.to_thread(replica.manifest, name) if model.digest else None
        files = [
            File(path=file.path, size=file.size, digest=file.digest, sha256=file.sha256)
            for file in (manifest.files if manifest else ())
        ]
        return ModelDetail(
            name=model.name, bytes=model.bytes, files=model.files, digest=model.digest, holders=model.holders,
            instances=model.instances, manifest=files,
        )  # fmt: skip

    @post("/{name:str}/stage", status_code=202, summary="Stage a model onto workers")
    async def stage(
        self, replica: NamedDependency[Replica], name: FromPath[str], data: JSONBody[StageRequest]
    ) -> Response[Started | Planned]:
        """Return the operations, or with ``dry_run`` the plan. The workers do the work, not the request."""
        replica.holdings(name)
        nodes = replica.targets(data.nodes)
        if data.dry_run:
            plans = await replica.plan(name, nodes)
            plan = StagePlan(model=name, bytes=max(plan.bytes for plan in plans), nodes=plans)
            return Response(Planned(plan=plan), status_code=200)
        records, revision = await replica.stage(
            name, nodes, "api", wait_for_space=data.wait_for_space, priority=data.priority
        )
        started = Started(operations=[rows.row_of(replica.fold, record) for record in records], revision=str(revision))
        return Response(started)

    @post("/{name:str}/verify", status_code=202, summary="Read a model's copies anew and repair what is damaged")
    async def verify(
        self, replica: NamedDependency[Replica], name: FromPath[str], data: JSONBody[VerifyRequest | None] = None
    ) -> Started:
        """Return the operations; each node reads what it has, and gets damaged pieces from the others."""
        records, revision = await replica.verify(name, data.nodes if data else "all", "api")
        return Started(operations=[rows.row_of(replica.fold, record) for record in records], revision=str(revision))

    @post("/install", status_code=202, summary="Install a model from a gallery, a URL or a path")
    async def install(self, installs: NamedDependency[Installs], data: JSONBody[InstallRequest]) -> Started:
        """Return the operation; a replica pulls and verifies the files."""
        reference = data.ref or data.url or (data.name if data.gallery else "")
        if not reference:
            raise BadInput('say what to install: "ref" or "url", or "gallery" with "name"')
        name = data.name if reference is not data.name else ""
        record, revision = await installs.start(
            reference, data.gallery, name, data.sha256, wait_for_space=data.wait_for_space
        )
        return Started(operations=[rows.row(record)], revision=str(revision))

    @post("/{name:str}/load", status_code=202, summary="Ask for a model to be loaded")
    async def load(
        self, replica: NamedDependency[Replica], name: FromPath[str], data: JSONBody[LoadRequest | None] = None
    ) -> Placed:
        """Return the wish; a worker makes it true."""
        replica.holdings(name)
        placement = await replica.router.place(name, data.node if data else None)
        return Placed(placement=placement, revision=str(replica.tracker.revision))

    @delete("/{name:str}", status_code=200, summary="Delete a model's files where they are")
    async def remove(
        self,
        replica: NamedDependency[Replica],
        name: FromPath[str],
        node: Annotated[str | None, QueryParameter(description="Only on this node")] = None,
    ) -> Removed:
        """Answer when the files are gone."""
        ended = await replica.delete(name, node)
        removed = [Removal(node=record.node, bytes=record.bytes_done) for record in ended]
        return Removed(removed=removed, revision=str(replica.tracker.revision))


def describe(replica: Replica, name: str) -> Model:
    """Return a model as the cluster knows it. Raises `Unknown`."""
    holdings = replica.holdings(name)
    held = [holding for holding in holdings if holding.state == "held"]
    fold = replica.fold
    instances = [each for node, model in fold.instances if model == name and (each := fold.instance(node, name))]
    return Model(
        name=name,
        bytes=max((holding.size for holding in held), default=0),
        files=max((holding.files for holding in held), default=0),
        digest=held[0].digest if held else "",
        holders=[
            ModelHolder(
                node=holding.node, kind=fold.nodes[holding.node].kind, complete=holding.state == "held",
                digest=holding.digest,
            )
            for holding in holdings
        ],
        instances=[
            ModelInstance(node=each.node, state=each.state, id=each.instance, error=each.error)
            for each in instances
            if each.state != "gone"
        ],
    )  # fmt: skip
