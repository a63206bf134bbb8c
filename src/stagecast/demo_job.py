"""The main job, from the gallery to the first embedding, while the replica that took the request is killed."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final

from stagecast import operations
from stagecast.client import Client
from stagecast.cluster import Cluster
from stagecast.demo_checks import BALANCER
from stagecast.demo_model import MODEL
from stagecast.demo_vectors import TEXTS
from stagecast.demo_view import View
from stagecast.errors import StagecastError
from stagecast.following import follow
from stagecast.rows import Row
from stagecast.session import ApiError

_KILL_AT: Final = 40.0
"""Per cent of the staging."""
_LOADING_PATIENCE: Final = 60.0
_LOADING_INTERVAL: Final = 0.25


class DemoFailed(StagecastError):
    """An operation of the demo did not end well."""

    code = "demo_failed"

    def __init__(self, row: Row) -> None:
        super().__init__(f"{row.id} {row.state}: {row.error or row.message}")


@dataclass(kw_only=True)
class Story:
    """What happened, measured. Times are the event loop's, in seconds."""

    installed: list[Row] = field(default_factory=list)
    install_seconds: float = 0.0
    staged: list[Row] = field(default_factory=list)
    stage_seconds: float = 0.0
    taken_by: str = ""
    killed: bool = False
    killed_at: float = 0.0
    killed_progress: float = 0.0
    bytes_at_kill: int = 0
    vectors: dict[str, list[list[float]]] = field(default_factory=dict)
    embed_seconds: float = 0.0
    holders: set[str] = field(default_factory=set)


async def perform(cluster: Cluster, client: Client, gallery: str, view: View) -> Story:
    """Do the main job through the balancer; return what was measured.

    Raises:
        DemoFailed: an operation ended otherwise than well.
        StagecastError: the cluster refused, or did not answer.
    """
    story = Story()
    await _install(client, gallery, story, view)
    await _stage(cluster, client, story, view)
    await _embed(cluster, client, story, view)
    [model] = [model for model in await client.models() if model.name == MODEL]
    story.holders = {holder.node for holder in model.holders if holder.complete}
    return story


async def _install(client: Client, gallery: str, story: Story, view: View) -> None:
    began = _now()
    view.say(f"Installing {MODEL} from a gallery, through the balancer.")
    row = await client.install(MODEL, gallery=gallery)
    held = {row.job_id: row}
    async with aclosing(follow(client, [row])) as words:
        async for word in words:
            held[word.job_id] = word
    story.installed = _ended_well(held.values())
    story.install_seconds = _now() - began


async def _stage(cluster: Cluster, client: Client, story: Story, view: View) -> None:
    began = _now()
    rows = await client.stage(MODEL)
    story.taken_by = client.replica
    view.say(f"Staging it onto {len(rows)} workers; {story.taken_by} took the request.")
    held = {row.job_id: row for row in rows}
    async with aclosing(follow(client, rows)) as words:
        async for word in words:
            held[word.job_id] = word
            progress = _progress(held.values())
            if not story.killed and progress >= _KILL_AT:
                story.killed, story.killed_at, story.killed_progress = True, _now(), progress
                story.bytes_at_kill = sum(row.current_bytes for row in held.values())
                await cluster.kill(story.taken_by)
                view.say(f"Killed {story.taken_by} (SIGKILL) at {progress:.0f} %.")
    story.staged = _ended_well(held.values())
    story.stage_seconds = _now() - began


async def _embed(cluster: Cluster, client: Client, story: Story, view: View) -> None:
    began = _now()
    view.say("Loading it on a worker, and embedding through the balancer and through every living replica.")
    await client.load(MODEL)
    story.vectors[BALANCER] = await _vectors(client)
    story.embed_seconds = _now() - began
    for replica in cluster.replicas:
        if replica.is_running:
            async with Client(replica.url) as direct:
                story.vectors[replica.name] = await _vectors(direct)


async def _vectors(client: Client) -> list[list[float]]:
    deadline = _now() + _LOADING_PATIENCE
    while True:
        try:
            return await client.embeddings(MODEL, TEXTS)
        except ApiError as error:
            if error.code != "model_loading" or _now() > deadline:
                raise
        await asyncio.sleep(_LOADING_INTERVAL)


def _ended_well(rows: Collection[Row]) -> list[Row]:
    for row in rows:
        if row.state in operations.ENDED and row.state != "succeeded":
            raise DemoFailed(row)
    return list(rows)


def _progress(rows: Collection[Row] | Sequence[Row]) -> float:
    total = sum(row.total_bytes for row in rows)
    return 100 * sum(row.current_bytes for row in rows) / total if total else 0.0


def _now() -> float:
    return asyncio.get_running_loop().time()
