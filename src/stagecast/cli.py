"""The command line (WIRE section 4): what each command is called and takes. Exit codes: 0, 1 failed, 2 usage, 130."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import re
import signal
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import uvloop
from cyclopts import App, CycloptsError, Parameter

from stagecast import remote, upkeep
from stagecast.cluster import ClusterSettings, cluster
from stagecast.errors import BadInput, StagecastError
from stagecast.options import (
    ApiKey,
    Backends,
    DiskBudget,
    Environment,
    Galleries,
    HistoryOptions,
    KeepFree,
    Labels,
    Models,
    NodeOptions,
    Rate,
    Replicas,
    Workers,
    shown_default,
)
from stagecast.settings import NodeSettings, ReplicaSettings

_DEMO_RATE: Final = 15_000_000

app = App(
    name="stagecast",
    help="Stage model files onto workers, load them there, and see every operation the same on every replica.",
    config=Environment("STAGECAST_", command=False),
    default_parameter=Parameter(negative=(), consume_multiple=False, show_default=shown_default),
)
_CLIENT: Final = Environment("STAGECAST_", command=False, show=False)
"""How clients read the environment: which of their options it gives, these say themselves."""


@app.command
async def up(
    *,
    replicas: Replicas = 3,
    workers: Workers = 2,
    port: Annotated[int, Parameter(help="Where the load balancer listens; 0 takes a free port.")] = 8080,
    data: Annotated[Path | None, Parameter(help="Folder of what must survive a restart.")] = None,
    models: Models = None,
    rate_limit: Rate = 0,
    disk_budget: DiskBudget = 0,
    keep_free: KeepFree = 0,
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
        disk_budget=disk_budget,
        keep_free=keep_free,
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

    settings = DemoSettings(rate_limit=rate_limit, keep=keep, port=port, cache=cache, data=data)
    return await _until_terminated(run(settings), code=1)


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
    history: HistoryOptions = HistoryOptions(),  # noqa: B008  # frozen
) -> int:
    """Run one replica: the HTTP API, the page and the router."""
    from stagecast.composition import run_replica

    _log_to_stderr()
    settings = node.replica(history, nats=nats, api_key=api_key, galleries=galleries, wait_budget=wait_budget)
    return await _until_terminated(run_replica(settings))


@app.command
async def worker(
    *,
    nats: Annotated[str, Parameter(help="URL of NATS; it must be given.")] = "",
    node: NodeOptions = NodeOptions(),  # noqa: B008  # frozen
    labels: Labels = (),
) -> int:
    """Run one worker: it stores models and runs their backends."""
    from stagecast.composition import run_worker

    if not nats:
        raise remote.UsageError("say where NATS is, with --nats URL or STAGECAST_NATS, like nats://127.0.0.1:4222")
    _log_to_stderr()
    return await _until_terminated(run_worker(node.worker(nats=nats, labels=labels)))


for _command in (
    remote.stage, remote.verify, remote.ops, remote.cancel, remote.history, remote.install, remote.models,
    remote.nodes, remote.limits, remote.drain, remote.undrain, remote.load, upkeep.gc, upkeep.pin, upkeep.unpin,
):  # fmt: skip
    app.command(_command, config=_CLIENT)
for _verb, _does in remote.VERBS.items():
    app.command(remote.commanding(_verb, _does), name=_verb, config=_CLIENT)
app.command(remote.remove, name="rm", config=_CLIENT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that ``arguments``, by default the process's, say; return the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        command, bound, _ = app.parse_args(given, exit_on_error=False, print_error=False)
        result = command(*bound.args, **bound.kwargs)
        return _run(result) if inspect.iscoroutine(result) else 0
    except (CycloptsError, remote.UsageError) as error:
        return _say_error(_usage(error, given), 2)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read the output has seen enough; what Python would still flush goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (StagecastError, BaseExceptionGroup) as error:
        cause = _first_cause(error)
        return _say_error(cause.message, 2 if isinstance(cause, BadInput) else 1)


def _run(work: Coroutine[Any, Any, int | None]) -> int:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work) or 0


def _usage(error: Exception, given: Sequence[str]) -> str:
    """Return what was wrong, and where the command's own help is."""
    command = f"{given[0]} " if given and given[0] in list(app) and not given[0].startswith("-") else ""
    # The parser's sentences end with a full stop, but a list that goes on with three; ours follow after one.
    said = re.sub(r"(?<!\.)\.$", "", str(error))
    said = re.sub(r"\. (?=[a-z])", ": ", said)
    return f"{said}; see `stagecast {command}--help`"


def _first_cause(error: BaseException) -> StagecastError:
    """Return the first of ours in a group; what is not ours is a fault, and shown as one."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if not isinstance(error, StagecastError):
        raise error
    return error


def _say_error(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def _log_to_stderr() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")


async def _until_terminated(work: Coroutine[Any, Any, int | None], code: int = 0) -> int:
    """Return what ``work`` returns; SIGTERM ends it gently, which for work without an end of its own is no failure."""
    task = asyncio.ensure_future(work)
    terminated = asyncio.Event()

    def terminate() -> None:
        terminated.set()
        task.cancel()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
    try:
        return await task or 0
    except asyncio.CancelledError:
        if terminated.is_set():
            return code
        raise


async def _up(settings: ClusterSettings) -> None:
    async with cluster(settings, print) as running:
        for child in running.children.values():
            print(f"{child.name:<12} {child.url}")
        print(
            f"Open {running.url}/ in a browser. Logs are in {running.data / 'logs'}. Ctrl-C stops all of it.",
            flush=True,
        )
        await asyncio.Event().wait()
