"""Reads slices of files and hashes them, a few at a time."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from blake3 import blake3

from stagecast.bulk import stand_back
from stagecast.durable import opened
from stagecast.errors import Interrupted

_CHUNK: Final = 1024 * 1024
_THREADS: Final = min(4, os.cpu_count() or 1)


class Slice(NamedTuple):
    """A part of a file, in bytes."""

    path: Path
    offset: int
    length: int


def digests(slices: Sequence[Slice], stop: threading.Event, *, afresh: bool = False) -> Iterator[str | OSError]:
    """Yield each slice's BLAKE3 as hex, in order: "" where the file ends too early, the error where it cannot be read.

    ``afresh`` reads from the disk what the system only remembers, as far as nobody has it mapped.

    Raises:
        Interrupted: ``stop`` was set.
    """
    executor = ThreadPoolExecutor(_THREADS, "hash", stand_back)
    try:
        yield from executor.map(partial(digest_of, stop=stop, afresh=afresh), slices)
    finally:
        executor.shutdown(cancel_futures=True)


def digest_of(piece: Slice, stop: threading.Event, *, afresh: bool = False) -> str | OSError:
    """Return one slice's digest, as `digests` yields it."""
    hasher, buffer, done = blake3(), memoryview(bytearray(min(_CHUNK, piece.length))), 0
    try:
        with opened(piece.path, os.O_RDONLY) as descriptor:
            if afresh:
                os.posix_fadvise(descriptor, piece.offset, piece.length, os.POSIX_FADV_DONTNEED)
            while done < piece.length:
                if stop.is_set():
                    raise Interrupted("cancel")
                count = os.preadv(descriptor, [buffer[: piece.length - done]], piece.offset + done)
                if count == 0:
                    return ""
                hasher.update(buffer[:count])
                done += count
    except OSError as error:
        return error
    return hasher.hexdigest()
