"""A replica with a worker inside, alone in this process, and a second pen on its log."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import aiohttp
import msgspec

from stagecast import composition, operations, subjects
from stagecast.bus import CaughtUp, Lost, sqlite
from stagecast.bus.memory import MemoryBus
from stagecast.bus.sqlite import SqliteBus
from stagecast.messages import Beat, Kind, NodeRecord
from stagecast.settings import ReplicaSettings
from stagecast.tracker import Tracker
from tests.conftest import eventually
from tests.sample import lay_out

WEIGHTS = bytes(range(256)) * 8
OWL = {"owl/config.json": b"{}", "owl/weights.bin": WEIGHTS}


@dataclass(frozen=True)
class Answer:
    """A response, read whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> tuple[int, str, str]:
        """Its status, and the code and message of its error."""
        said = self.json["error"]
        return self.status, said["code"], said["message"]


@dataclass(frozen=True)
class Alone:
    """What `alone` yields. ``peer`` is another process's tracker on the same log; ``folder`` has the models."""

    url: str
    http: aiohttp.ClientSession
    bus: MemoryBus
    peer: Tracker
    folder: Path

    async def ask(self, method: str, path: str, **options: Any) -> Answer:
        async with self.http.request(method, self.url + path, **options) as response:
            return Answer(response.status, response.headers, await response.read())

    async def get(self, path: str, **options: Any) -> Answer:
        return await self.ask("GET", path, **options)

    async def post(self, path: str, body: object = None, **options: Any) -> Answer:
        return await self.ask("POST", path, json=body, **options)

    async def row(self, operation: str) -> Any:
        return (await self.get(f"/api/operations/{operation}")).json

    async def ended(self, operation: str) -> Any:
        """Return the row of an operation once it has ended."""
        await eventually(lambda: (held := self.peer.fold.record(operation)) is not None and operations.is_ended(held))
        return await self.row(operation)

    async def running(self, kind: Kind, model: str, node: str = "", **fields: object) -> str:
        """Begin an operation that the peer seems to own, and return its id."""
        record, revision = await self.peer.open(kind, model, node, cause="test", claim=True)
        if fields:
            changed = msgspec.structs.replace(record, seq=record.seq + 1, **fields)
            revision = await self.peer.write(changed, revision.sequence)
        await self.peer.reached(revision)
        await self.get("/api/operations", params={"min_revision": str(revision)})
        return record.id

    async def worker(self, name: str = "there", **changes: Any) -> str:
        """Let the cluster have one more worker that has just given a sign of life; return its process."""
        values = {"kind": "worker", "process": f"{name}/1", "disk_free": 10**12, "disk_total": 10**12} | changes
        said = NodeRecord(name=name, **values)
        await self.beat(said.process)
        await self.say(subjects.node(name), said)
        return said.process

    async def say(self, subject: str, message: msgspec.Struct) -> None:
        """Write to the log; return once everybody has folded it."""
        revision = await self.peer.say(subject, msgspec.json.encode(message))
        await self.peer.reached(revision)
        await self.get("/api/operations", params={"min_revision": str(revision)})

    async def beat(self, process: str, *, leaving: bool = False) -> None:
        await self.bus.publish(subjects.BEAT, msgspec.json.encode(Beat(process=process, leaving=leaving)))


def lose(bus: MemoryBus) -> None:
    """Let all followers of the log hear that it is lost."""
    for follower in bus.log._followers:
        follower.put_nowait(Lost())


def find_again(bus: MemoryBus) -> None:
    """Let all followers hear that the log is back, with nothing new in it."""
    for follower in bus.log._followers:
        follower.put_nowait(CaughtUp(bus.log._sequence))


@asynccontextmanager
async def alone(folder: Path, contents: Mapping[str, bytes] = OWL, **options: Any) -> AsyncIterator[Alone]:
    """Run it in ``folder`` for as long as the block lasts, from when it is ready."""
    lay_out(folder / "models", contents)
    settings = ReplicaSettings(**({"listen": "127.0.0.1:0", "data": folder, "name": "here"} | options))
    buses: list[SqliteBus] = []

    @asynccontextmanager
    async def opened(*arguments: Any) -> AsyncIterator[SqliteBus]:
        async with sqlite.opened(*arguments) as bus:
            buses.append(bus)
            yield bus

    with patch.object(composition, "opened", opened):
        async with (
            composition.replica(settings) as url,
            Tracker(buses[0], "peer/1").running() as peer,
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as http,
        ):
            running = Alone(url, http, buses[0], peer, folder)
            while (await running.get("/readyz")).status != 200:
                pass
            for model in {path.partition("/")[0] for path in contents}:
                await peer.until(lambda model=model: bool(peer.fold.holders(model)))  # type: ignore[misc]
            yield running
