"""The entry point: a Ctrl-C before, or after, the command line itself is there to heed it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

INTERRUPTED = 130
CTRL_C = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
STARTS = ([sys.executable, "-m", "stagecast"], [str(Path(sys.executable).parent / "stagecast")])


def ran(start: list[str], folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it with modules of ``folder`` before all others."""
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run([*start, *arguments], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("start", STARTS, ids=["module", "script"])
def test_an_interrupt_while_it_imports(tmp_path: Path, start: list[str]) -> None:
    (tmp_path / "aiohttp.py").write_text(CTRL_C)
    ended = ran(start, tmp_path, "ops")
    assert (ended.returncode, ended.stdout, ended.stderr) == (INTERRUPTED, "", "")


def test_an_interrupt_while_the_interpreter_ends(tmp_path: Path) -> None:
    at_exit = "import atexit, os, signal\natexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))\n"
    (tmp_path / "sitecustomize.py").write_text(at_exit)
    ended = ran(STARTS[0], tmp_path, "ops", "--url", "nothing")
    assert ended.returncode == INTERRUPTED
    assert ended.stderr.startswith("error: 'nothing' is no address"), "what was said before is not lost"
    assert "Traceback" not in ended.stderr
    assert "KeyboardInterrupt" not in ended.stderr


def test_an_interrupt_that_is_ignored_stays_so(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n")
    (tmp_path / "aiohttp.py").write_text(f"{CTRL_C}\nraise SystemExit(7)\n")
    assert ran(STARTS[0], tmp_path, "ops").returncode == 7
