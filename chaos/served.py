"""How many bytes of files the processes have served to each other, over all their deaths."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import aiohttp

from chaos.network import Network
from stagecast.child import Child
from stagecast.cluster import Cluster

_METRIC: Final = "stagecast_file_bytes_sent_total "
_PATIENCE: Final = 2.0
_TRIES: Final = 3
_CHUNK: Final = 1024 * 1024
_ESTABLISHED, _LISTENING = "01", "0A"


def served_connections(sockets: str, port: int) -> int:
    """Return how many connections others have to a process, but not to ``port``, by its ``/proc/<id>/net/tcp``."""
    found = [(line.split()[1].partition(":")[2], line.split()[3]) for line in sockets.splitlines()[1:]]
    listening = {local for local, state in found if state == _LISTENING and int(local, 16) != port}
    return sum(state == _ESTABLISHED and local in listening for local, state in found)


class Served:
    """The sum of a metric that begins at 0 with each process.

    It is looked at just before a kill. What a process sent between that look and its death is taken from its network
    interface, a few headers too much. A megabyte counts once all of it has gone out: of a holder that dies, up to that
    much is missing for each of its connections.
    """

    def __init__(self, cluster: Cluster, network: Network | None) -> None:
        self._cluster = cluster
        self._network = network
        self._session: aiohttp.ClientSession | None = None
        self._latest: dict[int, int] = {}  # by process id: what the dead have served still counts
        self._total = 0
        self._was_answered = False
        self._is_cut_short = False
        self._missing = 0
        self.short = 0
        """How many bytes the count of the last look may be short of, at most."""

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Served, None]:
        """Keep connections for as long as the block lasts."""
        timeout = aiohttp.ClientTimeout(total=_PATIENCE)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            self._session = session
            yield self

    async def look(self) -> int | None:
        """Ask every process; return the bytes served since the last look.

        None where that cannot be told: one of them did not answer now or then, or ended and was not counted to its end.
        """
        children = [*self._cluster.replicas, *self._cluster.workers]
        answered = all(await asyncio.gather(*(self._asked(child) for child in children if child.is_running)))
        is_whole = answered and self._was_answered and not self._is_cut_short
        self._was_answered, self._is_cut_short = answered, False
        self.short, self._missing = self._missing, 0
        before, self._total = self._total, sum(self._latest.values())
        return self._total - before if is_whole else None

    @asynccontextmanager
    async def ending(self, name: str) -> AsyncGenerator[None, None]:
        """Count to its end what a process serves that ends in the block."""
        pid = self._cluster.children[name].pid
        before = self._network.sent(name) if self._network else 0
        answered = await self._asked(self._cluster.children[name])
        connections = self._connections(pid, self._cluster.children[name].url) if answered and self._network else 0
        yield
        if not answered or not self._network:
            self._is_cut_short = True
        else:
            self._missing += _CHUNK * connections
            self._latest[pid] = self._latest.get(pid, 0) + self._network.sent(name) - before

    def _connections(self, pid: int, url: str) -> int:
        try:
            sockets = Path(f"/proc/{pid}/net/tcp").read_text()
        except OSError:
            return 0  # it has ended already, and its connections with it
        return served_connections(sockets, int(url.rpartition(":")[2]))

    async def _asked(self, child: Child) -> bool:
        for _ in range(_TRIES):
            if await self._ask(child):
                return True
        return False

    async def _ask(self, child: Child) -> bool:
        """Read one process's metric; tell whether it answered."""
        key = self._cluster.settings.api_key if child.name.startswith("replica") else self._cluster.token
        assert self._session is not None
        try:
            headers = {"Authorization": f"Bearer {key}"}
            async with self._session.get(f"{child.url}/metrics", headers=headers) as response:
                response.raise_for_status()
                lines = (await response.text()).splitlines()
        except (aiohttp.ClientError, TimeoutError):
            return False
        for line in lines:
            if line.startswith(_METRIC):
                self._latest[child.pid] = int(float(line.removeprefix(_METRIC)))
        return True
