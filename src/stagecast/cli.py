"""The command line (WIRE section 4): what each command is called and takes. Exit codes: 0, 1 failed, 2 usage, 130."""

from __future__ import annotations

import asyncio
import inspect
import signal
import sys
from collections.abc import Coroutine, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any, Final

import uvloop
from cyclopts import App, CycloptsError, Parameter
from rich.live import Live

from stagecast import display
from stagecast.client import Client
from stagecast.cluster import ClusterSettings, cluster
from stagecast.errors import StagecastError
from stagecast.following import follow as follow_operations
from stagecast.messages import Verb
from stagecast.options import (
    ApiKey,
    Backends,
    Environment,
    Follow,
    Galleries,
    Id,
    Labels,
    ModelName,
    Models,
    NodeName,
    NodeOptions,
    Rate,
    Reach,
    Replicas,
    Workers,
    argument,
)
from stagecast.rows import Row
from stagecast.settings import NodeSettings, ReplicaSettings

_CLIENT_PATIENCE: Final = 3.0
_POLL: Final = 30.0
_DEMO_RATE: Final = 15_000_000

app = App(
    name="stagecast",
    help="Stage model files onto workers, load them there, and see every operation the same on every replica.",
    config=Environment("STAGECAST_", command=False),
    default_parameter=Parameter(negative=(), consume_multiple=False),
)


@app.command
async def up(
    *,
    replicas: Replicas = 3,
    workers: Workers = 2,
    port: Annotated[int, Parameter(help="Where the load balancer listens; 0 takes a free port.")] = 8080,
    data: Annotated[Path | None, Parameter(help="Folder of what must survive a restart.")] = None,
    models: Models = None,
    rate_limit: Rate = 0,
    backends: Backends = None,
    galleries: Galleries = (),
    api_key: ApiKey = "",
) -> int:
    """Run everything on this machine: NATS, replicas, workers and a load balancer, until Ctrl-C."""
    settings = ClusterSettings(
        data=data or NodeSettings().data,
        models=models,
        replicas=replicas,
        workers=workers,
        port=port,
        rate_limit=rate_limit,
        backends=backends,
        galleries=galleries,
        api_key=api_key,
    )
    return await _until_terminated(_up(settings))


@app.command
async def demo(
    *,
    rate_limit: Rate = _DEMO_RATE,
    keep: Annotated[bool, Parameter(help="Leave it running afterwards, until Ctrl-C.")] = False,
    port: Annotated[int, Parameter(help="Where the load balancer listens; 0 takes a free port.")] = 0,
    cache: Annotated[Path | None, Parameter(help="Where the demo's model is kept between runs.")] = None,
    data: Annotated[Path | None, Parameter(help="Work in this folder and leave it. [default: a temporary one]")] = None,
) -> int:
    """Show the main job on a real model: install, stage, kill a replica, load, embed; exit 0 if every check held."""
    from stagecast.demo import DemoSettings, run

    return await _until_terminated(run(DemoSettings(rate_limit=rate_limit, keep=keep, port=port, cache=cache, data=data)))


@app.command
async def serve(
    *,
    node: NodeOptions = NodeOptions(),  # noqa: B008  # frozen
    nats: Annotated[str, Parameter(help="URL of NATS. Without it: alone, with a worker inside.")] = "",
    api_key: ApiKey = "",
    galleries: Galleries = (),
    wait_budget: Annotated[
        float, Parameter(help="Seconds that a request waits for its model to load.")
    ] = ReplicaSettings.wait_budget,
) -> int:
    """Run one replica: the HTTP API, the page and the router."""
    from stagecast.composition import run_replica

    settings = node.replica(nats=nats, api_key=api_key, galleries=galleries, wait_budget=wait_budget)
    return await _until_terminated(run_replica(settings))


@app.command
async def worker(
    *,
    nats: Annotated[str, Parameter(help="URL of NATS.")],
    node: NodeOptions = NodeOptions(),  # noqa: B008  # frozen
    labels: Labels = (),
) -> int:
    """Run one worker: it stores models and runs their backends."""
    from stagecast.composition import run_worker

    return await _until_terminated(run_worker(node.worker(nats=nats, labels=labels)))


@app.command
async def stage(
    model: ModelName,
    /,
    *,
    to: Annotated[tuple[str, ...], Parameter(help="A worker; may be given several times.")] = (),
    all: Annotated[bool, Parameter(help="Every worker.")] = False,  # noqa: A002  # the option is called so
    dry_run: Annotated[bool, Parameter(help="Only say what would move, and whether it fits.")] = False,
    follow: Follow = False,
    reach: Reach = Reach(),  # noqa: B008  # frozen
) -> int:
    """Bring a model onto workers."""
    if bool(to) == all:
        return _usage("say where to: either --to NODE, as often as needed, or --all")
    async with _client(reach) as client:
        if dry_run:
            plan = await client.plan(model, to)
            display.console().print(display.plan(plan))
            return 0 if all_fit(plan.nodes) else 1
        return await _begun(client, await client.stage(model, to), follow=follow)
