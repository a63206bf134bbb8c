"""The commands that look after disks: each returns the exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

from cyclopts import Parameter

from stagecast import disk_tables, display
from stagecast.options import ModelName, Reach, Size
from stagecast.remote import connected

Nodes = Annotated[tuple[str, ...], Parameter(name="--node", help="Only there; may be given several times.")]


async def gc(
    *,
    dry_run: Annotated[bool, Parameter(help="Only say what would go.")] = False,
    free: Annotated[
        Size, Parameter(help="Evict models, the longest unused first, until so much is free on each disk.")
    ] = 0,
    nodes: Nodes = (),
    reach: Reach = Reach(),  # noqa: B008  # frozen
) -> int:
    """Free what work has left behind that nobody goes on with, and models where a budget or --free wants that.

    The last copy of a model never goes, and from a replica's folder no model, unless --node names it.
    """
    async with connected(reach) as client:
        found = await client.collect(nodes, free=free, dry_run=dry_run)
    display.console().print(disk_tables.collected(found, is_plan=dry_run))
    for node, why in found.failed.items():
        print(f"error: {node}: {why}", file=sys.stderr)
    return 1 if found.failed or any(node.missing for node in found.nodes) else 0


async def pin(
    model: ModelName,
    /,
    *,
    nodes: Nodes = (),
    reach: Reach = Reach(),  # noqa: B008  # frozen
) -> int:
    """Let a model stay on the nodes that hold it, whatever room is wanted."""
    return await _mark(model, nodes, reach, is_pinned=True)


async def unpin(
    model: ModelName,
    /,
    *,
    nodes: Nodes = (),
    reach: Reach = Reach(),  # noqa: B008  # frozen
) -> int:
    """Let a pinned model go again where room is wanted."""
    return await _mark(model, nodes, reach, is_pinned=False)


async def _mark(model: str, nodes: Sequence[str], reach: Reach, *, is_pinned: bool) -> int:
    async with connected(reach) as client:
        pinned = await client.pin(model, nodes, is_pinned=is_pinned)
    display.console().print(disk_tables.pins(pinned))
    return 0
