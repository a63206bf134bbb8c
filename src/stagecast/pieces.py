"""Pieces, ranges, and the choice of what to ask of whom. Values in, values out; ``now`` and chance are arguments.

A set of pieces is an ``int`` here: bit n stands for the piece with number n in the order of `pieces_of`. Sets of 40,000
pieces are joined within a microsecond so, which is what a choice among dozens of holders needs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from stagecast.errors import BadInput
from stagecast.manifest import Manifest

PENALTY_HALF_LIFE: Final = 10.0
"""Seconds after which a failure weighs half as much against a holder."""

MOST_COPIES: Final = 8
"""Copies beyond which a piece counts as no less rare."""

NEIGHBOURS: Final = 24
"""Holders that a pull deals with at most: so many that have everything, and so many that still receive."""

PULLERS: Final = 32
"""Pulls that deal with one holder that has everything, about: its server has room for five connections of each."""

# 19 digits hold every size that a file can have, and stay clear of int()'s own limit on the length of a number.
_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})", re.IGNORECASE | re.ASCII)
_RUN = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?", re.ASCII)
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})", re.IGNORECASE | re.ASCII)


class Piece(NamedTuple):
    """A slice of a file: ``file`` is its place in ``manifest.files``; ``offset`` and ``length`` are bytes in it."""

    file: int
    index: int  # type: ignore[assignment]  # a piece has an index; nobody searches in one with tuple.index
    offset: int
    length: int


class Holder(NamedTuple):
    """A process that can serve a model's pieces; ``url`` is that of its `FileServer`.

    ``is_whole`` says that it has all of them; another one is still receiving, and tells which it has.
    """

    name: str
    url: str
    is_whole: bool = True


class Standing(NamedTuple):
    """How a holder does: streams open to it now, and a penalty, in streams, as it was at ``since`` (seconds).

    ``rate`` is what one stream gets of it, in bytes per second; 0 while nobody knows. ``asked`` counts all streams.
    """

    streams: int = 0
    penalty: float = 0.0
    since: float = 0.0
    rate: float = 0.0
    asked: int = 0

    def cost(self, now: float) -> float:
        """Return the open streams plus what is left of the penalty at ``now``."""
        return self.streams + self._penalty(now)

    def failed(self, now: float, weight: float = 1.0) -> Standing:
        """Return the standing after one more failure of ``weight`` streams."""
        return self._replace(penalty=self._penalty(now) + weight, since=now)

    def opened(self) -> Standing:
        """Return the standing with one more stream."""
        return self._replace(streams=self.streams + 1, asked=self.asked + 1)

    def closed(self) -> Standing:
        """Return the standing with one stream less."""
        return self._replace(streams=self.streams - 1)

    def measured(self, rate: float) -> Standing:
        """Return the standing after a stream got so many bytes per second: halfway between that and what was known."""
        return self._replace(rate=(self.rate + rate) / 2 if self.rate else rate)

    def _penalty(self, now: float) -> float:
        return float(self.penalty * 0.5 ** (max(0.0, now - self.since) / PENALTY_HALF_LIFE))


def pieces_of(manifest: Manifest) -> Iterator[Piece]:
    """Yield every piece, file by file in the manifest's order. An empty file has none."""
    for number, file in enumerate(manifest.files):
        for index, offset in enumerate(range(0, file.size, manifest.piece_size)):
            yield Piece(number, index, offset, min(manifest.piece_size, file.size - offset))


