"""The commands that talk to a running cluster: each returns the exit code."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Annotated, Final, Literal

from cyclopts import Parameter
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from stagecast import answers, disk_tables, display, seen
from stagecast.client import Client, read
from stagecast.following import follow as follow_operations
from stagecast.messages import Outcome, Verb
from stagecast.options import Follow, Id, Json, ModelName, NodeName, Reach, argument, rate_option
from stagecast.rows import Row
from stagecast.session import Answer

_PATIENCE: Final = 3.0
"""Seconds: a person at a terminal waits less gladly than a program."""
_LONG_POLL: Final = 30.0
_DEGRADED: Final = "degraded: the replica that answered cannot hear the cluster and shows what it knew"

VERBS: Final[dict[Verb, str]] = {
    "pause": "Stop an operation until it is resumed.",
    "resume": "Go on with a paused operation.",
    "retry": "Begin a failed or cancelled operation again; what a failed one had verified does not move twice.",
    "dismiss": "Take a failed operation out of the list.",
}


class UsageError(Exception):
    """Options that do not go together. Its text says which would."""


async def stage(
    model: ModelName,
    /,
    *,
    to: Annotated[tuple[str, ...], Parameter(help="A worker; may be given several times.")] = (),
    all: Annotated[bool, Parameter(help="Every worker.")] = False,  # noqa: A002  # the option is called so
    priority: Annotated[
        Literal["low", "normal", "high"], Parameter(help="What goes first where not all can; low for what can wait.")
    ] = "normal",
    dry_run: Annotated[bool, Parameter(help="Only say what would move; exit 1 if it does not fit.")] = False,
    wait: Annotated[bool, Parameter(help="Where a disk has no room now, wait for it, instead of failing.")] = False,
    follow: Follow = False,
    reach: Reach = Reach(),  # noqa: B008  # frozen
) -> int:
    """Bring a model onto workers."""
    if bool(to) == all:
        raise UsageError("say where to, either with --to NODE, as often as needed, or with --all")
    async with connected(reach) as client:
        if dry_run:
            plan = await client.plan(model, to)
            display.console().print(disk_tables.plan(plan))
            return 0 if all_fit(plan) else 1
        begun = await client.stage(model, to, wait_for_space=wait, priority=priority)
        return await _begun(client, begun, follow=follow)


async def verify(
    model: ModelName,
    /,
    *,
    node: Annotated[tuple[str, ...], Parameter(help="Only there; may be given several times.")] = (),
    follow: Follow = False,
    reach: Reach = Reach(),  # noqa: B008  # frozen
) -> int:
    """Read a model's copies anew, wherever they are, and repair damaged pieces from the other holders."""
    async with connected(reach) as client:
        return await _begun(client, await client.verify(model, node), follow=follow)


def all_fit(plan: answers.Plan) -> bool:
    """Tell whether every node of the plan has room."""
    return all(node.fits for node in plan.nodes)


async def ops(
    *,
    watch: Annotated[bool, Parameter(help="Show every change, until Ctrl-C.")] = False,
    json: Json = False,
    reach: Reach = Reach(),  # noqa: B008  # frozen
) -> int:
    """Show what is under way."""
    async with connected(reach) as client:
        answer = await client.operations_as_sent()
        if json:
            await _print_json(client, answer, watch=watch)
        elif watch:
            await _watch(client, answer)
        else:
            listed = _listed(answer)
            _show(listed.operations)
            if listed.degraded:
                print(_DEGRADED, file=sys.stderr)
    return 0


def commanding(verb: Verb, does: str) -> Callable[..., Awaitable[int]]:
    """Return the command that gives ``verb`` to an operation."""

    async def command(operation: Id, /, *, reach: Reach = Reach()) -> int:  # noqa: B008  # frozen
        async with connected(reach) as client:
            _show([await client.command(operation, verb)])
        return 0

    command.__doc__ = does
    return command


