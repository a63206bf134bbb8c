"""What the command line draws: tables and bars. Nothing else draws, and this decides nothing."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Final, NamedTuple

import msgspec
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.style import Style
from rich.table import Table
from rich.text import Text

from stagecast import answers
from stagecast.messages import KEPT, MODEL_KINDS, State
from stagecast.operations import ENDED
from stagecast.quantities import format_duration, format_size, parse_time
from stagecast.rows import Row

_PIPE_WIDTH: Final = 200
"""Columns where the output is no terminal: nothing is to be cut there."""

EVERY: Final = 10.0
"""Seconds after which a program that reads the output is told again how what goes on stands."""

_OPERATIONS: Final = ("operation", "state", "progress", "bytes", "rate", "left")
_MESSAGE: Final = 20
"""Columns that a message needs beside the rest of its line."""
_HISTORY: Final = ("when", "what", "node", "outcome", "took", "moved", "rate", "cause")

_STYLES: Final[dict[State, str]] = {
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


def operations(rows: Sequence[Row], width: int = _PIPE_WIDTH) -> RenderableType:
    """Draw operations, one a line, or two where ``width`` has no room for that: an id is never cut."""
    if not rows:
        return Text("nothing is under way", style="dim")
    drawn = [_drawn(row) for row in _grouped(rows)]
    columns = [[head, *(row.cells[place] for row in drawn)] for place, head in enumerate(_OPERATIONS)]
    if sum(max(map(cell_len, column)) + 2 for column in columns) + _MESSAGE > width:
        return Group(*(line for row in drawn for line in _folded(row)))
    table = table_of(*_OPERATIONS, "message")
    for column in table.columns[:-1]:
        column.no_wrap = True
    table.columns[-1].overflow = "fold"
    for row in drawn:
        name, state, *rest = row.cells
        table.add_row(Text(name, row.name_style), Text(state, row.style), *rest, row.message)
    return table


class Drawn(NamedTuple):
    """What a line says of an operation, or of a call: what `_OPERATIONS` heads, and a message."""

    cells: tuple[str, ...]
    message: str = ""
    style: str = ""
    name_style: str = ""


def _drawn(row: Row | Heading) -> Drawn:
    if isinstance(row, Heading):
        return Drawn((row.text, "", f"{row.percentage:.0f} %", row.amount, "", ""), name_style="bold")
    message = row.error if isinstance(row.error, str) else row.message
    name = f"  {row.id}" if _is_part(row) else row.id
    cells = (name, _standing(row), f"{row.progress} %", _bytes(row), _rate(row), _left(row))
    return Drawn(cells, message, _STYLES[row.state])


def _folded(row: Drawn) -> list[RenderableType]:
    """Return a line with the operation's name alone, broken only where it is longer than the screen, and the rest."""
    name, state, *rest = row.cells
    facts = [fact for fact in rest if fact]
    how = Text.assemble((state, row.style), " " if state else "", ", ".join(facts))
    lines: list[RenderableType] = [Text(name, row.name_style, overflow="fold"), Padding(how, (0, 0, 0, 4))]
    return [*lines, Padding(Text(row.message), (0, 0, 0, 4))] if row.message else lines


def history(rows: Sequence[Row], width: int = _PIPE_WIDTH, sought: str = "") -> RenderableType:
    """Draw ended attempts, one a line, or two where ``width`` has no room for that; beneath, what there is to say.

    ``sought`` names what was asked for, should there be none of it.
    """
    if not rows:
        of = f" of {sought}; without these you see all" if sought else ""
        return Text(f"nothing has ended that is still known{of}", style="dim")
    cells = [_cells(row) for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(_HISTORY, *cells, strict=True)]
    is_wide = sum(widths) + 2 * len(widths) <= width
    drawn: list[RenderableType] = [_line(_HISTORY, widths, Style(bold=True))] if is_wide else []
    for row, cell in zip(rows, cells, strict=True):
        style = Style.parse(_STYLES[row.state])
        drawn += [_line(cell, widths, style)] if is_wide else _two_lines(cell, style)
        if isinstance(row.error, str) or _is_left(row):
            said = row.error if isinstance(row.error, str) else row.message
            drawn.append(Padding(Text(said, style), (0, 0, 0, 4), expand=False))
    return Group(*drawn)


def _is_left(row: Row) -> bool:
    """Tell whether a collection's deletion left the copy where it is; the message says why."""
    return row.is_deletion and KEPT in row.message


def _cells(row: Row) -> tuple[str, ...]:
    """Return what `_HISTORY` heads."""
    is_verification = isinstance(row.verification, str)
    what = f"{'verification' if is_verification else row.task_type} {row.name}"
    cause = row.begun_by if isinstance(row.begun_by, str) else row.cause
    return (
        _when(row), what, row.node_name or "-", _outcome(row), _took(row), _moved(row), _mean(row),
        cause if isinstance(cause, str) else "",
    )  # fmt: skip


