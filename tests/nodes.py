"""Nodes that share one log in memory, each with its own folder, file server and, if it is a worker, its own work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from stagecast import subjects
from stagecast.announcer import Announcer
from stagecast.bus.memory import MemoryBus
from stagecast.manifest import Manifest
from stagecast.messages import Holding, NodeRecord
from stagecast.node import Node
from stagecast.presence import Presence
from stagecast.store import Store
from stagecast.tracker import Tracker
from stagecast.worker import Worker
from tests.sample import lay_out


@dataclass(frozen=True)
class Member:
    """One node of `Nodes`, and the parts of its process."""

    node: Node
    tracker: Tracker
    announcer: Announcer
    presence: Presence
    models: Path

    @property
    def held(self) -> dict[str, str]:
        """The models that this node has announced, each with its state, as the member itself has folded them."""
        return {
            model: holding.state
            for (node, model), holding in self.tracker.fold.holdings.items()
            if node == self.node.name
        }

    async def until_held(self, *models: str) -> None:
        """Wait until the log has exactly these models on this node, read in."""

        def held() -> bool:
            found = {model: state for model, state in self.held.items() if state != "gone"}
            return found == dict.fromkeys(models, "held")

        async with asyncio.timeout(60):
            await self.tracker.until(held)


class Nodes:
    """The nodes of one cluster."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bus = MemoryBus()
        self._starts = 0

    @asynccontextmanager
    async def node(
        self, name: str, contents: Mapping[str, bytes] | None = None, *, kind: Literal["replica", "worker"] = "worker"
    ) -> AsyncGenerator[Member, None]:
        """Run a node for as long as the block lasts; each time it is another process."""
        self._starts += 1
        models = self.folder / name / "models"
        lay_out(models, contents or {})
        async with AsyncExitStack() as stack:
            tracker = await stack.enter_async_context(Tracker(self.bus, f"{name}/{self._starts}").running())
            presence = await stack.enter_async_context(Presence(tracker, judges=False).running())
            announcer = await stack.enter_async_context(Announcer(tracker).running())
            store = Store(models, self.folder / name, name)
            node = Node(tracker, announcer, store, name=name, kind=kind, address="")
            await stack.enter_async_context(node.running("127.0.0.1", 0, "token", "127.0.0.1"))
            yield Member(node, tracker, announcer, presence, models)

    async def announce(self, member: Member, manifest: Manifest, url: str, name: str = "stranger") -> None:
        """Say that another node, whose file server is at ``url``, holds a model; return once the member knows it."""
        node = NodeRecord(name=name, kind="replica", process=f"{name}/1", files=url)
        await member.tracker.say(subjects.node(name), msgspec.json.encode(node))
        held = Holding(
            node=name, model=manifest.model, digest=manifest.digest, size=manifest.size, files=len(manifest.files)
        )
        said = await member.tracker.say(subjects.holding(name, manifest.model), msgspec.json.encode(held))
        await member.tracker.reached(said, 5.0)

    @asynccontextmanager
    async def worker(self, name: str, contents: Mapping[str, bytes] | None = None) -> AsyncGenerator[Member, None]:
        """Run a node that stages, for as long as the block lasts."""
        async with self.node(name, contents) as member:
            work = Worker(member.node, member.tracker, member.presence, token="token")
            async with work.running():
                yield member
