"""Run a command on a leash: the kernel kills it when the process that started it dies, however that dies.

::

    python -I -S leash.py PARENT_PID COMMAND [ARGUMENT]...

A program in between, rather than a ``preexec_fn``, because Python code between fork and exec may deadlock where
threads run. The kernel pulls the leash when the *thread* that forked ends, so fork from the main one.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1  # prctl(2)


def leashed(command: Sequence[str]) -> tuple[str, ...]:
    """Return the command that runs ``command`` and does not outlive this process."""
    return (sys.executable, "-I", "-S", __file__, str(os.getpid()), *command)


def main(arguments: Sequence[str]) -> None:
    """Become the command, on a leash."""
    parent, *command = arguments
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        sys.exit(f"error: cannot be bound to process {parent}: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != int(parent):
        sys.exit(f"error: process {parent} died before {command[0]} began")
    try:
        os.execvp(command[0], command)  # noqa: S606  # no shell: that is the point
    except OSError as error:
        sys.exit(f"error: cannot run {command[0]}: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
