"""Leases: who is taken for alive, and what becomes of the operations of the dead. Pure; ``now`` is monotonic time.

A lease is timed from when its renewal was received here. Nobody compares two machines' clocks, and a process that has
itself slept grants everybody a fresh lease before it judges.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from stagecast import operations
from stagecast.fold import Fold, Slot
from stagecast.messages import MODEL_KINDS, Kind, Record

RENEWAL: Final = 2.0
"""Seconds between two renewals of a lease."""
LIFETIME: Final = 8.0
"""Seconds after its last renewal at which a process is taken for dead; a row is stalled within 10 s (law L7)."""
PATIENCE: Final = 120.0
"""Seconds after which a node that stays away has its operations ended as failed."""
MEMORY: Final = 600.0
"""Seconds after which a process that was not heard, and that no operation and no node names, is forgotten."""
NAP: Final = 2.0
"""A judge that has not looked for this many seconds has slept, and cannot say who was silent meanwhile."""


@dataclass
class Leases:
    """When each process was last heard here."""

    heard: dict[str, float] = field(default_factory=dict)
    left: set[str] = field(default_factory=set)
    performs: dict[str, tuple[Kind, ...]] = field(default_factory=dict)
    looked: float = float("-inf")
    forgiven: float = float("inf")

    def renew(self, process: str, now: float, performs: tuple[Kind, ...] = ()) -> None:
        """Note a sign of life, and which kinds of work a process takes."""
        self.heard[process] = now
        self.performs[process] = performs
        self.left.discard(process)

    def leave(self, process: str) -> None:
        """Note that a process said goodbye."""
        self.left.add(process)

    def look(self, now: float) -> None:
        """Note that the judge is awake at ``now``; after a nap everybody gets a fresh lease."""
        if now - self.looked > NAP:
            self.forgive(now)
        self.looked = now

    def forgive(self, now: float) -> None:
        """Begin everybody's lease anew: nobody could be heard until ``now``."""
        self.heard = dict.fromkeys(self.heard, now)
        self.forgiven = now

    def forget(self, fold: Fold, now: float) -> None:
        """Drop who has been silent for long, but whom the fold names: one never heard of would begin a lease."""
        for process in self.left:
            self.heard.setdefault(process, now)
        silent = {process for process, heard in self.heard.items() if now - heard >= MEMORY}
        if silent:
            silent -= {node.process for node in fold.nodes.values()}
            silent -= {record.owner for record in fold.live()}
        for process in silent:
            del self.heard[process]
            self.performs.pop(process, None)
        self.left -= silent

    def silence(self, process: str, now: float) -> float:
        """Return for how many seconds a process was not heard. One never heard of begins its lease now."""
        return now - self.heard.setdefault(process, now)

    def is_alive(self, process: str, now: float) -> bool:
        """Tell whether a process holds its lease."""
        return process not in self.left and self.silence(process, now) < LIFETIME

    def performed(self, now: float) -> frozenset[Kind] | None:
        """Return the kinds of work that some living process takes; None where not everybody can have been heard yet."""
        if now - self.forgiven < LIFETIME:
            return None
        living = [process for process in self.performs if self.is_alive(process, now)]
        return frozenset(kind for process in living for kind in self.performs[process])


def verdicts(
    fold: Fold, leases: Leases, now: float, wall: float, performed: frozenset[Kind] = frozenset()
) -> Iterator[tuple[Slot, Record]]:
    """Yield each slot whose operation waits for a dead process, with the record that says so.

    ``wall`` is what the records are dated with, ``performed`` the kinds of other programs' work that somebody takes.
    The caller writes them with a compare-and-set on the slot's sequence.
    """
    alive: dict[str, bool] = {}
    for slot in fold.live_slots():
        record = slot.record
        process = record.owner or responsible(fold, record)
        is_alive = alive.get(process)
        if is_alive is None:
            is_alive = alive[process] = not process or leases.is_alive(process, now)
        if is_alive or record.state == "paused":
            continue
        who = f"node {record.node}" if record.node else f"its owner {record.owner}"
        if leases.silence(process, now) >= PATIENCE:
            yield slot, operations.ended(record, "failed", wall, error=f"{who} stayed away for {PATIENCE:.0f} s")
        elif record.state != "stalled" or record.waits_on != "owner":
            yield slot, operations.stalled(record, f"{who} does not answer; {_what_follows(record, performed)}", wall)


def unattended(fold: Fold, performed: frozenset[Kind], wall: float) -> Iterator[tuple[Slot, Record]]:
    """Yield each slot of another program's work whose record must say that nobody performs it, or no longer may."""
    for slot in fold.live_slots():
        record = slot.record
        if record.state != "queued" or record.kind in MODEL_KINDS:
            continue
        lonely, is_performed = f"no living process performs {record.kind}; it waits for one", record.kind in performed
        if (record.note == lonely) is is_performed:
            yield slot, operations.succeeding(record, wall, note="" if is_performed else lonely)


def responsible(fold: Fold, record: Record) -> str:
    """Return the process that an operation waits for: its owner, or the node that is to claim it; empty if any may."""
    if record.owner:
        return record.owner
    node = fold.nodes.get(record.node)
    return node.process if node else ""


def _what_follows(record: Record, performed: frozenset[Kind]) -> str:
    if record.node or operations.is_bound(record):
        return f"it goes on when that is back, and fails once it was away for {PATIENCE:.0f} s"
    if record.kind in MODEL_KINDS or record.kind in performed:
        return "another process takes it over"
    return f"it fails after {PATIENCE:.0f} s, unless a process that performs {record.kind} takes it over"