def _line(cells: Sequence[str], widths: Sequence[int], style: Style) -> Text:
    """Return an aligned line, in which ``style`` is the outcome's."""
    line = Text(no_wrap=True)
    for number, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        is_meant = number == _HISTORY.index("outcome") or cells is _HISTORY
        line.append(f"{cell}{' ' * (width - cell_len(cell) + 2)}", style if is_meant else None)
    line.rstrip()
    return line


def _two_lines(cells: Sequence[str], style: Style) -> list[RenderableType]:
    when, what, node, outcome, took, moved, mean, cause = cells
    place = f" on {node}" if node != "-" else ""
    facts = [f" in {took}" if took else "", f", {moved}" if moved else "", f" at {mean}" if mean else ""]
    how = Text.assemble((outcome, style), *facts, f" ({cause})" if cause else "")
    return [Text(f"{when}  {what}{place}"), Padding(how, (0, 0, 0, 4), expand=False)]


def models(found: Sequence[answers.Model]) -> RenderableType:
    """Draw models with who holds and who serves them."""
    table = table_of("model", "size", "files", "held by", "served by")
    for model in sorted(found, key=lambda each: each.name):
        holders = [holder.node if holder.complete else f"{holder.node} (in part)" for holder in model.holders]
        instances = [f"{each.node} ({each.state})" for each in model.instances]
        table.add_row(
            model.name, format_size(model.bytes), str(model.files), ", ".join(holders), ", ".join(instances) or "-"
        )
    return table


def nodes(found: Sequence[answers.Node]) -> RenderableType:
    """Draw the processes of the cluster. An address is never cut: what has no room folds."""
    table = table_of("node", "kind", "state", "disk free", "pinned", "address", "labels")
    for column in table.columns:
        column.overflow = "fold"
    for place in (0, 5):
        table.columns[place].no_wrap = True
    for node in found:
        state = "dead" if not node.alive else "draining" if node.draining else "alive"
        labels = " ".join(f"{key}={value}" for key, value in node.labels.items())
        free = f"{format_size(node.disk_free)} of {format_size(node.disk_total)}"
        free += f", {format_size(node.disk_reserved)} reserved" if node.disk_reserved else ""
        free += f", {format_size(node.disk_orphaned)} orphaned" if node.disk_orphaned else ""
        table.add_row(node.name, node.kind, state, free, ", ".join(node.pinned) or "-", node.address, labels)
    return table


def limits(found: answers.Limits) -> RenderableType:
    """Draw the cluster's limit, and what each node may do."""
    whole = f"cluster: {format_size(found.rate)}/s" if found.rate else "cluster: no limit"
    if not found.nodes:
        return Text(whole)
    table = table_of("node", "limit", "stagings at once", "of the cluster's")
    for node in found.nodes:
        rate = f"{format_size(node.rate)}/s" if node.rate else "-"
        share = f"{format_size(node.share)}/s" if node.share else "no limit"
        table.add_row(node.node, rate, str(node.stagings_at_once or "-"), share if node.moving else "-")
    return Group(Text(whole), table)


def removed(found: Sequence[answers.RemovedFiles]) -> RenderableType:
    """Draw what was freed where."""
    table = table_of("node", "freed")
    for each in found:
        table.add_row(each.node, format_size(each.bytes))
    return table


def bars(rows: Iterable[Row]) -> RenderableType:
    """Draw operations with a bar each."""
    table = Table.grid(padding=(0, 2))
    table.add_column(overflow="fold")
    for row in rows:
        style = _STYLES[row.state]
        bar = ProgressBar(total=100, completed=row.progress, width=24, complete_style=style, finished_style=style)
        state = Text(_standing(row), style=style)
        table.add_row(row.id, bar, f"{row.progress} %", state, _bytes(row), _rate(row), _left(row))
    return table


class Heading(NamedTuple):
    """The line above the operations of one call."""

    text: str
    percentage: float
    amount: str


def _grouped(rows: Sequence[Row]) -> Iterator[Row | Heading]:
    """Yield the rows in their order, but those of one call together, below a line that says how all of it stands."""
    calls: dict[object, list[Row]] = {}
    for row in rows:
        calls.setdefault(row.call_id if _is_part(row) else row.id, []).append(row)
    for parts in calls.values():
        if _is_part(parts[0]):
            yield _heading(parts[0])
        yield from parts


def _heading(row: Row) -> Heading:
    nodes = row.nodes if row.nodes is not msgspec.UNSET else []
    sent, total = sum(node.bytes_sent for node in nodes), sum(node.total_bytes for node in nodes)
    counts = Counter(node.status for node in nodes)
    states = ", ".join(f"{counts[state]} {state}" for state in _STYLES if counts[state])
    amount = f"{format_size(sent)} of {format_size(total)}" if total else ""
    return Heading(f"{row.name} on {len(nodes)} nodes: {states}", 100 * sent / total if total else 0.0, amount)


