"""What the command line draws of disks: what a staging would take of them, and what goes from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from stagecast import answers
from stagecast.display import date_of, table_of
from stagecast.quantities import format_duration, format_size


def plan(found: answers.Plan) -> RenderableType:
    """Draw what staging would do."""
    table = table_of("node", "there already", "to move", "from", "disk free", "reserved", "fits", "about")
    for node in found.nodes:
        about = format_duration(node.seconds) if node.seconds is not None else "-"
        present, to_move, free, reserved = map(
            format_size, (node.present, node.to_move, node.disk_free, node.disk_reserved)
        )
        reserved += f" + {format_size(node.disk_taken)} by nodes above" if node.disk_taken else ""
        present += f" ({format_size(node.to_copy)} to copy)" if node.to_copy else ""
        source = ", ".join(node.holders) if node.to_move else "-"
        fits = "yes" if node.fits else Text("no", style="red")
        table.add_row(node.node, present, to_move, source, free, reserved, fits, about)
    return Group(Text(f"{found.model}: {format_size(found.bytes)}"), table)


def collected(found: answers.Collected, *, is_plan: bool) -> RenderableType:
    """Draw what a collection frees, or has freed, a model or leftover a line, and why the others stay."""
    table = table_of("node", "what", "size", "used last", "would go" if is_plan else "gone")
    for node in found.nodes:
        for copy in (*node.evicted, *node.kept):
            gone = Text("yes", style="red") if copy in node.evicted else Text(copy.keep or "no need", style="dim")
            table.add_row(
                node.node, copy.model, format_size(copy.bytes), date_of(copy.used_at) if copy.used_at else "never", gone
            )
        for left in (*node.leftovers, *node.kept_leftovers):
            gone = Text("yes", style="red") if left in node.leftovers else Text(left.keep or "in use", style="dim")
            what = f"{left.kind} of {left.model}" if left.model else left.kind
            table.add_row(node.node, what, format_size(left.bytes), "", gone)
    freed = sum(node.bytes for node in found.nodes)
    lines = [Text(f"{format_size(freed)} ({freed:,} bytes) {'would be freed' if is_plan else 'freed'}")]
    lines += [
        Text(f"{node.node}: {format_size(node.missing)} more are wanted, and nothing else may go", style="yellow")
        for node in found.nodes
        if node.missing
    ]
    return Group(table, *lines)


def pins(found: Mapping[str, Sequence[str]]) -> RenderableType:
    """Draw the models that are to stay, by node."""
    table = table_of("node", "pinned")
    for node, models in found.items():
        table.add_row(node, ", ".join(models) or "-")
    return table
