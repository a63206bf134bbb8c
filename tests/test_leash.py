"""What is on a leash does not outlive whoever started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stagecast.leash import leashed

pytestmark = pytest.mark.system


def test_the_command_becomes_the_process_itself() -> None:
    command = leashed([sys.executable, "-c", "import os; print(os.getpid(), os.getppid())"])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.read().split() == [str(process.pid), str(os.getpid())]


def test_it_dies_with_a_parent_that_is_killed() -> None:
    script = """
import subprocess, time
from stagecast.leash import leashed
print(subprocess.Popen(leashed(["sleep", "1000"])).pid, flush=True)
time.sleep(1000)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = Path(f"/proc/{parent.stdout.readline().strip()}")
        deadline = time.monotonic() + 60
        while b"sleep" not in (child / "cmdline").read_bytes()[:6]:
            assert time.monotonic() < deadline
        parent.send_signal(signal.SIGKILL)
    while child.exists() and "\nState:\tZ" not in (child / "status").read_text():
        assert time.monotonic() < deadline


def test_a_parent_that_died_already_is_noticed() -> None:
    command = ["1" if word == str(os.getpid()) else word for word in leashed(["sleep", "1000"])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, "error: process 1 died before sleep began\n")
