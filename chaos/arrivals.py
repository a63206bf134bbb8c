"""How many bytes of files the workers have received, over all their deaths."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

import aiohttp

from chaos.network import Network
from stagecast.child import Child
from stagecast.cluster import Cluster

_METRIC: Final = "stagecast_file_bytes_received_total "
_PATIENCE: Final = 2.0
_TRIES: Final = 3


class Arrivals:
    """The sum of a metric that begins at 0 with each process.

    Receivers are asked, so that it matters to nobody which holder dies. A worker is looked at just before a kill, and
    what came between that look and its death is taken from its network interface, a few headers too much.
    """

    def __init__(self, cluster: Cluster, network: Network | None) -> None:
        self._cluster = cluster
        self._network = network
        self._session: aiohttp.ClientSession | None = None
        self._latest: dict[int, int] = {}  # by process id: what the dead have received still counts
        self._total = 0
        self._was_answered = False
        self._is_cut_short = False

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Arrivals, None]:
        """Keep connections for as long as the block lasts."""
        timeout = aiohttp.ClientTimeout(total=_PATIENCE)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            self._session = session
            yield self

    async def look(self) -> int | None:
        """Ask every worker; return the bytes received since the last look.

        None where that cannot be told: one of them did not answer now or then, or ended and was not counted to its end.
        """
        workers = self._cluster.workers
        answered = all(await asyncio.gather(*(self._asked(child) for child in workers if child.is_running)))
        is_whole = answered and self._was_answered and not self._is_cut_short
        self._was_answered, self._is_cut_short = answered, False
        before, self._total = self._total, sum(self._latest.values())
        return self._total - before if is_whole else None

    @asynccontextmanager
    async def ending(self, name: str) -> AsyncGenerator[None, None]:
        """Count to its end what a process receives that ends in the block; one that receives no files needs none."""
        child = self._cluster.children[name]
        if child not in self._cluster.workers:
            yield
            return
        pid = child.pid
        before = self._network.received(name) if self._network else 0
        answered = await self._asked(child)
        yield
        if not answered or not self._network:
            self._is_cut_short = True
        else:
            self._latest[pid] = self._latest.get(pid, 0) + self._network.received(name) - before

    async def _asked(self, child: Child) -> bool:
        for _ in range(_TRIES):
            if await self._ask(child):
                return True
        return False

    async def _ask(self, child: Child) -> bool:
        """Read one process's metric; tell whether it answered."""
        assert self._session is not None
        try:
            headers = {"Authorization": f"Bearer {self._cluster.token}"}
            async with self._session.get(f"{child.url}/metrics", headers=headers) as response:
                response.raise_for_status()
                lines = (await response.text()).splitlines()
        except (aiohttp.ClientError, TimeoutError):
            return False
        for line in lines:
            if line.startswith(_METRIC):
                self._latest[child.pid] = int(float(line.removeprefix(_METRIC)))
        return True
