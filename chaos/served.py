"""How many bytes of files the processes have served to each other, over all their deaths."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

import aiohttp

from stagecast.child import Child
from stagecast.cluster import Cluster

_METRIC: Final = "stagecast_file_bytes_sent_total "
_PATIENCE: Final = 2.0


class Served:
    """The sum of a metric that begins at 0 with each process.

    Looked at just before a kill; what went out in those milliseconds, and of a killed holder was never counted, is
    missing, so that a sum after a holder's death is up to that much too low.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._session: aiohttp.ClientSession | None = None
        self._latest: dict[int, int] = {}  # by process id: what the dead have served still counts

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Served, None]:
        """Keep connections for as long as the block lasts."""
        timeout = aiohttp.ClientTimeout(total=_PATIENCE)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            self._session = session
            yield self

    async def look(self) -> int:
        """Ask every process; return the bytes served since the start of everything."""
        children = [*self._cluster.replicas, *self._cluster.workers]
        await asyncio.gather(*(self._ask(child) for child in children if child.is_running))
        return sum(self._latest.values())

    async def look_at(self, name: str) -> None:
        """Ask one process, just before its end."""
        await self._ask(self._cluster.children[name])

    async def _ask(self, child: Child) -> None:
        key = self._cluster.settings.api_key if child.name.startswith("replica") else self._cluster.token
        assert self._session is not None
        try:
            headers = {"Authorization": f"Bearer {key}"}
            async with self._session.get(f"{child.url}/metrics", headers=headers) as response:
                lines = (await response.text()).splitlines()
        except (aiohttp.ClientError, TimeoutError):
            return
        for line in lines:
            if line.startswith(_METRIC):
                self._latest[child.pid] = int(float(line.removeprefix(_METRIC)))
