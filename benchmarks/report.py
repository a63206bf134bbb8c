"""The tables and the plot of `transfer.py`. Values in, text out."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"
GOALS = {"nginx + curl": 1.3, "nginx + aria2c, 4": 2.0, "nginx + aria2c, 16": 2.0, "rsync": 3.0, "iperf3": 0.8}
"""How many times as fast as each we mean to be, on loopback."""
BEGIN, END = "<!-- made by benchmarks/transfer.py: begin -->", "<!-- made by benchmarks/transfer.py: end -->"
HEAD = ("", "GB/s", "least-most", "ours is", "goal", "", "CPU s/GB", "peak memory, sender + receiver")


@dataclass(frozen=True)
class Row:
    """What one contender did in one case: bytes per second (median, least, most), CPU seconds per GB, bytes."""

    name: str
    medium: str
    case: str
    what: str
    rate: float
    least: float
    most: float
    cpu: float
    memory_there: int
    memory_here: int


def _cells(row: Row, ours: Row) -> tuple[str, ...]:
    ratio, goal = ours.rate / row.rate, GOALS.get(row.name)
    return (
        row.name, f"{row.rate / 1e9:.2f}", f"{row.least / 1e9:.2f}-{row.most / 1e9:.2f}",
        "" if row is ours else f"{ratio:.2f} x", f"≥ {goal}" if goal else "",
        ("met" if ratio >= goal else "MISSED") if goal else "", f"{row.cpu:.2f}",
        f"{row.memory_there / 1e6:.0f} + {row.memory_here / 1e6:.0f} MB",
    )  # fmt: skip


def _lines(rows: list[Row]) -> list[tuple[str, ...]]:
    ours = next(row for row in rows if row.name == "stagecast")
    return [HEAD, *(_cells(row, ours) for row in rows)]


def table(rows: list[Row]) -> str:
    """Return one case as columns for a terminal."""
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, (20, 6, 10, 8, 6, 7, 9, 0), strict=True))
             for line in _lines(rows)]  # fmt: skip
    return "\n".join([f"\n{rows[0].medium}, {rows[0].what}", *lines])


def _markdown(rows: list[Row]) -> str:
    lines = _lines(rows)
    marks = [lines[0], tuple("---" for _ in HEAD), *lines[1:]]
    body = "\n".join(f"| {' | '.join(cells)} |" for cells in marks)
    return f"**{rows[0].medium}, {rows[0].what}**\n\n{body}\n"


def groups(rows: list[Row]) -> list[list[Row]]:
    """Return the rows of each case on each medium, in the order in which they came."""
    return [list(found) for _, found in groupby(rows, key=lambda row: (row.medium, row.case))]


def write(rows: list[Row], machine: str, rounds: int, notes: list[str]) -> None:
    """Put the tables between their marks in docs/performance.md, and the plot beside it."""
    page = DOCS / "performance.md"
    before, _, rest = page.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    said = f"`python benchmarks/transfer.py --write`: medians of {rounds}; {machine}.\n"
    remarks = "".join(f"\n{line}\n" for line in notes)
    tables = "\n".join(_markdown(each) for each in groups(rows))
    page.write_text(f"{before}{BEGIN}\n{said}{remarks}\n{tables}{END}{after}")
    (DOCS / "images" / "transfer.svg").write_text(plot(rows))


_COLOURS = {"stagecast": "#0b7285"}


def plot(rows: list[Row]) -> str:
    """Return bars of the rates, one group per case and medium, as an SVG picture."""
    bar, gap, left, width = 15, 34, 170, 560
    most, y, parts = max(row.rate for row in rows), 30, []
    for found in groups(rows):
        parts.append(f'<text x="10" y="{y}" font-weight="bold">{found[0].medium}, {found[0].what}</text>')
        y += 8
        for row in found:
            long = max(1.0, row.rate / most * width)
            colour = _COLOURS.get(row.name, "#adb5bd")
            parts.append(f'<text x="{left - 8}" y="{y + 11}" text-anchor="end">{row.name}</text>')
            parts.append(f'<rect x="{left}" y="{y}" width="{long:.0f}" height="{bar - 3}" fill="{colour}"/>')
            parts.append(f'<text x="{left + long + 6:.0f}" y="{y + 11}">{row.rate / 1e9:.2f} GB/s</text>')
            y += bar
        y += gap - 8
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 90} {y - 10}" '
        'font-family="sans-serif" font-size="11">\n<rect width="100%" height="100%" fill="#ffffff"/>'
    )
    return "\n".join([head, *parts, "</svg>\n"])
