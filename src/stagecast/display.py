"""What the command line draws: tables and bars. Nothing else draws, and this decides nothing."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterable, Iterable, Sequence
from typing import Final

import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from stagecast import answers
from stagecast.messages import MODEL_KINDS
from stagecast.quantities import format_duration, format_size
from stagecast.rows import Row

_PIPE_WIDTH: Final = 200
"""Columns where the output is no terminal: nothing is to be cut there."""

_STYLES: Final = {
    "queued": "dim",
    "running": "cyan",
    "paused": "yellow",
    "stalled": "yellow",
    "succeeded": "green",
    "failed": "red",
    "cancelled": "dim",
}


def console() -> Console:
    """Return the console of standard output."""
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)


def operations(rows: Sequence[Row]) -> RenderableType:
    """Draw operations, one a line, a failed one with its cause beneath."""
    if not rows:
        return Text("nothing is under way", style="dim")
    table = _table("operation", "state", "progress", "bytes", "rate", "left", "message")
    for row in rows:
        state = Text(_standing(row), style=_STYLES[row.state])
        message = row.error if isinstance(row.error, str) else row.message
        table.add_row(row.id, state, f"{row.progress} %", _bytes(row), _rate(row), _left(row), message)
    return table


def history(rows: Sequence[Row]) -> RenderableType:
    """Draw ended operations with their times and outcomes."""
    table = _table("ended", "operation", "outcome", "bytes", "cause")
    for row in rows:
        cause = row.error if isinstance(row.error, str) else ""
        table.add_row(row.updated_at, row.id, Text(row.state, style=_STYLES[row.state]), _bytes(row), cause)
    return table


def models(found: Sequence[answers.Model]) -> RenderableType:
    """Draw models with who holds and who serves them."""
    table = _table("model", "size", "files", "held by", "served by")
    for model in sorted(found, key=lambda each: each.name):
        holders = [holder.node if holder.complete else f"{holder.node} (in part)" for holder in model.holders]
        instances = [f"{each.node} ({each.state})" for each in model.instances]
        table.add_row(
            model.name, format_size(model.bytes), str(model.files), ", ".join(holders), ", ".join(instances) or "-"
        )
    return table


def nodes(found: Sequence[answers.Node]) -> RenderableType:
    """Draw the processes of the cluster."""
    table = _table("node", "kind", "state", "disk free", "address", "labels")
    for node in found:
        state = "dead" if not node.alive else "draining" if node.draining else "alive"
        labels = " ".join(f"{key}={value}" for key, value in node.labels.items())
        free = f"{format_size(node.disk_free)} of {format_size(node.disk_total)}"
        table.add_row(node.name, node.kind, state, free, node.address, labels)
    return table


def plan(found: answers.Plan) -> RenderableType:
    """Draw what staging would do."""
    table = _table("node", "there already", "to move", "disk free", "fits", "about")
    for node in found.nodes:
        about = format_duration(node.seconds) if node.seconds is not None else "-"
        sizes = (format_size(size) for size in (node.present, node.to_move, node.disk_free))
        table.add_row(node.node, *sizes, "yes" if node.fits else Text("no", style="red"), about)
    return Group(Text(f"{found.model}: {format_size(found.bytes)}"), table)


def removed(found: Sequence[answers.RemovedFiles]) -> RenderableType:
    """Draw what was freed where."""
    table = _table("node", "freed")
    for each in found:
        table.add_row(each.node, format_size(each.bytes))
    return table


def bars(rows: Iterable[Row]) -> RenderableType:
    """Draw operations with a bar each."""
    table = Table.grid(padding=(0, 2))
    for row in rows:
        style = _STYLES[row.state]
        bar = ProgressBar(total=100, completed=row.progress, width=24, complete_style=style, finished_style=style)
        state = Text(_standing(row), style=style)
        table.add_row(row.id, bar, f"{row.progress} %", state, _bytes(row), _rate(row), _left(row))
    return table


async def follow(words: AsyncIterable[Row], start: Iterable[Row]) -> list[Row]:
    """Draw operations as their words come in, and return the last of each."""
    held = {row.job_id: row for row in start}
    screen = console()
    if not screen.is_terminal:
        async for row in words:
            if _step(row) != _step(held.get(row.job_id)):
                screen.print(f"{row.id}: {row.state} ({row.phase}), {row.progress} %")
            held[row.job_id] = row
        return list(held.values())
    with Live(bars(held.values()), console=screen, refresh_per_second=10) as live:
        async for row in words:
            held[row.job_id] = row
            live.update(bars(held.values()))
    return list(held.values())


def _step(row: Row | None) -> tuple[str, str] | None:
    return (row.state, row.phase) if row else None


def _table(*columns: str) -> Table:
    return Table(*columns, box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))


def _bytes(row: Row) -> str:
    return f"{_count(row, row.current_bytes)} of {_count(row, row.total_bytes)}" if row.total_bytes else ""


def _rate(row: Row) -> str:
    return f"{_count(row, row.bytes_per_second)}/s" if row.bytes_per_second is not msgspec.UNSET else ""


def _standing(row: Row) -> str:
    """Return the phase of what runs; other programs' work has none to speak of."""
    return row.phase if row.state == "running" and row.task_type in MODEL_KINDS else row.state


def _count(row: Row, number: float) -> str:
    """Return a count in the units of its kind; those of other programs have no name here."""
    return format_size(number) if row.task_type in MODEL_KINDS else f"{number:,.0f}"


def _left(row: Row) -> str:
    return format_duration(row.eta_seconds) if row.eta_seconds is not msgspec.UNSET else ""
