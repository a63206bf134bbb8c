"""One child process: waited for, started again, and ended whatever it does about that."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from stagecast.child import Child, ChildFailed, Program, back_off, describe_ending
from tests.conftest import eventually

pytestmark = pytest.mark.system


async def answers() -> bool:
    return True


async def keeps_silent() -> bool:
    return False


def program(tmp_path: Path, script: str, **changes: object) -> Program:
    given = {"name": "child", "command": (sys.executable, "-S", "-u", "-c", script), "log": tmp_path / "child.log"}
    return Program(**{"probe": answers, **given, **changes})  # type: ignore[arg-type]


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def ignore(line: str) -> None:
    pass


async def test_one_that_ignores_sigterm_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    script = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(subprocess.Popen(["sleep", "1000"]).pid)
time.sleep(1000)
"""
    async with Child(program(tmp_path, script, grace=0.1), ignore) as child:
        await child.ready()
        await eventually(child.tail)
        grandchild = int(child.tail())
        pid = child.pid
    assert not child.is_running
    await eventually(lambda: not is_there(pid) and not is_there(grandchild))


async def test_one_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    script = "import time; print('one'); print('two'); time.sleep(1000)"
    async with Child(program(tmp_path, script, probe=keeps_silent), ignore) as child:
        await eventually(lambda: "two" in child.tail())
        with pytest.raises(ChildFailed, match="child did not answer for 0 s; its last lines:\none\ntwo"):
            await child.ready(0.05)


async def test_one_whose_program_is_missing_says_so(tmp_path: Path) -> None:
    async with Child(program(tmp_path, "", command=("/no/such/program",), probe=keeps_silent), ignore) as child:
        with pytest.raises(ChildFailed, match="cannot run /no/such/program: No such file or directory"):
            await child.ready()


async def test_killed_it_stays_down_until_it_is_started_again(tmp_path: Path) -> None:
    said: list[str] = []
    async with Child(program(tmp_path, "import time; time.sleep(1000)"), said.append) as child:
        await child.ready()
        first = child.pid
        await child.kill()
        assert not child.is_running
        await child.kill()
        await child.restart()
        assert child.is_running
        assert child.pid != first
    assert said == []


async def test_one_that_ends_again_and_again_is_started_more_and_more_slowly(tmp_path: Path) -> None:
    said: list[str] = []
    async with Child(program(tmp_path, "import sys, time; time.sleep(0.05); sys.exit(4)"), said.append) as child:
        await child.ready()
        await eventually(lambda: len(said) == 2)
    assert said == [f"child ended with exit code 4; it is started again in {delay} s" for delay in (0.5, 1)]


def test_back_off_grows_to_half_a_minute() -> None:
    assert [back_off(failures) for failures in (1, 2, 3, 8, 1000)] == [0.5, 1, 2, 30, 30]


def test_endings_in_words() -> None:
    assert describe_ending(3) == "ended with exit code 3"
    assert describe_ending(-9) == "was ended by SIGKILL"
