"""What the demo shows while it runs and when it is done: a live view on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Final, NamedTuple, Self

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from stagecast import display
from stagecast.child import Child
from stagecast.demo_checks import BALANCER, Judge
from stagecast.quantities import format_size
from stagecast.rows import Row

_LINE_INTERVAL: Final = 1.0
_COLUMN_WIDTH: Final = 38


class Check(NamedTuple):
    """One thing that had to come true, and what was measured."""

    name: str
    figure: str
    held: bool


class View:
    """``with View() as view``: says each step, and draws each replica's picture beside the others."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or display.console()
        self._began = time.monotonic()
        self._live: Live | None = None
        self._line_at = 0.0
        self._step = ""

    def __enter__(self) -> Self:
        """Begin to draw."""
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=12, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the lines that were said, and nothing else."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, text: str) -> None:
        """Say what happens now."""
        self._step = text
        self._console.print(f"{time.monotonic() - self._began:6.1f} s  {text}")

    def show(self, judge: Judge, replicas: Sequence[Child]) -> None:
        """Show what each replica answered last, and what the balancer's polls have seen."""
        if self._live is not None:
            self._live.update(self._picture(judge, replicas))
        elif time.monotonic() - self._line_at >= _LINE_INTERVAL and judge.rows.get(BALANCER):
            self._line_at = time.monotonic()
            rows = "; ".join(f"{row.id} {row.progress} %" for row in judge.rows[BALANCER])
            self._console.print(f"{time.monotonic() - self._began:6.1f} s    {rows}; {judge.flickers} flickers")

    def _picture(self, judge: Judge, replicas: Sequence[Child]) -> RenderableType:
        columns = [_column(replica, judge.rows.get(replica.name, [])) for replica in replicas]
        flickers = judge.flickers
        seen = Text(f"through the balancer: {judge.polls():,} polls, {flickers} flickers")
        seen.stylize("red" if flickers else "green")
        return Group(Text(self._step, style="bold"), Columns(columns), seen)


def summary(checks: Sequence[Check]) -> RenderableType:
    """Draw what was measured, and which of it held."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for check in checks:
        mark = Text("✓", style="green") if check.held else Text("✗", style="red")
        table.add_row(mark, check.name, check.figure)
    return table


def _column(replica: Child, rows: Sequence[Row]) -> RenderableType:
    if not replica.is_running:
        return Panel(Text("killed", style="red"), title=replica.name, width=_COLUMN_WIDTH, border_style="red")
    parts: list[RenderableType] = []
    for row in rows:
        rate = f"{format_size(row.bytes_per_second)}/s" if isinstance(row.bytes_per_second, float) else row.phase
        parts += [
            Text(row.id, overflow="ellipsis", no_wrap=True),
            ProgressBar(total=100, completed=row.progress, width=_COLUMN_WIDTH - 4),
            Text(f"{row.progress} %  {format_size(row.current_bytes)}  {rate}", style="dim"),
        ]
    return Panel(
        Group(*parts) if parts else Text("nothing under way", style="dim"), title=replica.name, width=_COLUMN_WIDTH
    )
