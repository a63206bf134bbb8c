"""The server that installations come from, and what its requests say about verified bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from stagecast.manifest import PIECE_SIZE
from tests.upstream_server import UpstreamServer

VERIFIED: Final = PIECE_SIZE
"""Bytes that are verified, and recorded, together."""


@contextmanager
def upstream(contents: Mapping[str, bytes], host: str, rate: int) -> Iterator[UpstreamServer]:
    """Serve ``contents`` on ``host`` at ``rate`` bytes per second and connection for as long as the block lasts."""
    server = UpstreamServer(contents, host)
    server.rate = rate
    with server.running():
        yield server


def verified_twice(sent: int, requests: Sequence[tuple[str, str, str | None]]) -> int:
    """Return how many bytes of one file that had been verified were asked for again.

    ``sent``: bytes that had been sent, from the start on, when the first reader died; ``requests``: (method, target,
    Range) of what came after. Of what was sent last, up to a piece and what lay in buffers was not verified yet.
    """
    verified = max(0, sent - VERIFIED) // VERIFIED * VERIFIED
    starts = [_start(ranged) for method, _, ranged in requests if method == "GET"]
    return max(0, verified - min(starts, default=verified))


def _start(ranged: str | None) -> int:
    return int((ranged or "bytes=0-").removeprefix("bytes=").partition("-")[0])
