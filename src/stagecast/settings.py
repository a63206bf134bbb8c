"""What a process is told when it starts. Frozen values; the environment is read once, by the command line."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from pathlib import Path

DEFAULT_LISTEN = "127.0.0.1:8080"
DEFAULT_WORKER_LISTEN = "127.0.0.1:8081"
STAGINGS_AT_ONCE = 4
"""Few enough that what began first is whole first, and enough that one slow source does not hold up the others."""


def default_name() -> str:
    """Return this host's name, as a node's name."""
    return socket.gethostname().split(".")[0] or "node"


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How much of what has ended is kept: the newest ``count``, and none for longer than ``age`` seconds."""

    count: int = 10_000
    age: float = 30 * 86400.0


@dataclass(frozen=True, kw_only=True)
class NodeSettings:
    """What replicas and workers have in common.

    ``models`` defaults to ``data/models``. ``listen`` and ``files_listen`` are ``host:port``, port 0 for a free
    one; ``files_listen`` defaults to a free port on the host of ``listen``; with ``files_certificate`` (and
    ``files_key``, where that is another file) it speaks TLS, and others' certificates must be of
    ``files_authority``. ``advertise`` is the host name that other nodes should use; it defaults to the host of
    ``listen``, or to this host's name where that is a wildcard. ``token`` is the cluster's own secret; without one,
    nothing listens outside loopback unless ``allow_unauthenticated``.
    """

    listen: str = DEFAULT_LISTEN
    files_listen: str = ""
    files_certificate: Path | None = None
    files_key: Path | None = None
    files_authority: Path | None = None
    advertise: str = ""
    nats: str = ""
    data: Path = field(default_factory=lambda: Path("~/.local/share/stagecast").expanduser())
    models: Path | None = None
    name: str = field(default_factory=default_name)
    token: str = field(default="", repr=False)
    allow_unauthenticated: bool = False
    backends: Path | None = None
    rate_limit: int = 0
    """Bytes per second that this node pulls at most; 0 for no limit."""
    disk_budget: int = 0
    """Bytes that models may take in all before those used longest ago are evicted; 0 for no such bound."""
    keep_free: int = 0
    """Bytes that are to stay free on the models' disk, by the same means; 0 for no such bound."""
    stagings_at_once: int = STAGINGS_AT_ONCE

    @property
    def models_folder(self) -> Path:
        """Where models lie under their plain names."""
        return self.models if self.models is not None else self.data / "models"


@dataclass(frozen=True, kw_only=True)
class ReplicaSettings(NodeSettings):
    """What a replica is told. ``wait_budget``: seconds that a request waits for a model before it gets the 503 body.

    ``history_count`` and ``history_age``, in days, bound the history; the same on every replica.
    """

    api_key: str = field(default="", repr=False)
    galleries: tuple[str, ...] = ()
    wait_budget: float = 20.0
    history_count: int = Bounds.count
    history_age: float = Bounds.age / 86400

    @property
    def bounds(self) -> Bounds:
        """How much of what has ended is kept."""
        return Bounds(count=self.history_count, age=self.history_age * 86400)


@dataclass(frozen=True, kw_only=True)
class WorkerSettings(NodeSettings):
    """What a worker is told."""

    labels: tuple[tuple[str, str], ...] = ()
