"""What one can ask of a replica, as methods: the API's words over a `Session` (WIRE section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar
from urllib.parse import quote

import msgspec

from stagecast import answers
from stagecast.messages import Priority, Verb
from stagecast.rows import Row
from stagecast.session import Answer, ApiError, Session

T = TypeVar("T")


class Client(Session):
    """``async with Client(url) as client``: a `Session`, which see, that knows what a replica can be asked.

    Each method raises what `Session.request` raises, and `ApiError` where the answer is no replica's.
    """

    async def operations(self, *, after: str = "", wait: float = 0) -> answers.Operations:
        """Return what runs now; with ``after``, wait up to ``wait`` seconds for a change since that revision."""
        return read(await self.operations_as_sent(after=after, wait=wait), answers.Operations)

    async def operations_as_sent(self, *, after: str = "", wait: float = 0) -> Answer:
        """Return the same as it came, byte for byte."""
        query = {"after": after, "wait": f"{wait:g}"} if after else {}
        return await self.request("GET", "/api/operations", query=query)

    async def operation(self, operation: str) -> Row:
        """Return one operation by its id or jobID, also after its end."""
        return read(await self.request("GET", f"/api/operations/{_part(operation)}"), Row)

    async def history(self, *, limit: int = 0, before: str = "", **sought: str) -> list[Row]:
        """Return ended attempts, newest first. ``sought``: kind, model, node, state, job."""
        answer = await self.history_as_sent(limit=limit, before=before, **sought)
        return read(answer, answers.Operations).operations

    async def history_as_sent(self, *, limit: int = 0, before: str = "", **sought: str) -> Answer:
        """Return the same as it came, byte for byte."""
        query = {**sought, "limit": str(limit or ""), "before": before}
        return await self.request("GET", "/api/operations/history", query=query)

    async def command(self, operation: str, verb: Verb, *, keep_partial: bool = False) -> Row:
        """Cancel, pause, resume, retry or dismiss an operation; return its row once its owner has taken that up.

        ``keep_partial``: a cancel leaves on the disk what has arrived, for the next time.
        """
        body = {"keep_partial": True} if keep_partial else None
        path = f"/api/operations/{_part(operation)}/{verb}"
        return read(await self.request("POST", path, body=body, is_idempotent=True), Row)

    async def limits(self) -> answers.Limits:
        """Return what the cluster and its nodes may use."""
        return read(await self.request("GET", "/api/limits"), answers.Limits)

    async def limit(
        self, *, rate: int | None = None, node: str = "", node_rate: int | None = None, at_once: int | None = None
    ) -> answers.Limits:
        """Change what is given, 0 for no limit: the cluster's ``rate``, a ``node``'s rate and stagings at once."""
        said = {"rate": node_rate, "stagings_at_once": at_once}
        change = {key: value for key, value in said.items() if value is not None}
        body = ({} if rate is None else {"rate": rate}) | ({"nodes": {node: change}} if node else {})
        return read(await self.request("PUT", "/api/limits", body=body, is_idempotent=True), answers.Limits)

    async def models(self) -> list[answers.Model]:
        """Return the models that anybody holds."""
        return read(await self.models_as_sent(), answers.Models).models

    async def models_as_sent(self) -> Answer:
        """Return the same as it came, byte for byte."""
        return await self.request("GET", "/api/models")

    async def stage(
        self, model: str, nodes: Sequence[str] = (), *, wait_for_space: bool = False, priority: Priority = "normal"
    ) -> list[Row]:
        """Begin to stage a model onto ``nodes``, or onto every worker; return the operations.

        ``wait_for_space``: where a disk has no room now, it is waited for, instead of failing.
        """
        body = {"nodes": list(nodes) or "all", "dry_run": False}
        body |= {"wait_for_space": True} if wait_for_space else {}
        body |= {"priority": priority} if priority != "normal" else {}
        answer = await self.request("POST", f"/api/models/{_part(model)}/stage", body=body, is_idempotent=True)
        return read(answer, answers.Operations).operations

    async def verify(self, model: str, nodes: Sequence[str] = ()) -> list[Row]:
        """Begin to verify a model's copies on ``nodes``, or wherever there is one; return the operations."""
        body = {"nodes": list(nodes) or "all"}
        answer = await self.request("POST", f"/api/models/{_part(model)}/verify", body=body, is_idempotent=True)
        return read(answer, answers.Operations).operations

    async def plan(self, model: str, nodes: Sequence[str] = ()) -> answers.Plan:
        """Return what `stage` would move, and whether it fits."""
        body = {"nodes": list(nodes) or "all", "dry_run": True}
        answer = await self.request("POST", f"/api/models/{_part(model)}/stage", body=body, is_idempotent=True)
        return read(answer, answers.Planned).plan

    async def install(
        self, ref: str, *, gallery: str = "", name: str = "", sha256: str = "", wait_for_space: bool = False
    ) -> Row:
        """Begin to install a gallery's entry, a URL or a path; return the operation. ``wait_for_space``: as `stage`."""
        given = {"ref": ref, "gallery": gallery, "name": name, "sha256": sha256}
        body: dict[str, object] = {key: value for key, value in given.items() if value}
        body |= {"wait_for_space": True} if wait_for_space else {}
        answer = await self.request("POST", "/api/models/install", body=body, is_idempotent=True)
        return read(answer, answers.Operations).operations[0]

    async def collect(self, nodes: Sequence[str] = (), *, free: int = 0, dry_run: bool = False) -> answers.Collected:
        """Free what nobody needs on ``nodes``, or everywhere, and models until ``free`` bytes are free on each disk.

        Returns when it is gone; with ``dry_run`` what would go.
        """
        body = {"nodes": list(nodes) or "all", "free": free, "dry_run": dry_run}
        return read(await self.request("POST", "/api/gc", body=body, is_idempotent=True), answers.Collected)

    async def pin(self, model: str, nodes: Sequence[str] = (), *, is_pinned: bool = True) -> dict[str, list[str]]:
        """Let a model stay on ``nodes``, or wherever it is, or go again; return all that are to stay, by node."""
        path = f"/api/models/{_part(model)}/{'pin' if is_pinned else 'unpin'}"
        answer = await self.request("POST", path, body={"nodes": list(nodes) or "all"}, is_idempotent=True)
        return read(answer, answers.Pinned).pinned

    async def remove(self, model: str, node: str = "") -> list[answers.RemovedFiles]:
        """Remove a model's files from ``node``, or everywhere; return when they are gone."""
        answer = await self.request("DELETE", f"/api/models/{_part(model)}", query={"node": node})
        return read(answer, answers.Removed).removed

    async def load(self, model: str, node: str = "") -> None:
        """Ask for a model to be loaded, without waiting."""
        body = {"node": node} if node else {}
        await self.request("POST", f"/api/models/{_part(model)}/load", body=body, is_idempotent=True)

    async def nodes(self) -> list[answers.Node]:
        """Return the processes of the cluster."""
        return read(await self.nodes_as_sent(), answers.Nodes).nodes

    async def nodes_as_sent(self) -> Answer:
        """Return the same as it came, byte for byte."""
        return await self.request("GET", "/api/nodes")

    async def drain(self, node: str) -> None:
        """Take a worker out of service: nothing new goes there."""
        await self.request("POST", f"/api/nodes/{_part(node)}/drain", is_idempotent=True)

    async def resume(self, node: str) -> None:
        """Take a drained worker back into service."""
        await self.request("POST", f"/api/nodes/{_part(node)}/resume", is_idempotent=True)

    async def embeddings(self, model: str, inputs: Sequence[str]) -> list[list[float]]:
        """Return one vector per text."""
        answer = await self.request("POST", "/v1/embeddings", body={"model": model, "input": list(inputs)})
        return [vector.embedding for vector in read(answer, answers.Vectors).data]


def _part(name: str) -> str:
    return quote(name, safe="@:")


def read(answer: Answer, kind: type[T]) -> T:
    """Return what a replica answered. Raises `ApiError` where the answer is no replica's."""
    try:
        return msgspec.json.decode(answer.body, type=kind)
    except msgspec.DecodeError as error:
        raise ApiError(answer.status, "not_understood", f"the answer is not a replica's: {error}") from None