async def cancel(
    operation: Id,
    /,
    *,
    keep: Annotated[
        bool, Parameter(help="Leave what has arrived on the disk; the next staging goes on with it.")
    ] = False,
    reach: Reach = Reach(),  # noqa: B008  # frozen
) -> int:
    """End an operation; what had arrived of a model that is not whole is removed, unless it is to be kept."""
    async with connected(reach) as client:
        _show([await client.command(operation, "cancel", keep_partial=keep)])
    return 0


async def history(
    *,
    kind: Annotated[str, Parameter(help="Only this kind: staging, installation, loading, deletion.")] = "",
    model: Annotated[str, Parameter(help="Only what was done with this model.")] = "",
    node: Annotated[str, Parameter(help="Only what was done on this worker.")] = "",
    state: Annotated[Outcome | None, Parameter(help="Only what ended so.")] = None,
    job: Annotated[str, Parameter(help="Only the attempts of this job.")] = "",
    limit: Annotated[int, Parameter(help="At most so many.")] = 50,
    before: Annotated[str, Parameter(help="Only what ended before this time, RFC 3339, or a page's next.")] = "",
    json: Json = False,
    reach: Reach = Reach(),  # noqa: B008  # frozen
) -> int:
    """Show what has ended, newest first, an attempt a line."""
    sought = {"kind": kind, "model": model, "node": node, "state": state or "", "job": job}
    async with connected(reach) as client:
        answer = await client.history_as_sent(limit=limit, before=before, **sought)
    if json:
        _print_body(answer.body)
        return 0
    page, screen = _listed(answer), display.console()
    named = ", ".join(f"{name} {value}" for name, value in sought.items() if value)
    screen.print(display.history(page.operations, screen.width, named))
    if page.next:
        print(f"There is more: --before {page.next}", file=sys.stderr)
    return 0


async def install(
    ref: Annotated[str, argument("A gallery entry's name, a URL, or a path.")],
    /,
    *,
    gallery: Annotated[str, Parameter(help="URL or path of the gallery's index.")] = "",
    name: Annotated[
        str, Parameter(help="What to call the model. [default: what it is called there]", show_env_var=False)
    ] = "",
    sha256: Annotated[str, Parameter(help="What the file's SHA-256 must be, where REF is one file.")] = "",
    wait: Annotated[bool, Parameter(help="Where the disk has no room now, wait for it, instead of failing.")] = False,
    follow: Follow = False,
    reach: Reach = Reach(),  # noqa: B008  # frozen
) -> int:
    """Install a model from upstream onto the replicas."""
    async with connected(reach) as client:
        row = await client.install(
            _absolute(ref), gallery=_absolute(gallery), name=name, sha256=sha256, wait_for_space=wait
        )
        return await _begun(client, [row], follow=follow)


async def models(
    *,
    json: Json = False,
    reach: Reach = Reach(),  # noqa: B008  # frozen
) -> int:
    """Show the models, and who holds and serves them."""
    async with connected(reach) as client:
        answer = await client.models_as_sent()
    if json:
        _print_body(answer.body)
    else:
        display.console().print(display.models(read(answer, answers.Models).models))
    return 0


async def remove(
    model: ModelName,
    /,
    *,
    node: Annotated[str, Parameter(help="Only there. [default: everywhere]")] = "",
    reach: Reach = Reach(),  # noqa: B008  # frozen
) -> int:
    """Remove a model's files, and what was kept of some that never were all there; wait until they are gone."""
    async with connected(reach) as client:
        display.console().print(display.removed(await client.remove(model, node)))
    return 0


async def nodes(
    *,
    json: Json = False,
    reach: Reach = Reach(),  # noqa: B008  # frozen
) -> int:
    """Show the cluster's processes."""
    async with connected(reach) as client:
        answer = await client.nodes_as_sent()
    if json:
        _print_body(answer.body)
    else:
        display.console().print(display.nodes(read(answer, answers.Nodes).nodes))
    return 0


