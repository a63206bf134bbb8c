"""Leftovers: what has arrived of a model on nodes that do not hold it whole, as their records tell. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from stagecast import operations
from stagecast.fold import Fold, Slot
from stagecast.messages import Record


def arrived(fold: Fold, model: str, node: str, digest: str) -> int:
    """Return how many bytes of a revision of a model a staging to ``node`` need not move any more."""
    slot = fold.slots.get(operations.operation_id("staging", model, node))
    if slot is None or slot.record.parameters.get("digest", digest) != digest or _is_freed(fold, slot, node):
        return 0
    return _bytes(slot.record)


def abandoned(fold: Fold, model: str) -> list[str]:
    """Return the nodes on which something of a model has arrived that no operation goes on with."""
    found = _ended(fold, model)
    return sorted({node for slot, node in found if _bytes(slot.record) and not _is_freed(fold, slot, node)})


def _ended(fold: Fold, model: str) -> Iterator[tuple[Slot, str]]:
    names = [operations.operation_id("staging", model, node) for node in fold.nodes]
    for name in [*names, operations.operation_id("installation", model)]:
        slot = fold.slots.get(name)
        if slot is not None and operations.is_ended(slot.record):
            # An installation has no node: what came lies with whoever brought it, and a process begins with its name.
            node = slot.record.node or slot.record.owner.rpartition("/")[0]
            if node in fold.nodes and not fold.nodes[node].left:
                yield slot, node


def _bytes(record: Record) -> int:
    """Return what a record says that lies there: a failed one leaves all, a cancelled one what it was to keep."""
    if record.state == "succeeded":
        return 0
    return record.bytes_kept if record.state == "cancelled" else record.bytes_done


def _is_freed(fold: Fold, slot: Slot, node: str) -> bool:
    """Tell whether a deletion there came after it."""
    deletion = fold.slots.get(operations.operation_id("deletion", slot.record.model, node))
    return deletion is not None and deletion.record.state == "succeeded" and deletion.sequence > slot.sequence
