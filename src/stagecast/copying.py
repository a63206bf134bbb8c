"""Copies parts of files within a machine, by the kernel's own hand, and verifies them as they are copied."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Final

from stagecast.durable import opened, write_all
from stagecast.reading import Slice, digest_of

_CHUNK: Final = 1024 * 1024
_UNABLE: Final = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.ETXTBSY})
"""What a kernel says that cannot copy between two file systems, or not at all."""


def copied(source: Slice, target: Path, at: int, stop: threading.Event) -> str:
    """Copy a slice to ``at`` bytes of a file that is there; return the BLAKE3 of what lies there now, as hex.

    A file system that can shares the blocks instead, and nothing is written. "" where the source ends too early.

    Raises:
        Interrupted: ``stop`` was set.
        OSError: the source cannot be read, or the target not written.
    """
    with opened(source.path, os.O_RDONLY) as origin, opened(target, os.O_RDWR) as copy:
        done = 0
        while done < source.length:
            count = _copy(origin, copy, min(_CHUNK, source.length - done), source.offset + done, at + done)
            if count == 0:
                return ""
            done += count
    digest = digest_of(Slice(target, at, source.length), stop)
    if isinstance(digest, OSError):
        raise digest
    return digest


def _copy(origin: int, copy: int, count: int, start: int, at: int) -> int:
    try:
        return os.copy_file_range(origin, copy, count, start, at)
    except OSError as error:
        if error.errno not in _UNABLE:
            raise
    data = os.pread(origin, count, start)
    write_all(copy, data, at)
    return len(data)