async def limits(
    *,
    cluster: Annotated[int | None, rate_option("What all nodes together move in a second at most; 0 for any.")] = None,
    node: Annotated[str, Parameter(help="The node that --rate and --at-once are for.")] = "",
    rate: Annotated[int | None, rate_option("What that node moves in a second at most; 0 for any.")] = None,
    at_once: Annotated[
        int | None, Parameter(help="How many models it stages at a time; 0 for what it was started with.")
    ] = None,
    reach: Reach = Reach(),  # noqa: B008  # frozen
) -> int:
    """Show the limits, or change them; transfers that run go by them within a second."""
    if bool(node) != (rate is not None or at_once is not None):
        raise UsageError("--node goes with --rate or --at-once, and these go with --node")
    async with connected(reach) as client:
        if cluster is None and not node:
            display.console().print(display.limits(await client.limits()))
        else:
            changed = await client.limit(rate=cluster, node=node, node_rate=rate, at_once=at_once)
            display.console().print(display.limits(changed))
    return 0


async def drain(node: NodeName, /, *, reach: Reach = Reach()) -> int:  # noqa: B008  # frozen
    """Take a worker out of service: nothing new goes there."""
    async with connected(reach) as client:
        await client.drain(node)
    return 0


async def undrain(node: NodeName, /, *, reach: Reach = Reach()) -> int:  # noqa: B008  # frozen
    """Take a drained worker back into service."""
    async with connected(reach) as client:
        await client.resume(node)
    return 0


async def load(
    model: ModelName,
    /,
    *,
    node: Annotated[str, Parameter(help="On this worker. [default: where it fits best]")] = "",
    reach: Reach = Reach(),  # noqa: B008  # frozen
) -> int:
    """Ask for a model to be loaded, without waiting for it."""
    async with connected(reach) as client:
        await client.load(model, node)
    return 0


@asynccontextmanager
async def connected(reach: Reach) -> AsyncGenerator[Client, None]:
    """Yield a client that has seen what this user's earlier commands have seen."""
    known = seen.recall(reach.url)
    async with Client(reach.url, api_key=reach.api_key, patience=_PATIENCE, revision=known) as client:
        try:
            yield client
        finally:
            seen.remember(reach.url, client.revision)


async def _begun(client: Client, rows: Sequence[Row], *, follow: bool) -> int:
    if not follow:
        _show(rows)
        return 0
    async with aclosing(follow_operations(client, rows)) as words:
        ended = await display.follow(words, rows)
    failed = [row for row in ended if row.state != "succeeded"]
    for row in failed:
        print(f"error: {row.id} {row.state}: {row.error or row.message}", file=sys.stderr)
    return 1 if failed else 0


async def _print_json(client: Client, answer: Answer, *, watch: bool) -> None:
    while True:
        _print_body(answer.body)
        if not watch:
            return
        answer = await _change(client, answer)


def _print_body(body: bytes) -> None:
    """Print what the API sent, byte for byte, as a line."""
    sys.stdout.buffer.write(body.removesuffix(b"\n") + b"\n")
    sys.stdout.buffer.flush()


def _show(rows: Sequence[Row]) -> None:
    screen = display.console()
    screen.print(display.operations(rows, screen.width))


async def _watch(client: Client, answer: Answer) -> None:
    screen = display.console()

    def drawn(answer: Answer) -> RenderableType:
        listed = _listed(answer)
        table = display.operations(listed.operations, screen.width)
        return Group(table, Text(_DEGRADED, "yellow")) if listed.degraded else table

    with Live(drawn(answer), console=screen, auto_refresh=False) as live:
        while True:
            answer = await _change(client, answer)
            live.update(drawn(answer), refresh=True)


async def _change(client: Client, answer: Answer) -> Answer:
    while True:
        after = _listed(answer).revision
        later = await client.operations_as_sent(after=after, wait=_LONG_POLL)
        if later.body != answer.body:
            return later


def _listed(answer: Answer) -> answers.Operations:
    return read(answer, answers.Operations)


def _absolute(place: str) -> str:
    """Return a path of this machine as the replica, which runs in another folder, can open it."""
    path = Path(place).expanduser()
    return str(path.absolute()) if place.startswith((".", "/", "~")) and path.exists() else place