def pieces_between(manifest: Manifest, file: int, start: int, stop: int) -> Iterator[Piece]:
    """Yield the pieces of a file in which the bytes from ``start`` to ``stop``, excluded, lie."""
    step, size = manifest.piece_size, manifest.files[file].size
    for index in range(start // step, -(-stop // step)):
        yield Piece(file, index, index * step, min(step, size - index * step))


def choose_neighbours(
    holders: Sequence[Holder], known: Collection[str], draw: Callable[[], float], *, is_starving: bool = False
) -> list[Holder]:
    """Return those holders with whom a pull deals, in their order: `NEIGHBOURS` of each sort at most, by chance.

    Those whose names are ``known`` come before others, so that connections last. Where more receive than those who
    have everything can serve, each of these is dealt with by `PULLERS` of them, others each time; but by anyone who is
    ``starving``.
    """
    whole = [holder.name for holder in holders if holder.is_whole]
    receiving = [holder.name for holder in holders if not holder.is_whole]
    crowd = (1 + len(receiving)) * min(1.0, NEIGHBOURS / max(1, len(whole)))
    chosen = {name for name in _some(whole, known, draw) if is_starving or draw() * crowd < PULLERS}
    chosen.update(_some(receiving, known, draw))
    return [holder for holder in holders if holder.name in chosen]


def _some(names: list[str], known: Collection[str], draw: Callable[[], float]) -> list[str]:
    if len(names) <= NEIGHBOURS:
        return names
    return sorted(names, key=lambda name: (name not in known, draw()))[:NEIGHBOURS]


def choose_holder(holders: Sequence[str], standings: Mapping[str, Standing], now: float) -> str | None:
    """Return the holder from which one more stream would get a piece the soonest, None of none.

    Of equals that is the one that was asked the least often so far, and of those the first. ``holders`` are names in
    the order of preference; one without a standing is new and costs nothing. One that was not measured yet is taken for
    as fast as the fastest, so that it is tried.
    """
    known = [standings.get(name, Standing()) for name in holders]
    best = max((standing.rate for standing in known), default=0.0)
    times = [(standing.cost(now) + 1) * (best / standing.rate if standing.rate else 1.0) for standing in known]
    places = sorted(range(len(holders)), key=lambda place: (times[place], known[place].asked))
    return holders[places[0]] if holders else None


def at_least(sets: Iterable[int]) -> tuple[int, ...]:
    """Return, for 1 to at most `MOST_COPIES` in turn, the pieces that are in at least so many of the sets."""
    levels: list[int] = []
    for pieces in sets:
        rest = pieces
        for place, level in enumerate(levels):
            levels[place], rest = level | rest, level & rest
        if rest and len(levels) < MOST_COPIES:
            levels.append(rest)
    return tuple(levels)


def rarest(pieces: int, levels: Sequence[int]) -> int:
    """Return those of the pieces of which there are the fewest copies; ``levels`` as `at_least` makes them."""
    return next((few for level in levels if (few := pieces & ~level)), pieces)


def first(pieces: int, after: int = 0) -> int:
    """Return the lowest number in a set from ``after`` on, or the lowest of all where there is none.

    Raises:
        ValueError: the set is empty.
    """
    found = pieces >> after << after or pieces
    if not found:
        raise ValueError("there is no piece to choose from")
    return (found & -found).bit_length() - 1


def set_of(members: Iterable[bool]) -> int:
    """Return the set of the pieces, in their order, that are said to be members."""
    return int("".join("1" if each else "0" for each in members)[::-1] or "0", 2)


def encode_set(pieces: int, count: int) -> bytes:
    """Return a set of the numbers below ``count`` as bytes, 8 pieces each, the lowest bit of the first one first."""
    return pieces.to_bytes(-(-count // 8), "little")


def decode_set(data: bytes, count: int) -> int:
    """Return the set that `encode_set` made bytes of; what is beyond ``count`` is left out."""
    return int.from_bytes(data, "little") & ((1 << count) - 1)


def numbers(pieces: int) -> Iterator[int]:
    """Yield the numbers in a set, the lowest first."""
    while pieces:
        low = pieces & -pieces
        yield low.bit_length() - 1
        pieces ^= low


def runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the runs of numbers that follow one another, as (first, end), the end excluded."""
    first = numbers[0] if numbers else 0
    for number, following in pairwise(numbers):
        if following != number + 1:
            yield first, number + 1
            first = following
    if numbers:
        yield first, numbers[-1] + 1


def encode_numbers(numbers: Sequence[int]) -> str:
    """Return numbers as text, in their order: ``0-63,70``."""
    return ",".join(str(first) if end == first + 1 else f"{first}-{end - 1}" for first, end in runs(numbers))


def parse_numbers(text: str, count: int) -> list[int]:
    """Return the numbers that `encode_numbers` made text of, each below ``count``.

    Raises:
        BadInput: the text is none that it makes, or a number is too high, or there are more than ``count`` of them.
    """
    found: list[int] = []
    for part in text.split(","):
        match = _RUN.fullmatch(part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if not first <= last < count or len(found) + last - first >= count:
            raise BadInput(f"{text[:40]!r} does not name pieces out of {count} in the form '0-63,70'")
        found += range(first, last + 1)
    return found


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
