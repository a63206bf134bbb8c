"""A collection: what of one node's disk is to go, and the deletions that make it go.

Each model, and all leftovers of a node together, is a deletion of that node's like any other: it is on the log, it has
an end, and that comes only after the files are gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import msgspec

from stagecast.eviction import GC, LEFTOVERS, Copy, Inventory, Leftover, chosen, free_missing, orphans, turn
from stagecast.fold import Fold
from stagecast.messages import KEPT, Record
from stagecast.tracker import Tracker
from stagecast.volume import disk_of


@dataclass(frozen=True)
class Collection:
    """What is to go of a node's disk: ``bytes`` in all. ``kept`` are models that stay though room is wanted."""

    node: str
    copies: Sequence[Copy]
    leftovers: Sequence[Leftover]
    bytes: int
    kept: Sequence[Copy] = ()

    def told(self, ends: Mapping[tuple[str, str], Record]) -> Collection:
        """Return what has gone, by how the deletions have ended: of what was kept after all, nothing, and why."""
        own = {model: record for (node, model), record in ends.items() if node == self.node}
        freed = {model: record.bytes_done for model, record in own.items()}
        # By how it ended, not by its bytes: one that shares all its files with another has gone for none.
        copies = [copy for copy in self.copies if _is_gone(own[copy.model])]
        stayed = [
            msgspec.structs.replace(copy, keep=own[copy.model].note.removeprefix(KEPT) or "not deleted")
            for copy in self.copies if not _is_gone(own[copy.model])
        ]  # fmt: skip
        leftovers = freed[LEFTOVERS] if self.leftovers else 0
        count = sum(freed[copy.model] for copy in copies) + leftovers
        return Collection(self.node, copies, self.leftovers if leftovers else [], count, [*self.kept, *stayed])


def _is_gone(record: Record) -> bool:
    return record.state == "succeeded" and not record.note.startswith(KEPT)


class Goal(NamedTuple):
    """That ``excess`` bytes go from a disk on which these inventories lie."""

    inventories: Sequence[Inventory]
    excess: int


def collection(inventory: Inventory, excess: int, older_than: float = float("inf")) -> Collection:
    """Return all leftovers that nobody needs, and models as far as ``excess`` bytes are still too much then.

    ``older_than``: only leftovers that changed last before that time, in seconds since 1970.
    """
    lone = [each for each in orphans(inventory.leftovers) if each.changed_at < older_than]
    freed = sum(each.bytes for each in lone)
    copies = chosen(inventory.copies, max(0, excess - freed))
    return _collection(inventory.node, copies, lone)


def shared_out(goal: Goal, elsewhere: Callable[[str, str], frozenset[str]]) -> list[Collection]:
    """Return what is to go of each node, all of one disk: leftovers first, then what was used longest ago anywhere.

    ``elsewhere``, of a node and a model: the other folders that hold it. The last of them all is not to go.
    """
    lone = {each.node: orphans(each.leftovers) for each in goal.inventories}
    excess = goal.excess - sum(left.bytes for lefts in lone.values() for left in lefts)
    going: dict[str, list[Copy]] = {each.node: [] for each in goal.inventories}
    kept: dict[str, list[Copy]] = {each.node: [] for each in goal.inventories}
    emptied: set[tuple[str, str]] = set()
    for inventory, copy in _by_use(goal.inventories):
        if excess <= 0:
            break
        if not any((volume, copy.model) not in emptied for volume in elsewhere(inventory.node, copy.model)):
            kept[inventory.node].append(msgspec.structs.replace(copy, keep="the last copy"))
            continue
        going[inventory.node].append(copy)
        emptied.add((inventory.volume, copy.model))
        excess -= copy.bytes
    return [_collection(node, copies, lone[node], kept[node]) for node, copies in going.items()]


def _collection(node: str, copies: list[Copy], lone: list[Leftover], kept: Sequence[Copy] = ()) -> Collection:
    count = sum(copy.bytes for copy in copies) + sum(left.bytes for left in lone)
    return Collection(node, copies, lone, count, kept)


def _by_use(inventories: Sequence[Inventory]) -> list[tuple[Inventory, Copy]]:
    """Return all copies that may go, by their last use, the longest ago first."""
    found = [(each, copy) for each in inventories for copy in each.copies if not copy.keep]
    return sorted(found, key=lambda pair: (turn(pair[1]), pair[0].node))


def goals(inventories: Sequence[Inventory], free: int) -> list[Goal]:
    """Return what is to go of each disk so that ``free`` bytes of it are free; 0: what each node's own budget says."""
    if not free:
        return [Goal([each], each.excess) for each in inventories]
    found = []
    for _, group in groupby(sorted(inventories, key=_disk_of), key=_disk_of):
        on_it = list(group)
        room = min(each.disk_free for each in on_it) - _reserved(on_it)
        found.append(Goal(on_it, free_missing(room, free)))
    return found


def _reserved(on_it: Sequence[Inventory]) -> int:
    """Return what was promised of one disk: what one node sees of it, or what is in all its folders, each once.

    Nodes of one machine see each other's promises; those of several, on one remote disk, do not.
    """
    in_folders = {each.volume: each.reserved_here for each in on_it}
    return max(sum(in_folders.values()), *(each.disk_reserved for each in on_it))


def _disk_of(inventory: Inventory) -> str:
    return disk_of(inventory.volume)


def waves(wanted: Sequence[Collection]) -> Iterator[list[Collection]]:
    """Yield the same in parts, one after the other: of several copies of a model each part has one.

    Of two that go at once, each would see that the other one is about to, and stay.
    """
    left = list(wanted)
    while any(each.copies or each.leftovers for each in left):
        models: set[str] = set()
        part, rest = [], []
        for each in left:
            now = [copy for copy in each.copies if copy.model not in models]
            models |= {copy.model for copy in now}
            part.append(Collection(each.node, now, each.leftovers, 0))
            rest.append(Collection(each.node, [copy for copy in each.copies if copy not in now], [], 0))
        yield part
        left = rest


def elsewhere(fold: Fold, node: str, model: str, is_alive: Callable[[str], bool]) -> frozenset[str]:
    """Return the other folders, by their volumes, in which living nodes hold the same revision of a node's model.

    Of nodes that share a folder each says for itself what is there, and so some moments late: what was said before a
    deletion in that folder ended does not count.
    """
    own, deleted = fold.holdings.get((node, model)), _deleted(fold, model)
    if own is None:
        return frozenset()
    found = {
        fold.nodes[each.node].volume
        for each in fold.holders(model)
        if each.digest == own.digest
        and is_alive(each.node)
        and fold.held_at[each.node, model] > deleted.get(fold.nodes[each.node].volume, 0)
    }
    return frozenset(found - {"", fold.nodes[node].volume})


def _deleted(fold: Fold, model: str) -> dict[str, int]:
    """Return at which sequence of the log a model was deleted last, by volume."""
    found: dict[str, int] = {}
    for slot in fold.slots.values():
        record, node = slot.record, fold.nodes.get(slot.record.node)
        if record.kind == "deletion" and record.model == model and record.bytes_done and node is not None:
            found[node.volume] = max(slot.sequence, found.get(node.volume, 0))
    return found


async def begin(tracker: Tracker, wanted: Collection) -> list[Record]:
    """Queue the deletions of a collection and return them. Each node does its own."""
    names = [copy.model for copy in wanted.copies] + ([LEFTOVERS] if wanted.leftovers else [])
    return [(await tracker.open("deletion", name, wanted.node, cause=GC))[0] for name in names]
