"""One fault on a whole real cluster, held to what no load of the machine can change; the rest is for `make chaos`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chaos.__main__ import Plan, parse, run
from chaos.faults import FAULTS
from chaos.table import goals

pytestmark = pytest.mark.system


async def test_people_are_shown_the_truth_while_nats_is_restarted(tmp_path: Path) -> None:
    faults = tuple(fault for fault in FAULTS if fault.name == "nats-restart")
    events = tmp_path / "chaos.json"
    [series] = await run(Plan(faults, times=1, seed=1, bound=60.0), None, events)
    assert series.count("flicker", "backward", "bodies", "phantom") == 0, series.anomalies
    assert (series.lost, series.failures, series.denied) == ([], [], 0)
    assert series.outcomes[0].agreement is not None
    said = json.loads(events.read_text())
    assert said["seed"] == 1
    assert said["polls"]["browser"] > 50
    what = [event["what"] for event in said["events"]]
    assert {"begun", "stop", "ready", "agreed", "ended"} <= set(what)
    assert what.count("begun") == what.count("ended")
    assert "no answer" not in what, said["events"]
    assert len(list((tmp_path / "chaos.logs").iterdir())) == 8


async def test_what_cannot_happen_is_in_the_table_and_misses_a_goal(tmp_path: Path) -> None:
    faults = tuple(fault for fault in FAULTS if fault.name in {"replica-cut", "nats-kill"})
    plan = Plan(faults, times=1, seed=1, bound=-1.0, barred="there is no root")
    seen = await run(plan, None, tmp_path / "chaos.json")
    assert [(each.name, each.not_run) for each in seen] == [
        ("replica-cut", "there is no root"), ("nats-kill", "-1 s were over"),
    ]  # fmt: skip
    assert [text for text, met, _ in goals(seen) if met is False] == ["every fault that was asked for happened"]
    said = json.loads((tmp_path / "chaos.json").read_text())
    assert [each["not_run"] for each in said["series"]] == ["there is no root", "-1 s were over"]


def test_only_what_cuts_needs_the_network() -> None:
    plan = Plan(FAULTS, times=1, seed=1, bound=9.0, barred="there is no root")
    assert {fault.cuts for fault in FAULTS if not plan.hindrance(fault, 9.0)} == {False}
    assert all(plan.hindrance(fault, 9.0) == plan.barred for fault in FAULTS if fault.cuts)
    assert all(plan.hindrance(fault, 9.1) for fault in FAULTS)


def test_to_let_nothing_happen_is_refused() -> None:
    with pytest.raises(SystemExit):
        parse(["--times", "0"])


def test_the_options_say_what_runs() -> None:
    plan, events, markdown = parse(["--quick", "--seed", "7"])
    assert ([fault.name for fault in plan.faults], plan.times, plan.seed) == (["replica-kill", "nats-restart"], 1, 7)
    assert (events, markdown) == (Path("build/chaos.json"), None)
    plan, events, markdown = parse(["--faults", "nats-kill", "none", "--times", "9", "--markdown", "x/y.md"])
    assert ([fault.name for fault in plan.faults], plan.times) == (["none", "nats-kill"], 9)
    assert (events, markdown) == (Path("x/y.json"), Path("x/y.md"))


def test_an_unknown_fault_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--faults", "meteor"])
    assert "meteor" in capsys.readouterr().err
