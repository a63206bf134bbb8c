"""Who listens on a port of this machine: a recycled port may answer for another model."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Literal


def listener(port: int, leader: int) -> Literal["nobody", "ours", "another"]:
    """Tell who listens on a port; ours are the processes of the session that ``leader`` leads."""
    sockets = _listening_sockets(port)
    for pid in _session(leader) if sockets else ():
        with contextlib.suppress(OSError):
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if str(descriptor.readlink()) in sockets:
                        return "ours"
    # Looked at again, because ours may have ended since the first look.
    return "another" if sockets & _listening_sockets(port) else "nobody"


def _listening_sockets(port: int) -> set[str]:
    """Return the sockets that listen on a port, as /proc/<pid>/fd names them (proc(5))."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    found.add(f"socket:[{fields[9]}]")
    return found


def _session(leader: int) -> list[int]:
    """Return the processes of a session: the backend and its children, whatever process groups they made."""
    found = []
    for pid in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
        with contextlib.suppress(OSError):
            if os.getsid(pid) == leader:
                found.append(pid)
    return found
