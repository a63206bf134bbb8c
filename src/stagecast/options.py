"""The command line's options: names, defaults, help. Which of them the environment gives, `Environment` says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import Parameter, Token
from cyclopts.config import Env

from stagecast.errors import InvalidQuantity
from stagecast.quantities import parse_rate, parse_size
from stagecast.session import DEFAULT_URL
from stagecast.settings import (
    DEFAULT_LISTEN,
    DEFAULT_WORKER_LISTEN,
    STAGINGS_AT_ONCE,
    NodeSettings,
    ReplicaSettings,
    WorkerSettings,
    default_name,
)

if TYPE_CHECKING:
    from cyclopts import App, ArgumentCollection


PROCESSES: Final = frozenset({"up", "demo", "serve", "worker"})
"""Commands that are processes of a cluster; all others are its clients."""
REACH: Final = frozenset({"--url", "--api-key"})
"""What a client may read from the environment."""


class Environment(Env):
    """Reads options from the environment, but not what a command acts on, which is said where it is called.

    A process has all its settings from there; a client only how it finds the cluster: what is left lying in a shell
    must not change what a command does.
    """

    def __call__(self, app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        """Give each option that was not on the command line what its variable says."""
        is_client = not PROCESSES.intersection(commands)
        options = type(arguments)(
            each for each in arguments if each.index is None and (not is_client or REACH.intersection(each.names))
        )
        super().__call__(app, commands, options)


def _rate(kind: Any, tokens: Sequence[Token]) -> int:  # noqa: ARG001  # cyclopts calls it so
    if tokens[0].value == "0":
        return 0
    try:
        return parse_rate(tokens[0].value)
    except InvalidQuantity as error:
        raise ValueError(error.message) from None


def _size(kind: Any, tokens: Sequence[Token]) -> int:  # noqa: ARG001  # cyclopts calls it so
    if tokens[0].value == "0":
        return 0
    try:
        return parse_size(tokens[0].value)
    except InvalidQuantity as error:
        raise ValueError(error.message) from None


def _is_label(kind: Any, labels: Sequence[str]) -> None:  # noqa: ARG001  # cyclopts calls it so
    for label in labels:
        if not label.partition("=")[0] or "=" not in label:
            raise ValueError(f"{label!r} is not a label; write it as KEY=VALUE")


def _at_least(least: int) -> Callable[[Any, int], None]:
    def check(kind: Any, count: int) -> None:  # noqa: ARG001  # cyclopts calls it so
        if count < least:
            raise ValueError(f"it must be at least {least}")

    return check


def _is_positive(kind: Any, number: float) -> None:  # noqa: ARG001  # cyclopts calls it so
    if not 0 < number < inf:
        raise ValueError("it must be a number above 0")


def shown_default(default: object) -> object:
    """Return a default as help shows it; None where there is none, or the option's own words say it."""
    return None if default is False or default in (None, "", ()) else default


def argument(text: str) -> Parameter:
    """Return what describes a positional argument."""
    return Parameter(help=text, show_env_var=False)


Id = Annotated[str, argument("The operation's id or jobID, as `stagecast ops` shows it.")]
ModelName = Annotated[str, argument("The model's name.")]
NodeName = Annotated[str, argument("The worker's name.")]
Follow = Annotated[bool, Parameter(help="Draw the progress until it has ended; exit 1 if it failed.")]
Json = Annotated[bool, Parameter(help="Print what the API returns, byte for byte.")]
Replicas = Annotated[int, Parameter(help="How many replicas.", validator=_at_least(1))]
Workers = Annotated[int, Parameter(help="How many workers.", validator=_at_least(0))]
Rate = Annotated[
    int,
    Parameter(
        converter=_rate, metavar="RATE", help="The most that a worker pulls in a second, like 20MB/s; 0 for no limit."
    ),
]
Size = Annotated[int, Parameter(converter=_size, metavar="SIZE")]
DiskBudget = Annotated[
    int,
    Parameter(
        converter=_size,
        metavar="SIZE",
        help="Evict the models used longest ago where all take more, like 2TB; 0: never.",
    ),
]
KeepFree = Annotated[
    int,
    Parameter(
        converter=_size, metavar="SIZE", help="Evict them where less of a worker's disk is free, like 50GB; 0: never."
    ),
]


