"""What of a node's disk may go, and what goes first: leftovers that nobody needs, then what was used longest ago.

Sizes are bytes, times seconds since 1970.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Final, Literal, NamedTuple

import msgspec

from stagecast.messages import Record

GC: Final = "gc"
"""The cause of a deletion that nobody asked for by name."""
LEFTOVERS: Final = ".leftovers"
"""What a deletion of all leftovers of a node has in the place of a model's name: no model can be called that."""
JUST_USED: Final = 60.0
"""Seconds for which a model counts as being served after its last use: a pull asks for one piece after the other."""

_LIVE: Final = frozenset({"queued", "running", "paused", "stalled"})


class Copy(msgspec.Struct, frozen=True, kw_only=True):
    """A model on a node's disk, which came at ``came_at`` and was used last at ``used_at``, 0 for never.

    ``keep`` says why it may not go; empty: it may.
    """

    model: str
    bytes: int
    came_at: float = 0.0
    used_at: float = 0.0
    pinned: bool = False
    keep: str = ""


class Leftover(msgspec.Struct, frozen=True, kw_only=True):
    """What lies in a workshop that is no whole model. ``bytes`` as the disk counts them; ``keep`` as in `Copy`.

    ``partial``: of a staging; ``draft``: of an installation; ``trash``: of a deletion that was cut off.
    """

    folder: str
    kind: Literal["partial", "draft", "trash"]
    model: str = ""
    digest: str = ""
    bytes: int = 0
    changed_at: float = 0.0
    keep: str = ""


class Inventory(msgspec.Struct, frozen=True, kw_only=True):
    """All that lies on a node's disk. ``excess``: how many bytes more than its budget allows.

    ``disk_reserved`` is what was promised of the disk as far as the node can see, ``reserved_here`` that of its folder.
    """

    node: str
    volume: str
    disk_free: int
    disk_total: int
    disk_reserved: int
    reserved_here: int = 0
    excess: int = 0
    copies: list[Copy] = []
    leftovers: list[Leftover] = []


class Budget(NamedTuple):
    """How much of a disk models may take in all, and how much of it is to stay free; 0 for no such bound."""

    limit: int = 0
    keep_free: int = 0

    def excess(self, used: int, free: int, more: int = 0, beside: int = 0) -> int:
        """Return how many bytes have to go so that ``more`` fit in. Without any bound, none ever has to.

        ``beside`` come to the disk as well, but not to these models.
        """
        over_limit = used + more - self.limit if self.limit else 0
        return max(0, over_limit, free_missing(free, self.keep_free + more + beside) if self else 0)

    def __bool__(self) -> bool:
        """Tell whether there is any bound."""
        return bool(self.limit or self.keep_free)


def free_missing(free: int, wanted: int) -> int:
    """Return how many bytes have to go for ``wanted`` to be free."""
    return max(0, wanted - free)


def orphans(leftovers: Iterable[Leftover]) -> list[Leftover]:
    """Return the leftovers that nobody needs."""
    return [each for each in leftovers if not each.keep]


def turn(copy: Copy) -> tuple[float, str]:
    """Return what models go by: when one was used last, or came, and its name."""
    return max(copy.used_at, copy.came_at), copy.model


def chosen(copies: Iterable[Copy], excess: int) -> list[Copy]:
    """Return what is to go so that ``excess`` bytes are freed: what was used longest ago first, and no more than that.

    What was never used counts from when it came. All that may go is not enough where what may not is too much.
    """
    found, freed = [], 0
    for copy in sorted((each for each in copies if not each.keep), key=turn):
        if freed >= excess:
            break
        found.append(copy)
        freed += copy.bytes
    return found


def why_kept(
    model: str, *, pinned: bool, loaded: bool, used_at: float, now: float, records: Sequence[Record],
    elsewhere: Collection[str],
) -> str:  # fmt: skip
    """Return why a model may not be evicted, or nothing. ``elsewhere``: other folders with a copy.

    ``records`` are those of all nodes. Of two nodes that want their copies to go at once, the one whose deletion stands
    later on the log sees the other's, or that the copy there is gone: never do both.
    """
    at_it = next((each.kind for each in records if each.model == model and each.state in _LIVE), "")
    if pinned:
        return "pinned"
    if loaded:
        return "loaded"
    if at_it:
        return f"{at_it} is under way"
    if abs(now - used_at) < JUST_USED:
        return "used just now"
    return "" if elsewhere else "the last copy"


def why_left(leftover: Leftover, records: Iterable[Record]) -> str:
    """Return why a leftover may not be cleaned, or nothing: what goes on with it, or could be asked to.

    ``records``: the stagings onto the nodes of this disk, and all installations.
    """
    kind = {"partial": "staging", "draft": "installation"}.get(leftover.kind, "")
    for record in records:
        if record.kind != kind or record.model != leftover.model:
            continue
        if leftover.digest and record.parameters.get("digest", leftover.digest) != leftover.digest:
            continue
        if record.state in _LIVE:
            return f"its {kind} is {record.state}"
        if record.state == "failed" and not record.dismissed:
            return f"its {kind} failed and can be retried"
        if record.state == "cancelled" and record.keep_partial:
            return f"its {kind} was cancelled to be gone on with"
    return ""
