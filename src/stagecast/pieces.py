"""Pieces, ranges, and the choice of what to ask of whom. Values in, values out; ``now`` is an argument."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from stagecast.errors import BadInput
from stagecast.manifest import Manifest

PENALTY_HALF_LIFE: Final = 10.0
"""Seconds after which a failure weighs half as much against a holder."""

# 19 digits hold every size that a file can have, and stay clear of int()'s own limit on the length of a number.
_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})", re.IGNORECASE | re.ASCII)
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})", re.IGNORECASE | re.ASCII)


class Piece(NamedTuple):
    """A slice of a file: ``file`` is its place in ``manifest.files``; ``offset`` and ``length`` are bytes in it."""

    file: int
    index: int  # type: ignore[assignment]  # a piece has an index; nobody searches in one with tuple.index
    offset: int
    length: int


class Standing(NamedTuple):
    """How a holder does: streams open to it now, and a penalty, in streams, as it was at ``since`` (seconds)."""

    streams: int = 0
    penalty: float = 0.0
    since: float = 0.0

    def cost(self, now: float) -> float:
        """Return the open streams plus what is left of the penalty at ``now``."""
        return self.streams + self._penalty(now)

    def failed(self, now: float, weight: float = 1.0) -> Standing:
        """Return the standing after one more failure of ``weight`` streams."""
        return self._replace(penalty=self._penalty(now) + weight, since=now)

    def opened(self) -> Standing:
        """Return the standing with one more stream."""
        return self._replace(streams=self.streams + 1)

    def closed(self) -> Standing:
        """Return the standing with one stream less."""
        return self._replace(streams=self.streams - 1)

    def _penalty(self, now: float) -> float:
        return float(self.penalty * 0.5 ** (max(0.0, now - self.since) / PENALTY_HALF_LIFE))


def pieces_of(manifest: Manifest) -> Iterator[Piece]:
    """Yield every piece, file by file in the manifest's order. An empty file has none."""
    for number, file in enumerate(manifest.files):
        for index, offset in enumerate(range(0, file.size, manifest.piece_size)):
            yield Piece(number, index, offset, min(manifest.piece_size, file.size - offset))


def choose_piece(missing: Iterable[Piece], taken: Collection[Piece]) -> Piece | None:
    """Return the first missing piece that nobody has taken, or None."""
    return next((piece for piece in missing if piece not in taken), None)


def choose_holder(
    holders: Sequence[str], standings: Mapping[str, Standing], excluded: Collection[str], now: float
) -> str | None:
    """Return the holder that costs least now, of equals the first, or None when all are excluded.

    ``holders`` are names in the order of preference; one without a standing is new and costs nothing; ``excluded``
    are those that failed for the piece in question.
    """
    able = [name for name in holders if name not in excluded]
    return min(able, key=lambda name: standings.get(name, Standing()).cost(now), default=None)


def parse_range(text: str, size: int) -> tuple[int, int] | None:
    """Return (start, stop) in bytes, ``stop`` excluded, that a ``Range`` header asks of ``size`` bytes.

    None where RFC 9110 section 14.2 lets a server ignore the header: another unit, several ranges, no range at all.

    Raises:
        BadInput: a range that holds no byte of the file (status 416 there).
    """
    match = _RANGE.fullmatch(text.strip())
    if match is None or match[1] == match[2] == "":
        return None
    if match[1] == "":
        start, stop = max(0, size - int(match[2])), size
    else:
        start, stop = int(match[1]), min(size, int(match[2]) + 1 if match[2] else size)
        if match[2] and int(match[2]) < start:
            return None
    if start >= stop:
        raise BadInput(
            f"the range {text!r} holds no byte of a file of {size} bytes; ask for bytes=0-{max(0, size - 1)}"
        )
    return start, stop


def parse_content_range(text: str) -> tuple[int, int, int]:
    """Return (start, stop, size) in bytes, ``stop`` excluded, of a ``Content-Range`` header of a 206 response.

    Raises:
        BadInput: not of the form ``bytes first-last/size``, or numbers that do not fit each other.
    """
    match = _CONTENT_RANGE.fullmatch(text.strip())
    if match is None:
        raise BadInput(f"{text!r} is not a Content-Range of the form 'bytes first-last/size'")
    start, stop, size = int(match[1]), int(match[2]) + 1, int(match[3])
    if not start < stop <= size:
        raise BadInput(f"the Content-Range {text!r} does not fit into its own size")
    return start, stop, size
