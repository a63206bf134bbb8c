"""Composition: the parts of each process, put together. Alone and in a cluster they are the same parts."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Literal

import aiohttp

from stagecast import recipes
from stagecast.bus import Bus
from stagecast.bus.nats import connect
from stagecast.bus.sqlite import opened
from stagecast.duty import Duty
from stagecast.eviction import Budget
from stagecast.frontend.application import build
from stagecast.frontend.installs import Installs
from stagecast.frontend.replica import Replica
from stagecast.holders import holders
from stagecast.instances import Instances
from stagecast.keeper import Keeper
from stagecast.listener import Endpoint, bound, check_open, parse_endpoint, serving
from stagecast.loader import Loader
from stagecast.manifest import check_name
from stagecast.metrics import Metrics
from stagecast.node import Node
from stagecast.participant import ALONE_LOG, Participant, outlive, participating
from stagecast.router import Router
from stagecast.settings import Bounds, NodeSettings, ReplicaSettings, WorkerSettings
from stagecast.store import Store
from stagecast.throttle import Throttle
from stagecast.transfer import client_tls, server_tls
from stagecast.verifier import Verifier
from stagecast.worker import Worker

_logger = logging.getLogger(__name__)


async def run_replica(settings: ReplicaSettings) -> None:
    """Run one replica until cancelled; without NATS, alone and with a worker inside.

    Raises:
        BadInput: an option cannot be meant.
        BusError: NATS cannot be reached, or cannot be used.
    """
    async with replica(settings):
        await asyncio.Event().wait()


async def run_worker(settings: WorkerSettings) -> None:
    """Run one worker until cancelled. Raises what `run_replica` raises."""
    async with worker(settings):
        await asyncio.Event().wait()


@asynccontextmanager
async def replica(settings: ReplicaSettings) -> AsyncGenerator[str, None]:
    """Run a replica for as long as the block lasts; yield its base URL."""
    endpoint = parse_endpoint(settings.listen, "--listen")
    check_name(settings.name, "node")
    check_open(endpoint, settings.api_key, allowed=settings.allow_unauthenticated, option="STAGECAST_API_KEY")
    async with AsyncExitStack() as stack:
        listening = stack.enter_context(bound(endpoint))
        url = _base_url(settings, endpoint, listening)
        bus = await stack.enter_async_context(_bus(settings))
        control = await stack.enter_async_context(
            participating(bus, settings.name, judges=True, bounds=settings.bounds)
        )
        throttle = await stack.enter_async_context(Throttle(control.tracker, settings.rate_limit).running())
        store = Store(settings.models_folder, settings.data, settings.name)
        session = await stack.enter_async_context(_session(keeps_connections=True))
        if settings.nats:
            node = await stack.enter_async_context(_node(settings, control, store, "replica", url, {}))
            verifier = Verifier(
                node, partial(holders, control.tracker, control.presence, settings.name), token=settings.token,
                limit=throttle.limit,
            )  # fmt: skip
            duty = Duty(control.tracker, "staging", verifier.perform, node=settings.name, clear=verifier.remains.clear)
            await stack.enter_async_context(duty.running())
        else:
            outlive(control)
            node = await stack.enter_async_context(_working_node(settings, control, store, throttle, None, {}))
        parts = Replica(
            participant=control, router=Router(control.tracker, control.presence), node=node,
            token=settings.token, galleries=settings.galleries, wait_budget=settings.wait_budget,
        )  # fmt: skip
        installs = await stack.enter_async_context(Installs(parts, throttle).running())
        await stack.enter_async_context(serving(build(parts, installs, session, settings.api_key), listening))
        stack.callback(control.tracker.close)
        _logger.info("replica %s answers at %s, its page is %s/; %s", settings.name, url, url, _stock(store))
        yield url


@asynccontextmanager
async def worker(settings: WorkerSettings) -> AsyncGenerator[str, None]:
    """Run a worker for as long as the block lasts; yield its base URL."""
    endpoint = parse_endpoint(settings.listen, "--listen")
    check_name(settings.name, "node")
    check_open(endpoint, settings.token, allowed=settings.allow_unauthenticated, option="STAGECAST_TOKEN")
    async with AsyncExitStack() as stack:
        listening = stack.enter_context(bound(endpoint))
        bus = await stack.enter_async_context(_bus(settings))
        control = await stack.enter_async_context(participating(bus, settings.name, judges=False))
        throttle = await stack.enter_async_context(Throttle(control.tracker, settings.rate_limit).running())
        store = Store(settings.models_folder, settings.data, settings.name)
        labels = dict(settings.labels)
        await stack.enter_async_context(_working_node(settings, control, store, throttle, listening, labels))
        url = _base_url(settings, endpoint, listening)
        _logger.info("worker %s answers at %s; %s", settings.name, url, _stock(store))
        yield url


@asynccontextmanager
async def _node(
    settings: NodeSettings, control: Participant, store: Store, kind: Literal["replica", "worker"], address: str,
    labels: dict[str, str],
) -> AsyncGenerator[Node, None]:  # fmt: skip
    """Run what holds and serves models. Its listener for pieces is loopback's where the process's own is."""
    main = parse_endpoint(settings.listen, "--listen")
    files = parse_endpoint(settings.files_listen, "--files-listen") if settings.files_listen else Endpoint(main.host, 0)
    check_open(files, settings.token, allowed=settings.allow_unauthenticated, option="STAGECAST_TOKEN")
    served = server_tls(settings.files_certificate, settings.files_key)
    node = Node(
        control.tracker, control.announcer, store, name=settings.name, kind=kind, address=address, labels=labels,
        rate_limit=settings.rate_limit, tls=client_tls(settings.files_authority),
    )  # fmt: skip
    control.commands.drain = node.drain
    budget = Budget(settings.disk_budget, settings.keep_free)
    keeper = Keeper(node, control.tracker, control.presence, budget, settings.token)
    control.commands.questions.update(keeper.questions)
    async with (
        node.running(files.host, files.port, settings.token, _advertised(settings, files), served),
        keeper.running(),
    ):
        yield node
        # The announcer ends after this block, so that the node's last word still goes out.


@asynccontextmanager
async def _working_node(
    settings: NodeSettings, control: Participant, store: Store, throttle: Throttle, listening: socket.socket | None,
    labels: dict[str, str],
) -> AsyncGenerator[Node, None]:  # fmt: skip
    """Run a node that stages and loads. Without a socket of its own it listens on a free port of loopback."""
    async with AsyncExitStack() as stack:
        if listening is None:
            inner = Endpoint("127.0.0.1", 0)
            listening = stack.enter_context(bound(inner))
            address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        else:
            address = _base_url(settings, parse_endpoint(settings.listen, "--listen"), listening)
        node = await stack.enter_async_context(_node(settings, control, store, "worker", address, labels))
        working = Worker(
            node, control.tracker, control.presence, token=settings.token, throttle=throttle,
            at_once=settings.stagings_at_once,
        )  # fmt: skip
        await stack.enter_async_context(working.running())
        loader = Loader(
            node, control.tracker, control.announcer, recipes.load(settings.backends), working.stage,
            logs=settings.data / "logs",
        )  # fmt: skip
        await stack.enter_async_context(loader.running())
        session = await stack.enter_async_context(_session(keeps_connections=False))
        instances = Instances(loader, session, Metrics(control.tracker, node), settings.token, node.surveyed.is_set)
        await stack.enter_async_context(serving(instances, listening))
        yield node


@asynccontextmanager
async def _bus(settings: NodeSettings) -> AsyncGenerator[Bus, None]:
    bounds = settings.bounds if isinstance(settings, ReplicaSettings) else None
    if not settings.nats:
        async with opened(settings.data / ALONE_LOG, bounds or Bounds()) as alone:
            yield alone
        return
    async with connect(settings.nats, settings.name, bounds=bounds) as bus:
        yield bus


@asynccontextmanager
async def _session(*, keeps_connections: bool) -> AsyncGenerator[aiohttp.ClientSession, None]:
    """Yield the client that passes requests on. No limit on connections, nor on time: a generation may take long."""
    timeout = aiohttp.ClientTimeout(total=None, connect=10)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=not keeps_connections),
        timeout=timeout,
        auto_decompress=False,
        trust_env=False,
    ) as session:
        yield session


def _stock(store: Store) -> str:
    """Say how many models lie where: a folder that was misspelt is an empty one."""
    count = len(store.names())
    return f"{count} model{'' if count == 1 else 's'} in {store.models}"


def _base_url(settings: NodeSettings, endpoint: Endpoint, listening: socket.socket) -> str:
    return f"http://{_advertised(settings, endpoint)}:{listening.getsockname()[1]}"


def _advertised(settings: NodeSettings, endpoint: Endpoint) -> str:
    host = settings.advertise or (socket.gethostname() if endpoint.is_wildcard else endpoint.host)
    return f"[{host}]" if ":" in host else host
