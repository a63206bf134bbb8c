"""A collection: what of one node's disk is to go, and the deletions that make it go.

Each model, and all leftovers of a node together, is a deletion of that node's like any other: it is on the log, it has
an end, and that comes only after the files are gone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stagecast.eviction import GC, LEFTOVERS, Copy, Inventory, Leftover, chosen, orphans
from stagecast.messages import Record
from stagecast.tracker import Tracker


@dataclass(frozen=True)
class Collection:
    """What is to go of a node's disk: ``bytes`` in all."""

    node: str
    copies: Sequence[Copy]
    leftovers: Sequence[Leftover]
    bytes: int

    def told(self, freed: Mapping[tuple[str, str], int]) -> Collection:
        """Return what has gone, by the bytes that the deletions have freed: of what was kept after all, none."""
        copies = [copy for copy in self.copies if freed[self.node, copy.model]]
        leftovers = freed[self.node, LEFTOVERS] if self.leftovers else 0
        count = sum(freed[self.node, copy.model] for copy in copies) + leftovers
        return Collection(self.node, copies, self.leftovers if leftovers else [], count)


def collection(inventory: Inventory, excess: int, older_than: float = float("inf")) -> Collection:
    """Return all leftovers that nobody needs, and models as far as ``excess`` bytes are still too much then.

    ``older_than``: only leftovers that changed last before that time, in seconds since 1970.
    """
    lone = [each for each in orphans(inventory.leftovers) if each.changed_at < older_than]
    freed = sum(each.bytes for each in lone)
    copies = chosen(inventory.copies, max(0, excess - freed))
    return Collection(inventory.node, copies, lone, freed + sum(copy.bytes for copy in copies))


async def begin(tracker: Tracker, wanted: Collection) -> list[Record]:
    """Queue the deletions of a collection and return them. Each node does its own."""
    names = [copy.model for copy in wanted.copies] + ([LEFTOVERS] if wanted.leftovers else [])
    return [(await tracker.open("deletion", name, wanted.node, cause=GC))[0] for name in names]