def _is_part(row: Row) -> bool:
    return row.nodes is not msgspec.UNSET


async def follow(words: AsyncIterable[Row], start: Iterable[Row], every: float = EVERY) -> list[Row]:
    """Draw operations as their words come in, and return the last of each.

    Where that is no terminal a line is printed for each step, and for what goes on each ``every`` seconds.
    """
    held = {row.job_id: row for row in start}
    screen = console()
    if not screen.is_terminal:
        async with asyncio.TaskGroup() as group:
            reminding = group.create_task(_remind(screen, held, every))
            await _follow_in_lines(screen, words, held)
            reminding.cancel()
        return list(held.values())
    with Live(bars(held.values()), console=screen, refresh_per_second=10) as live:
        async for row in words:
            held[row.job_id] = row
            live.update(bars(held.values()))
    return list(held.values())


async def _follow_in_lines(screen: Console, words: AsyncIterable[Row], held: dict[str, Row]) -> None:
    for row in held.values():
        if row.state in ENDED:  # of what was there already no word will come
            _say(screen, row)
    async for row in words:
        if _step(row) != _step(held.get(row.job_id)):
            _say(screen, row)
        held[row.job_id] = row


async def _remind(screen: Console, held: dict[str, Row], every: float) -> None:
    while True:
        await asyncio.sleep(every)
        for row in held.values():
            if row.state not in ENDED:
                _say(screen, row)


def _say(screen: Console, row: Row) -> None:
    why = f"; {row.message}" if row.state == "stalled" else ""
    screen.print(f"{row.id}: {_word(row)}{why}")


def _word(row: Row) -> str:
    """Return where an operation stands; of a success there is no more to say, but what a verification found."""
    if row.state != "succeeded":
        return f"{row.state} ({row.phase}), {row.progress} %"
    return f"verified, {row.verification}" if isinstance(row.verification, str) and row.verification else row.state


def _step(row: Row | None) -> tuple[str, str, int] | None:
    """Return what a line is worth when it changes: the state, the phase, each tenth of the way."""
    return (row.state, row.phase, row.progress // 10) if row else None


def table_of(*columns: str) -> Table:
    """Return a table without lines, one of whose rows is one thing."""
    return Table(*columns, box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))


def _bytes(row: Row) -> str:
    return f"{_count(row, row.current_bytes)} of {_count(row, row.total_bytes)}" if row.total_bytes else ""


def _rate(row: Row) -> str:
    return f"{_count(row, row.bytes_per_second)}/s" if row.bytes_per_second is not msgspec.UNSET else ""


def _standing(row: Row) -> str:
    """Return the phase of what runs, and of what has ended its end; other programs' work has no phase to speak of."""
    if row.state == "succeeded":
        return _word(row)
    return row.phase if row.state == "running" and row.task_type in MODEL_KINDS else row.state


def _count(row: Row, number: float) -> str:
    """Return a count in the units of its kind; those of other programs have no name here."""
    return format_size(number) if row.task_type in MODEL_KINDS else f"{number:,.0f}"


def _when(row: Row) -> str:
    """Return when it ended, by this machine's clock and calendar."""
    return date_of(parse_time(row.updated_at))


def date_of(epoch: float) -> str:
    """Return seconds since 1970 by this machine's clock and calendar, with its zone."""
    return datetime.fromtimestamp(epoch).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")  # local time is meant


def _outcome(row: Row) -> str:
    attempts = row.attempts if isinstance(row.attempts, list) else []
    state = _word(row) if row.state == "succeeded" else row.state
    return state + (f" (attempt {len(attempts)})" if len(attempts) > 1 else "")


def _took(row: Row) -> str:
    if not isinstance(row.duration_seconds, float):
        return ""
    return f"{row.duration_seconds:.1f} s" if row.duration_seconds < 10 else format_duration(row.duration_seconds)


def _moved(row: Row) -> str:
    if not isinstance(row.bytes_moved, int):
        return ""
    whole = row.bytes_moved >= row.total_bytes or isinstance(row.verification, str)
    return _count(row, row.bytes_moved) + ("" if whole else f" of {_count(row, row.total_bytes)}")


def _mean(row: Row) -> str:
    mean, spent = row.mean_bytes_per_second, row.time_spent
    if not isinstance(mean, float) or isinstance(row.verification, str):
        return ""
    most = max(spent, key=lambda on: spent[on]) if isinstance(spent, dict) and spent else ""
    why = f" ({most} {spent[most]:.0%})" if isinstance(spent, dict) and most else ""
    return f"{_count(row, mean)}/s{why}"


def _left(row: Row) -> str:
    return format_duration(row.eta_seconds) if row.eta_seconds is not msgspec.UNSET else ""