def rate_option(text: str) -> Parameter:
    """Return what describes an option that takes a rate."""
    return Parameter(converter=_rate, metavar="RATE", help=text, show_env_var=False)


Models = Annotated[
    Path | None, Parameter(help="Folder of models; each file or folder in it is one. [default: DATA/models]")
]
Backends = Annotated[Path | None, Parameter(help="YAML file that says which command serves which models.")]
Galleries = Annotated[tuple[str, ...], Parameter(help="Where a gallery's index is; may be given several times.")]
ApiKey = Annotated[str, Parameter(help="The key that clients send.")]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Reach:
    """How a client command finds the cluster."""

    url: Annotated[str, Parameter(help="A replica, or the load balancer before many; also given by STAGECAST_URL.")] = (
        DEFAULT_URL
    )
    api_key: Annotated[str, Parameter(help="The key that clients send; better given by STAGECAST_API_KEY.")] = ""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class HistoryOptions:
    """How much of what has ended ``serve`` keeps."""

    history_count: Annotated[
        int, Parameter(help="How many ended operations are kept at most.", validator=_at_least(1))
    ] = ReplicaSettings.history_count
    history_age: Annotated[
        float, Parameter(help="For how many days an ended operation is kept at most.", validator=_is_positive)
    ] = ReplicaSettings.history_age


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class NodeOptions:
    """What ``serve`` and ``worker`` have in common."""

    listen: Annotated[
        str, Parameter(help="HOST:PORT; port 0 takes a free one. [default: 127.0.0.1:8080, a worker's 127.0.0.1:8081]")
    ] = ""
    files_listen: Annotated[
        str, Parameter(help="HOST:PORT where pieces are served. [default: a free port of LISTEN's host]")
    ] = ""
    files_certificate: Annotated[
        Path | None, Parameter(help="PEM file: the certificate with which pieces are served over TLS.")
    ] = None
    files_key: Annotated[Path | None, Parameter(help="PEM file: its key. [default: in the certificate's file]")] = None
    files_authority: Annotated[
        Path | None, Parameter(help="PEM file: who signs the others' certificates. [default: the system's]")
    ] = None
    advertise: Annotated[str, Parameter(help="Host under which others reach this one. [default: LISTEN's]")] = ""
    data: Annotated[Path, Parameter(help="Folder of what must survive a restart.")] = field(
        default_factory=lambda: NodeSettings().data
    )
    models: Models = None
    name: Annotated[
        str, Parameter(help="This node's name in the cluster. [default: this host's, a worker's with -worker behind]")
    ] = ""
    token: Annotated[str, Parameter(help="The cluster's own secret; better given by STAGECAST_TOKEN.")] = ""
    allow_unauthenticated: Annotated[
        bool, Parameter(help="Listen outside loopback without a secret, which is refused otherwise.")
    ] = False
    backends: Backends = None
    rate_limit: Rate = 0
    stagings_at_once: Annotated[
        int, Parameter(help="How many models its worker stages at a time.", validator=_at_least(1))
    ] = STAGINGS_AT_ONCE
    disk_budget: DiskBudget = 0
    keep_free: KeepFree = 0

    def replica(self, history: HistoryOptions, **given: Any) -> ReplicaSettings:
        """Return these as a replica's settings, together with what only a replica is ``given``."""
        return ReplicaSettings(**self._own(DEFAULT_LISTEN, default_name()), **vars(history), **given)

    def worker(self, *, nats: str, labels: Sequence[str]) -> WorkerSettings:
        """Return these as a worker's settings; labels are ``KEY=VALUE``."""
        pairs = (label.partition("=") for label in labels)
        own = self._own(DEFAULT_WORKER_LISTEN, f"{default_name()}-worker")
        return WorkerSettings(**own, nats=nats, labels=tuple((key, value) for key, _, value in pairs))

    def _own(self, listen: str, name: str) -> dict[str, Any]:
        return vars(self) | {"listen": self.listen or listen, "name": self.name or name}


Labels = Annotated[
    tuple[str, ...], Parameter(name="--label", help="KEY=VALUE; may be given several times.", validator=_is_label)
]
