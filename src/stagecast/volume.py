"""Which disk a folder lies on, told so that two nodes with one folder tell the same, and no others do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, NamedTuple

_REMOTE: Final = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "smb3"}
)
_MOUNTS: Final = Path("/proc/self/mountinfo")
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")


class Mount(NamedTuple):
    """What is mounted on a device: the kind of file system, and where that comes from."""

    kind: str
    source: str


def volume_of(folder: Path) -> str:
    """Return what names the folder, the same for every process that reaches it, in every container and host.

    A local disk is this machine's, whatever it is called in a container; a remote one is its server's and export's.
    """
    found = folder.stat()
    mount = mount_of(f"{os.major(found.st_dev)}:{os.minor(found.st_dev)}", _read(_MOUNTS))
    if mount.kind in _REMOTE or mount.kind.startswith("fuse."):
        return f"{mount.kind}:{mount.source}:{found.st_ino}"
    return f"{_read(_BOOT).strip()}:{found.st_dev}:{found.st_ino}"


def disk_of(volume: str) -> str:
    """Return what names the file system of a folder, by what names the folder: all of that but its own number."""
    return volume.rpartition(":")[0] or volume


def mount_of(device: str, mounts: str) -> Mount:
    """Return what is mounted on ``device`` (``major:minor``), by the lines of ``mountinfo``; nothing if not found."""
    for line in mounts.splitlines():
        fields, _, rest = line.partition(" - ")
        if fields.split()[2:3] == [device] and len(rest.split()) >= 2:
            kind, source, *_ = rest.split()
            return Mount(kind, source)
    return Mount("", "")


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
