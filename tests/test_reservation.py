"""A promise of room is a lease: it holds over all processes of a folder, and dies with the one that holds it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stagecast import reservation
from stagecast.disk import Disk, Space, space_of
from stagecast.durable import Lock
from stagecast.errors import Busy, NotEnoughSpace
from stagecast.publication import WORKSHOP
from stagecast.reservation import Promise, Reservation, clear, deciding, promised, standing
from tests.asking import asked_at_once

MB = 1024 * 1024

_HOLDER = """
import sys
from pathlib import Path
from stagecast.disk import Disk
with Disk(Path(sys.argv[1])).reserve(int(sys.argv[2]), purpose="staging of owl") as reservation:
    print("held", flush=True)
    for line in sys.stdin:
        reservation.landed(int(line))
        print("landed", flush=True)
"""


@pytest.fixture
def workshop(tmp_path: Path) -> Path:
    folder = tmp_path / WORKSHOP
    folder.mkdir()
    return folder


@contextmanager
def holder(models: Path, count: int) -> Iterator[subprocess.Popen[str]]:
    """Another process that has been promised ``count`` bytes, and is told on its input how many have landed."""
    command = [sys.executable, "-c", _HOLDER, str(models), str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_what_another_process_was_promised_is_not_promised_again(tmp_path: Path, workshop: Path) -> None:
    free = space_of(tmp_path).free
    with holder(tmp_path, free // 2) as process:
        assert standing(workshop) == [Promise(free // 2, "staging of owl")]
        with pytest.raises(NotEnoughSpace, match=f"of which {free // 2:,} are promised to other transfers") as refused:
            Disk(tmp_path).reserve(free - free // 4).__enter__()
        assert refused.value.promised == free // 2
        with Disk(tmp_path).reserve(MB):
            pass
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{free // 2 - 10}\n")
        process.stdin.flush()
        assert process.stdout.readline() == "landed\n"
        assert standing(workshop) == [Promise(10, "staging of owl")]
        process.stdin.close()
        assert process.wait(60) == 0
    assert list(workshop.iterdir()) == []


def test_a_killed_holder_frees_its_promise(tmp_path: Path, workshop: Path) -> None:
    free = space_of(tmp_path).free
    with holder(tmp_path, free - free // 4) as process:
        with pytest.raises(NotEnoughSpace):
            Disk(tmp_path).reserve(free // 2).__enter__()
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert standing(workshop) == [], "nobody had to look for it first"
        with Disk(tmp_path).reserve(free // 2):
            assert len(list(workshop.iterdir())) == 1, "what the dead one left is cleared away"


def test_many_at_once_are_never_promised_more_than_there_is(
    tmp_path: Path, workshop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(tmp_path)
    monkeypatch.setattr(disk, "space", lambda: Space(1000, 1000))
    held, refused = asked_at_once([disk])
    assert (len(held), len(refused)) == (3, 9)
    assert max(held) <= 900
    assert set(refused) == {900}
    assert list(workshop.iterdir()) == []


def test_who_only_looks_takes_nobody_for_dead_and_clears_nothing_living(workshop: Path) -> None:
    with deciding(workshop), promised(workshop, 5, "x"):
        clear(workshop)
        assert standing(workshop) == standing(workshop) == [Promise(5, "x")]


def test_a_process_that_sleeps_at_its_decision_is_told_of(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reservation, "_PATIENCE", 0.0)
    sleeper = Lock(workshop / "reserving")
    assert sleeper.take()
    with pytest.raises(Busy, match=f"the reserving of room in .* process {os.getpid()} on "):
        Disk(workshop.parent).reserve(5).__enter__()
    sleeper.release()


def test_the_file_lags_by_a_step_at_most_and_only_to_the_safe_side(workshop: Path) -> None:
    with promised(workshop, 100 * MB, "x") as made:
        for _ in range(100):
            made.landed(MB - 1)
            [said] = standing(workshop)
            assert made.left <= said.left < made.left + MB


def test_a_disk_that_refuses_to_be_told_keeps_the_larger_promise(
    workshop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with promised(workshop, 100, "x") as made:
        monkeypatch.setattr(reservation, "write_all", full)
        made.landed(99)
        assert made.left == 1
        assert standing(workshop) == [Promise(100, "x")]
    assert Reservation(3).left == 3
