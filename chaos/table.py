"""The table, and whether each goal was met. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from chaos.series import Series
from stagecast.quantities import format_size

LONGEST_STALL: Final = 10.0
LONGEST_TAKEOVER: Final = 10.0
LONGEST_AGREEMENT: Final = 2.0
LONGEST_STALE: Final = 2.0
"""Not a goal of the issue: three heartbeats of the log, after which a replica that hears none says `degraded`."""
_HEAD: Final = (
    "fault", "times", "flickers", "backward", "phantoms", "lost outcomes", "failed polls", "longest stale view",
    "to stalled", "to takeover or resume", "to agreement", "bytes moved twice", "verified twice",
)  # fmt: skip


def table(series: Sequence[Series]) -> str:
    """Return the table in Markdown."""
    rows = [_cells(each) for each in series]
    widths = [max(len(row[column]) for row in (_HEAD, *rows)) for column in range(len(_HEAD))]
    lines = [_line(_HEAD, widths), _line(["-" * width for width in widths], widths)]
    return "\n".join([*lines, *(_line(row, widths) for row in rows)])


def goals(series: Sequence[Series]) -> list[tuple[str, bool | None, str]]:
    """Return each goal, whether it was met, and where it was not.

    None: nothing was seen that misses it, but not everything was measured; then ``where`` says what was not.
    """
    return [
        _all_run(series),
        _goal("0 flickers on replicas that are reachable and not degraded", series, lambda each: each.count("flicker")),
        _goal("0 steps backward", series, lambda each: each.count("backward")),
        _goal("one body at one revision", series, lambda each: each.count("bodies")),
        _goal("0 phantoms", series, lambda each: each.count("phantom")),
        _goal(f"stalled within {LONGEST_STALL:.0f} s", series, _late("stalled", LONGEST_STALL, "should_stall")),
        _goal(f"taken over or gone on within {LONGEST_TAKEOVER:.0f} s more", series,
              _late("takeover", LONGEST_TAKEOVER, "should_resume")),
        _verified(series),
        _goal(f"agreement within {LONGEST_AGREEMENT:.0f} s", series, _late("agreement", LONGEST_AGREEMENT, None)),
        _goal(f"no stale view for more than {LONGEST_STALE:.0f} s", series, lambda each: each.stale > LONGEST_STALE),
        _goal("no lost outcome", series, lambda each: len(each.lost)),
        _goal("no operation was ever denied", series, lambda each: each.denied),
        _goal("every operation ended well", series, lambda each: len(each.failures)),
    ]  # fmt: skip


NOTES: Final = (
    "To takeover or resume: from the stall, for what any process can do; for a staging from the return of its node, "
    "the only one that can, or of that node's network.\n"
    "Bytes moved twice: what the workers received beyond the models' sizes. Verified twice: whole pieces among them, "
    "in one occurrence.\n"
    "-: nothing to measure, or not measured."
)


def verdict(series: Sequence[Series]) -> str:
    """Return the goals as lines of text."""
    signs = {True: "✓", False: "✗", None: "-"}
    return "\n".join(f"{signs[met]}  {text}{f': {where}' if where else ''}" for text, met, where in goals(series))


def as_events(series: Sequence[Series], began: float) -> list[dict[str, Any]]:
    """Return what was seen as plain values, times from the run's start on."""
    return [
        {
            "fault": each.name, "not_run": each.not_run, "began": each.began - began, "finished": each.finished - began,
            "outcomes": [vars(outcome) for outcome in each.outcomes], "lost": each.lost, "failures": each.failures,
            "bytes_twice": each.bytes_twice, "verified_twice": each.verified_twice, "unmeasured": each.unmeasured,
            "anomalies": [anomaly._replace(time=anomaly.time - began)._asdict() for anomaly in each.anomalies],
            "longest_lags": [
                lag._replace(time=lag.time - began)._asdict()
                for lag in sorted(each.lags, key=lambda lag: -lag.seconds)[:10]
            ],
        }
        for each in series
    ]  # fmt: skip


def _goal(text: str, series: Sequence[Series], misses: Callable[[Series], int]) -> tuple[str, bool, str]:
    missed = {each.name: misses(each) for each in series}
    where = ", ".join(f"{name} {count:,}" for name, count in missed.items() if count)
    return text, not where, where


def _verified(series: Sequence[Series]) -> tuple[str, bool | None, str]:
    text, met, where = _goal("0 verified bytes moved twice", series, lambda each: each.verified_twice)
    unmeasured = [f"{each.name} {each.unmeasured} of {len(each.outcomes)}" for each in series if each.unmeasured]
    if unmeasured:
        where = f"{where}{'; ' if where else ''}not measured: {', '.join(unmeasured)}"
    return text, None if met and unmeasured else met, where


def _all_run(series: Sequence[Series]) -> tuple[str, bool, str]:
    where = [f"{each.name} ({each.not_run})" for each in series if each.not_run]
    where += [f"{each.name} ({outcome.not_run})" for each in series for outcome in each.outcomes if outcome.not_run]
    return "every fault that was asked for happened", not where, ", ".join(where)


def _late(which: str, most: float, should: str | None) -> Callable[[Series], int]:
    """Return what counts the occurrences in which a time was too long, or should have been there and was not."""

    def count(each: Series) -> int:
        late = 0
        for outcome in each.happened:
            seconds = getattr(outcome, which)
            is_wanted = should is None or getattr(outcome, should)
            late += is_wanted if seconds is None else seconds > most
        return late

    return count


def _cells(each: Series) -> list[str]:
    if each.not_run:
        return [each.text, "0", *["-"] * (len(_HEAD) - 2)]
    return [
        each.text, str(len(each.happened)), str(each.count("flicker")), str(each.count("backward", "bodies")),
        str(each.count("phantom")), str(len(each.lost)), str(each.count("failed poll")), f"{each.stale:.2f} s",
        _seconds(each.longest("stalled")), _seconds(each.longest("takeover")), _seconds(each.longest("agreement")),
        _bytes(each, each.bytes_twice), _bytes(each, each.verified_twice),
    ]  # fmt: skip


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"


def _bytes(each: Series, count: int) -> str:
    # What was found somewhere is said; that nothing was found only where everything was looked at.
    return "-" if each.unmeasured and count <= 0 else format_size(max(0, count))


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"
