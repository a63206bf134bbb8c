"""A share of the points in each run of the tests; all of them are tried by ``python -m tests.durability``."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stagecast import publication
from tests.durability.__main__ import in_small
from tests.durability.cuts import Course, course_of, cut_off
from tests.durability.kills import killed, points
from tests.durability.staging import SHAPES

HOME = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def small() -> Iterator[None]:
    with in_small():
        yield


@pytest.mark.timeout(600)  # it is work, and waits for nothing
def test_at_a_share_of_all_points_every_law_holds() -> None:
    # In a process of its own, because a small one is killed and started anew much faster than this one.
    command = [sys.executable, "-m", "tests.durability", "--share", "0.06", "--seed", str(random.randrange(10**6))]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 bytes moved twice, 0 times a model half published, 0 times a wrong piece marked good" in done.stdout


def test_a_publication_in_more_steps_than_one_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def copy(working: Path, source: Path, final: Path) -> None:
        shutil.rmtree(final)
        shutil.copytree(source, final)

    monkeypatch.setattr(publication, "_move", copy)
    job = SHAPES[0]
    assert killed(job, [(point,) for point in points(job)[-60::3]])["half published"]


def test_moving_again_what_had_come_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stagecast.partial.read_status", lambda _, pieces: [0] * len(pieces))
    job = SHAPES[3]
    assert killed(job, [(point,) for point in points(job)[20:80:10]])["moved twice"]


@pytest.mark.parametrize(("synced", "law"), [("files", "marked wrong"), ("folders", "moved twice")])
def test_a_sync_left_out_would_be_noticed(synced: str, law: str) -> None:
    course = course_of(SHAPES[0])
    recorder = course.recorder
    left_out = recorder.disk.files if synced == "files" else recorder.disk.folders
    places = [index for index, change in enumerate(recorder.changes) if change.what == "sync"]
    dropped = [index for index in places if recorder.changes[index].inode in left_out]
    recorder.changes = [change for index, change in enumerate(recorder.changes) if index not in dropped]
    promised = [(at - sum(index < at for index in dropped), safe) for at, safe in course.promised]
    cuts = list(Course(recorder, promised).cuts(random.Random(1), 2))
    assert cut_off(SHAPES[0], Course(recorder, promised), cuts[::5])[law]
