"""Sizes, rates and times as people write and read them."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

from stagecast.errors import InvalidQuantity

MOST_SIZE: Final = 10**18
"""Bytes that no disk has: a million terabytes."""
MOST_RATE: Final = 10**15
"""Bytes that nothing moves in a second: a thousand terabytes."""
_FACTORS = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?b?)\s*(/s)?\s*", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Return the bytes that ``text`` says: ``2GiB``, ``512KiB``, ``100``. Raises `InvalidQuantity`."""
    return _parse(text, MOST_SIZE, per_second=False, example="2GiB or 500MB")


def parse_rate(text: str) -> int:
    """Return the bytes per second that ``text`` says: ``20MB/s``, ``512KiB/s``. Raises `InvalidQuantity`."""
    return _parse(text, MOST_RATE, per_second=True, example="20MB/s or 512KiB/s")


def _parse(text: str, most: int, *, per_second: bool, example: str) -> int:
    match = _QUANTITY.fullmatch(text)
    factor = _FACTORS.get(match[2].lower()) if match else None
    if match is None or factor is None or (match[3] and not per_second):
        raise InvalidQuantity(text, example)
    value = float(match[1]) * factor  # infinite for some hundred digits
    if value > most:
        raise InvalidQuantity(text, example, is_beyond=True)
    if value < 1:
        raise InvalidQuantity(text, example)
    return int(value)


def format_size(count: float) -> str:
    """Return ``count`` bytes for people, in decimal units: ``90.9 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def format_duration(seconds: float) -> str:
    """Return a span of time for people: ``8 s``, ``3 min 5 s``, ``2 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def format_time(epoch: float) -> str:
    """Return seconds since 1970 as RFC 3339 in UTC, to the millisecond: ``2026-11-24T01:48:00.123Z``."""
    return datetime.fromtimestamp(epoch, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def as_shown(epoch: float) -> float:
    """Return seconds since 1970 as `format_time` shows them: cut to the millisecond."""
    return round(epoch * 1e6) // 1000 / 1000


def parse_time(text: str) -> float:
    """Return RFC 3339 as seconds since 1970. Raises `ValueError`."""
    return datetime.fromisoformat(text).timestamp()
