"""``python -m chaos``: run the faults, print the table, and exit with 1 where a goal was missed."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import uvloop

from chaos import table
from chaos.faults import FAULTS, Fault
from chaos.load import FILE, Begun
from chaos.network import Network, NoNetwork, network
from chaos.rig import NothingMoves, Rig, rig
from chaos.series import Outcome, Series
from stagecast import operations

QUICK: Final = ("replica-kill", "nats-restart")


@dataclass(frozen=True)
class Plan:
    """What to run: each fault ``times`` times, none begun after ``bound`` seconds; a fault left out misses a goal."""

    faults: tuple[Fault, ...]
    times: int
    seed: int
    bound: float
    barred: str = ""
    """Why nothing can be cut off, empty where it can."""

    def hindrance(self, fault: Fault, seconds: float) -> str:
        """Return why a fault cannot happen ``seconds`` after the start, empty if it can."""
        if fault.cuts and self.barred:
            return self.barred
        return f"{self.bound:.0f} s were over" if seconds > self.bound else ""


def parse(arguments: Sequence[str]) -> tuple[Plan, Path, Path | None]:
    """Return the plan, where the raw events go, and where the table goes."""
    names = [fault.name for fault in FAULTS]
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--faults", nargs="+", choices=names, default=names, metavar="FAULT", help=", ".join(names))
    parser.add_argument("--times", type=_count, default=3, help="how often each of them happens [default: 3]")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6), help="of everything that is random")
    parser.add_argument("--bound", type=float, default=2700.0, help="seconds after which no fault is begun any more")
    parser.add_argument("--quick", action="store_true", help=f"once each, and only {', '.join(QUICK)}")
    parser.add_argument("--markdown", type=Path, help="write the table into this file, the raw events beside it")
    parser.add_argument("--events", type=Path, help="where the raw events go [default: build/chaos.json]")
    given = parser.parse_args(arguments)
    wanted = QUICK if given.quick else given.faults
    plan = Plan(
        faults=tuple(fault for fault in FAULTS if fault.name in wanted), times=1 if given.quick else given.times,
        seed=given.seed, bound=given.bound,
    )  # fmt: skip
    beside = given.markdown.with_suffix(".json") if given.markdown else Path("build/chaos.json")
    return plan, given.events or beside, given.markdown


def _count(text: str) -> int:
    if (count := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{count} is not 1 or more")
    return count


async def run(plan: Plan, grid: Network | None, events: Path) -> list[Series]:
    """Run the plan; return what was seen of each fault. The raw events are written whatever happens."""
    series: list[Series] = []
    settled: set[str] = set()
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder:
        async with rig(Path(folder), grid, random.Random(plan.seed)) as made:
            try:
                for fault in plan.faults:
                    if hindrance := plan.hindrance(fault, made.now - made.began):
                        print(f"{fault.name}: not run, {hindrance}", flush=True)
                        series.append(Series(fault.name, fault.text, made.now, made.now, not_run=hindrance))
                        continue
                    series.append(await _series(made, fault, plan.times, settled))
                    print(_progress(made, series[-1]), flush=True)
                if ran := [each for each in series if not each.not_run]:
                    # What ended early in the run has an end to the last, whatever came over the log meanwhile.
                    ran[-1].lost += [f"{job}: no end any more" for job in await made.without_end(settled)]
            finally:
                _write(made, plan, series, events)
                logs = events.with_suffix(".logs")
                shutil.rmtree(logs, ignore_errors=True)
                shutil.copytree(made.cluster.data / "logs", logs)
    return series


async def _series(made: Rig, fault: Fault, times: int, settled: set[str]) -> Series:
    """Let a fault happen; ``settled`` are the runs whose ends are known to be known, and grow."""
    each = Series(fault.name, fault.text, made.now, piece=FILE)
    made.note("fault", name=fault.name)
    begun = len(made.load.begun)
    for _ in range(times):
        each.outcomes.append(await occurrence(made, fault))
        made.note("outcome", **vars(each.outcomes[-1]))
    mine = made.load.begun[begun:]
    each.lost = [await _what_became(made, one) for one in mine if one.end is None]
    ended = {one.job for one in mine if one.end is not None}
    vanished = made.judge.missing() - {one.job for one in mine} - settled
    without = await made.without_end(ended | vanished)
    each.lost += [f"{job}: no end" for job in without]
    settled |= (ended | vanished) - set(without)
    each.denied = sum(one.unknown for one in mine)
    each.failures = [f"{one.id}: {one.end.error}" for one in mine if one.end is not None and one.end.state == "failed"]
    await made.load.clean()
    if not each.lost:
        await made.look_for_ghosts()
    each.finished = made.now
    each.sort_in(made.judge.anomalies, made.judge.lags)
    return each


async def occurrence(made: Rig, fault: Fault) -> Outcome:
    """Let a fault happen once; what it had begun has ended before the next, so that what has arrived is its own."""
    begun = len(made.load.begun)
    await made.arrivals.look()
    async with made.load.running():
        await made.pause(0.5, 2.0)
        try:
            outcome = await fault.happen(made)
        except NothingMoves as error:
            outcome = Outcome(not_run=error.message)
    arrived, mine = await made.arrivals.look(), made.load.begun[begun:]
    if arrived is None or any(one.end is None for one in mine):
        return replace(outcome, moved_twice=None)
    twice = arrived - sum(_moved(one) for one in mine)
    made.note("arrived", beyond=twice)
    return replace(outcome, moved_twice=twice)


def _moved(begun: Begun) -> int:
    if begun.end is None or begun.end.task_type != "staging":
        return 0
    return begun.end.current_bytes


async def _what_became(made: Rig, begun: Begun) -> str:
    row = made.timeline.rows.get(begun.job)
    state = row.state if row is not None and row.state not in operations.ENDED else "not listed"
    made.note("lost", job=begun.job, id=begun.id, state=state)
    return f"{begun.id} ({begun.job}): {state}, unknown {begun.unknown} times"


def _progress(made: Rig, each: Series) -> str:
    seen = ", ".join(f"{anomaly.what}" for anomaly in each.anomalies if anomaly.what != "failed poll")
    return f"{made.now - made.began:6.0f} s  {each.name}: {seen or 'no anomaly'}"


def _write(made: Rig, plan: Plan, series: Sequence[Series], events: Path) -> None:
    steps = {
        job: [step._replace(time=round(step.time - made.began, 3))._asdict() for step in found]
        for job, found in made.timeline.steps.items()
    }
    said = {
        "seed": plan.seed, "times": plan.times, "faults": [fault.name for fault in plan.faults],
        "polls": dict(made.judge.polls), "series": table.as_events(series, made.began),
        "events": made.events, "rows": steps,
    }  # fmt: skip
    events.parent.mkdir(parents=True, exist_ok=True)
    events.write_text(json.dumps(said, indent=1))


def main(arguments: Sequence[str]) -> int:
    """Run what the arguments say; return the exit code."""
    plan, events, markdown = parse(arguments)
    print(f"seed {plan.seed}", flush=True)
    with ExitStack() as stack:
        try:
            grid = stack.enter_context(network())
        except NoNetwork as error:
            grid, plan = None, replace(plan, barred=error.message)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            series = runner.run(run(plan, grid, events))
    shown = f"{table.table(series)}\n\n{table.NOTES}\n\n{table.verdict(series)}\n"
    print(f"\n{shown}\nseed {plan.seed}; raw events: {events}")
    if markdown is not None:
        markdown.parent.mkdir(parents=True, exist_ok=True)
        markdown.write_text(shown)
    return 1 if any(met is False for _, met, _ in table.goals(series)) else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
