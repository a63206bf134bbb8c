"""Clients: they ask through the load balancer, and carry the highest revision that they have seen."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from stagecast import client as http_client
from stagecast.messages import Record

if TYPE_CHECKING:
    from tests.simulation.cluster import Answer, Cluster


class Browser:
    """A client that carries the highest revision it has seen, by the very rule of `stagecast.client`."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.name = name
        self.process = cluster.loop.process(name)
        self._memory = http_client.Client.__new__(http_client.Client)
        self._memory.revision = ""

    @property
    def revision(self) -> str:
        """The highest revision that it has seen."""
        return self._memory.revision

    async def ask(self, method: str, path: str) -> Answer:
        """Send a request, and learn from the answer."""
        answer = await self.cluster.ask(method, path, self.revision)
        if answer.revision:
            self._memory._see(answer.revision, answer.asked if answer.status < 400 else "")
        return answer

    async def poll(self) -> Answer | None:
        """Ask for the list until somebody answers; the ledger looks at what came."""
        for _ in range(8):
            answer = await self.ask("GET", "/api/operations")
            if answer.status == 200:
                self.cluster.ledger.polled(self, answer)
                return answer
            await asyncio.sleep(0.1)
        return None

    async def watch(self, interval: float) -> None:
        """Poll for good."""
        while True:
            await self.poll()
            await asyncio.sleep(interval)

    async def do(self, path: str) -> Answer:
        """Have something done, asking again where it is known that nothing was; then look at once whether it shows."""
        for _ in range(6):
            answer = await self.ask("POST", path)
            if answer.status not in {0, 503}:
                break
            if answer.status == 0:
                await asyncio.sleep(0.2)
                continue
            await asyncio.sleep(0.3)
        if answer.status == 200:
            record, at = msgspec.json.decode(answer.body, type=tuple[Record, str])
            self._memory._see(at)
            self.cluster.ledger.accepted(self, path, answer, record, at)
            await self.poll()
        else:
            self.cluster.ledger.refused(path, answer)
        return answer
