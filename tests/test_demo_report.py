"""What had to come true, held against what was measured."""

from __future__ import annotations

import dataclasses
import io

import msgspec
import pytest
from rich.console import Console

from stagecast.demo_checks import Judge, Tick, Verdict
from stagecast.demo_job import Story
from stagecast.demo_report import checks_of, silence_after
from stagecast.demo_view import summary
from stagecast.rows import Row
from tests.replica_stand_in import row
from tests.test_demo_vectors import GOOD

REPLICAS = ["replica-2", "replica-3"]
WORKERS = ["worker-1", "worker-2"]
VERDICT = Verdict(
    polls=400, failed=0, flickers=0, backward=0, compared=30, answers_compared=900, distinct_bodies=1, phantoms=0,
    hertz=39.6, gap=0.11,
)  # fmt: skip


def whole(**changes: object) -> Row:
    return msgspec.convert(row(**{"state": "succeeded", "currentBytes": 1000, **changes}), Row)  # type: ignore[arg-type]


def story(**changes: object) -> Story:
    return dataclasses.replace(
        Story(
            installed=[whole()], install_seconds=1.6, staged=[whole(), whole(job="job-2")], stage_seconds=6.1,
            taken_by="replica-1", killed=True, killed_at=10.0, killed_progress=44.0, bytes_at_kill=10,
            vectors=dict.fromkeys(("balancer", *REPLICAS), GOOD), embed_seconds=1.2, holders={*REPLICAS, *WORKERS},
        ),
        **changes,  # type: ignore[arg-type]
    )  # fmt: skip


def judge_of(ticks: tuple[Tick, ...] = (Tick(9.0, 10), Tick(10.6, 20)), unseen: str = "") -> Judge:
    judge = Judge()
    judge.ticks.extend(ticks)
    for name in ("replica-1", *REPLICAS):
        judge.shown_by[name] |= {"staging"} | ({"installation"} if name != unseen else set())
    return judge


def failed(story: Story, verdict: Verdict = VERDICT, judge: Judge | None = None) -> list[str]:
    found = checks_of(story, verdict, judge or judge_of(), REPLICAS, WORKERS)
    return [check.name for check in found if not check.held]


def test_all_held() -> None:
    assert failed(story()) == []


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"failed": 1}, "polls through the balancer"),
        ({"hertz": 12.0}, "polls through the balancer"),
        ({"flickers": 1}, "flickers"),
        ({"backward": 1}, "steps backward"),
        ({"phantoms": 1}, "rows of what had ended"),
        ({"distinct_bodies": 2}, "distinct bodies at one revision"),
        ({"compared": 0}, "distinct bodies at one revision"),
    ],
)
def test_each_fault_of_the_picture_fails_its_check(changes: dict[str, object], name: str) -> None:
    assert failed(story(), dataclasses.replace(VERDICT, **changes)) == [name]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"installed": [whole(currentBytes=1)]}, ["installed from the gallery"]),
        ({"staged": []}, ["staged onto the workers"]),
        ({"holders": {*REPLICAS, "worker-1"}}, ["held whole by"]),
        ({"killed": False}, ["killed the replica that took it", "from the kill to the next tick"]),
        ({"vectors": {"balancer": GOOD}}, ["the same vectors everywhere"]),
        ({"vectors": dict.fromkeys(("balancer", *REPLICAS), GOOD[::-1])}, ["loaded and embedded"]),
    ],
)
def test_each_fault_of_the_story_fails_its_check(changes: dict[str, object], names: list[str]) -> None:
    assert failed(story(**changes)) == names


def test_a_silence_after_the_kill_is_a_fault() -> None:
    silent = ["from the kill to the next tick"]
    assert failed(story(), judge=judge_of((Tick(9.0, 10), Tick(13.1, 20)))) == silent
    assert failed(story(), judge=judge_of((Tick(9.0, 10),))) == silent
    assert silence_after([Tick(9.0, 1), Tick(10.5, 2), Tick(11, 3)], 10.0, 1) == 0.5
    assert silence_after([Tick(9.0, 1), Tick(10.5, 2), Tick(11, 3)], 10.0, 2) == 1.0


def test_an_installation_that_one_replica_did_not_show_is_a_fault() -> None:
    assert failed(story(), judge=judge_of(unseen="replica-3")) == ["its progress seen on every replica"]


def test_the_summary_says_the_figures() -> None:
    console = Console(width=160, file=io.StringIO())
    console.print(summary(checks_of(story(), dataclasses.replace(VERDICT, flickers=3), judge_of(), REPLICAS, WORKERS)))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    for figure in ("2,000 bytes onto 2 in 6.1 s", "replica-1 at 44 %", "0.60 s", "400 at 40 Hz", "384 wide"):
        assert figure in text
    assert sum(line.startswith("✗") for line in text.splitlines()) == 1
