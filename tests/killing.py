"""Work in a child process that is killed at a chosen step, as a machine would: with no clean-up of any kind."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

_STEPS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}


def in_child(work: Callable[[], object]) -> int:
    """Run ``work`` in a forked process that ends without any clean-up; return its exit code (negative: the signal)."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001  a child must never come back into pytest
            os._exit(70)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def dying_at(step: int, work: Callable[[], object]) -> Callable[[], object]:
    """Return ``work``, killed just before its file system operation number ``step``."""

    def run() -> None:
        count = 0

        def hook(event: str, arguments: object) -> None:
            nonlocal count
            if event in _STEPS:
                count += 1
                if count == step:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        work()

    return run
