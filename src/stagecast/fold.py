"""The fold: everything a process knows, made from the messages of the log and nothing else. No I/O, no clock.

Two processes that have folded the same log to the same sequence hold the same picture, whatever they saw on the way:
every message is keyed by its payload, an operation's records merge by their rank, and of everything else the last word
in the log's order counts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Final, Literal, TypeVar

import msgspec

from stagecast import broadcast, operations, subjects
from stagecast.messages import (
    Entry,
    Holding,
    Horizon,
    Instance,
    Limits,
    NodeRecord,
    Placement,
    Record,
    StagingStatus,
)
from stagecast.mirror import Mirror, mirror_of, speaks_of
from stagecast.revision import Revision, is_one_stream

FOREIGN_LIFETIME: Final = 60.0
"""Seconds after its last event at which a mirror of unknown ownership expires (WIRE section 1)."""

What = Literal[
    "operation", "foreign", "node", "holding", "placement", "instance", "limits", "horizon", "nothing", "malformed"
]  # fmt: skip
_Message = TypeVar("_Message", NodeRecord, Holding, Placement, Instance, Limits, Horizon)


class Slot(msgspec.Struct, frozen=True):
    """An operation's record, and the sequence at which it came to stand."""

    record: Record
    sequence: int
    time: float = 0.0
    """The server's clock when it came, in seconds since 1970."""


class Change(msgspec.Struct, frozen=True):
    """What one message did.

    ``displaced``: a record that the log's last word on its subject should be, but is not. ``unseated``: a foreign
    operation whose last event the message was written over, so that a replica that starts now would not know of it.
    ``outlived``: a foreign operation that has ended, while the subject of its own that it was given says otherwise.
    ``forgotten``: what a horizon has made the fold forget.
    """

    what: What
    id: str = ""
    displaced: Record | None = None
    unseated: Mirror | None = None
    outlived: Mirror | None = None
    forgotten: tuple[Slot | Mirror, ...] = ()


@dataclass
class Fold:
    """The whole picture at one revision.

    ``slots`` and ``mirrors`` stand in the order in which their last words came, so that what is new since a sequence
    is found at their ends.
    """

    revision: Revision = field(default_factory=lambda: Revision("", 0))
    slots: dict[str, Slot] = field(default_factory=dict)
    mirrors: dict[str, Mirror] = field(default_factory=dict)
    nodes: dict[str, NodeRecord] = field(default_factory=dict)
    holdings: dict[tuple[str, str], Holding] = field(default_factory=dict)
    held_at: dict[tuple[str, str], int] = field(default_factory=dict)
    """The sequences at which the holdings stand."""
    placements: dict[str, Placement] = field(default_factory=dict)
    instances: dict[tuple[str, str], Instance] = field(default_factory=dict)
    horizon: Horizon = field(default_factory=Horizon)
    horizon_at: int = 0
    """The sequence at which the horizon stands; 0 where there is none."""
    limits: Limits = field(default_factory=Limits)
    _live: dict[str, Slot] = field(default_factory=dict)
    _moving: dict[str, str] = field(default_factory=dict)
    _jobs: dict[str, str] = field(default_factory=dict)
    _calls: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    _calls_at: dict[str, int] = field(default_factory=dict)
    _besides: dict[str, set[str]] = field(default_factory=dict)
    _subjects: dict[str, str] = field(default_factory=dict)
    _stagings: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    _mirror_jobs: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    _homes: set[str] = field(default_factory=set)
    _seats: defaultdict[str, dict[str, None]] = field(default_factory=lambda: defaultdict(dict))

    def __post_init__(self) -> None:
        """Put what a fold is made with in order, and find it again by its other names."""
        slots, mirrors, self.slots, self.mirrors = self.slots, self.mirrors, {}, {}
        for slot in sorted(slots.values(), key=lambda slot: slot.sequence):
            self._put_slot(slot)
        for mirror in sorted(mirrors.values(), key=lambda mirror: mirror.sequence):
            self._put_mirror(mirror)

    def apply(self, entry: Entry) -> Change:
        """Take one message of the log, in the log's order, and return what it did."""
        if entry.sequence > self.revision.sequence:
            self.revision = Revision(self.revision.identity, entry.sequence)
        prefix, _, rest = entry.subject.partition(".")
        try:
            if prefix == "stagecast":
                return self._apply_own(rest.partition(".")[0], entry)
            return self._apply_event(broadcast.decode(prefix, entry.payload), entry)
        except msgspec.DecodeError:
            return Change("malformed", entry.subject, self._displaced_by(entry), self._unseated_by(entry))

    def record(self, operation: str) -> Record | None:
        """Return the record of an operation by its id or its job, ended or not."""
        slot = self.slots.get(operation) or self.slots.get(self._jobs.get(operation, ""))
        return slot.record if slot else None

    def call(self, identifier: str) -> list[Slot]:
        """Return the operations that one call asked for, by node: what changes one of them changes all their rows.

        Those that were under way before the call, and have another one of their own, are among them.
        """
        found = {name: self.slots[name] for name in self._calls.get(identifier, ())}
        for job in {job for slot in found.values() for job in slot.record.beside}:
            name = self._jobs.get(job, "")
            if name in self.slots:
                found[name] = self.slots[name]
        return sorted(found.values(), key=lambda slot: (slot.record.node, slot.record.id))

    def calls_of(self, record: Record) -> dict[str, None]:
        """Return the calls that tell of a run, its own first."""
        own = {record.call: None} if record.call else {}
        return own | dict.fromkeys(self._besides.get(record.job, ()))

    def mirror(self, operation: str) -> Mirror | None:
        """Return a foreign operation by its id or its job."""
        named = {operation, *self._mirror_jobs.get(operation, ())}
        found = [self.mirrors[name] for name in named if name in self.mirrors]
        return min(found, key=lambda mirror: (mirror.done, -mirror.sequence), default=None)

    def live(self) -> Iterator[Record]:
        """Yield the records of all operations that have not ended."""
        return (slot.record for slot in self._live.values())

    def live_slots(self) -> Iterator[Slot]:
        """Yield the slots of all operations that have not ended."""
        return iter(self._live.values())

    def moving(self) -> set[str]:
        """Return the processes that move bytes of models, or may do so still though nobody hears of them."""
        return set(self._moving.values())

    def slots_after(self, sequence: int) -> Iterator[Slot]:
        """Yield what came to stand after ``sequence``, the latest first; costs no more than what it yields."""
        return takewhile(lambda slot: slot.sequence > sequence, reversed(self.slots.values()))

    def changed_at(self, call: str) -> int:
        """Return the sequence at which an operation of the call changed last, came or went."""
        return self._calls_at.get(call, 0)

    def calls_after(self, sequence: int) -> Iterator[str]:
        """Yield the calls of which an operation has changed, come or gone after ``sequence``, the latest first."""
        return (call for call, _ in takewhile(lambda each: each[1] > sequence, reversed(self._calls_at.items())))

    def mirrors_after(self, sequence: int) -> Iterator[Mirror]:
        """Yield the foreign operations of which there is news after ``sequence``, the latest first."""
        return takewhile(lambda mirror: mirror.sequence > sequence, reversed(self.mirrors.values()))

    def is_shadowed(self, mirror: Mirror) -> bool:
        """Tell whether a mirror speaks of an operation that one of us owns: then ours is the truth, and it an echo."""
        names = self._stagings.get(mirror.model, ()) if isinstance(mirror.status, StagingStatus) else (mirror.id,)
        return any(speaks_of(mirror, self._live[name].record) for name in names if name in self._live)

    def copies(self, model: str) -> list[Holding]:
        """Return who holds a model or is reading it in, by node; nodes that have left excepted."""
        found = [each for (_, name), each in self.holdings.items() if name == model and self._stands(each)]
        return sorted(found, key=lambda holding: holding.node)

    def holders(self, model: str) -> list[Holding]:
        """Return who holds a model whole, by node."""
        return [holding for holding in self.copies(model) if holding.state == "held"]

    def models(self) -> list[str]:
        """Return the names of all models that some node holds or is reading in."""
        return sorted({name for (_, name), holding in self.holdings.items() if self._stands(holding)})

    def instance(self, node: str, model: str) -> Instance | None:
        """Return a worker's backend for a model, if the process that reported it is still the node's own."""
        found, record = self.instances.get((node, model)), self.nodes.get(node)
        return found if found and record and found.process == record.process else None

    def expired(self, now: float) -> Iterator[Mirror]:
        """Yield the mirrors whose last event is older than `FOREIGN_LIFETIME`; ``now`` is the server's clock, or 0.

        One that is as far in the future was dated by a clock that was put right since: how old it is nobody can tell.
        """
        far = FOREIGN_LIFETIME
        return (mirror for mirror in self.mirrors.values() if now and not mirror.done and abs(now - mirror.time) >= far)

    def _stands(self, holding: Holding) -> bool:
        node = self.nodes.get(holding.node)
        return holding.state != "gone" and node is not None and not node.left

    def _apply_own(self, noun: str, entry: Entry) -> Change:
        if noun == "node":
            node = _decode(entry, NodeRecord)
            self.nodes[node.name] = node
            return Change("node", node.name)
        if noun == "holding":
            holding = _decode(entry, Holding)
            self.holdings[holding.node, holding.model] = holding
            self.held_at[holding.node, holding.model] = entry.sequence
            return Change("holding", holding.model)
        if noun == "placement":
            placement = _decode(entry, Placement)
            self.placements[placement.model] = placement
            return Change("placement", placement.model)
        if noun == "instance":
            instance = _decode(entry, Instance)
            self.instances[instance.node, instance.model] = instance
            return Change("instance", instance.model)
        if noun == "horizon":
            return self._apply_horizon(_decode(entry, Horizon), entry.sequence)
        if noun == "limits":
            self.limits = _decode(entry, Limits)
            return Change("limits")
        return Change("nothing", entry.subject)

    def _apply_horizon(self, horizon: Horizon, sequence: int) -> Change:
        """Forget what lies beyond a horizon; one of another stream, that came too late, says nothing of this one."""
        through = horizon.through if is_one_stream(horizon.through, sequence) else 0
        kept = frozenset(horizon.kept)
        slots = takewhile(lambda slot: slot.sequence <= through, self.slots.values())
        mirrors = takewhile(lambda mirror: mirror.sequence <= through, self.mirrors.values())
        gone = [slot for slot in slots if through - slot.sequence not in kept]
        gone_mirrors = [mirror for mirror in mirrors if through - mirror.sequence not in kept]
        for slot in gone:
            self._drop_slot(slot.record, sequence)
        for mirror in gone_mirrors:
            self._drop_mirror(mirror)
        self.horizon, self.horizon_at = msgspec.structs.replace(horizon, through=through), sequence
        return Change("horizon", forgotten=(*gone, *gone_mirrors))

    def _drop_slot(self, record: Record, sequence: int) -> None:
        del self.slots[record.id]
        self._live.pop(record.id, None)
        self._moving.pop(record.id, None)
        del self._subjects[subjects.operation(record)]
        if self._jobs.get(record.job) == record.id:
            del self._jobs[record.job]
        if record.call:
            self._leave_call(record)
        for call in self.calls_of(record):
            self._touch(call, sequence)
        if record.kind == "staging":
            self._stagings[record.model].discard(record.id)
            if not self._stagings[record.model]:
                del self._stagings[record.model]

    def _drop_mirror(self, mirror: Mirror) -> None:
        del self.mirrors[mirror.id]
        self._homes.discard(mirror.id)
        self._mirror_jobs[mirror.job].discard(mirror.id)
        if not self._mirror_jobs[mirror.job]:
            del self._mirror_jobs[mirror.job]
        self._seats[mirror.subject].pop(mirror.id, None)
        if not self._seats[mirror.subject]:
            del self._seats[mirror.subject]

    def _apply_event(self, event: broadcast.Event, entry: Entry) -> Change:
        if event.op is not None:
            return self._apply_record(event.op, entry)
        mirror = mirror_of(event, entry)
        displaced = self._displaced_by(entry)
        if mirror is None:
            return Change("malformed", entry.subject, displaced, self._unseated_by(entry))
        unseated = self._unseated_by(entry, mirror.id)
        self._put_mirror(mirror)
        return Change("foreign", mirror.id, displaced, unseated, mirror if self._outlives_its_home(mirror) else None)

    def _outlives_its_home(self, mirror: Mirror) -> bool:
        """Tell whether a foreign operation has ended, and the subject of its own shows it as running still."""
        if mirror.subject == subjects.mirror(mirror.subject.partition(".")[0], mirror.id):
            (self._homes.discard if mirror.done else self._homes.add)(mirror.id)
        return mirror.done and mirror.id in self._homes

    def _apply_record(self, record: Record, entry: Entry) -> Change:
        held = self.slots.get(record.id)
        if held is not None and operations.outranks(held.record, record):
            return Change("nothing", record.id, held.record)
        self._put_slot(Slot(record, entry.sequence, entry.time))
        if self.mirrors:
            self._silence_mirrors(record, entry)
        return Change("operation", record.id)

    def _put_slot(self, slot: Slot) -> None:
        record, held = slot.record, self.slots.pop(slot.record.id, None)
        self.slots[record.id] = slot
        if operations.is_ended(record):
            self._live.pop(record.id, None)
        else:
            self._live[record.id] = slot
        if operations.is_moving(record):
            self._moving[record.id] = record.owner
        else:
            self._moving.pop(record.id, None)
        if held is None or not _is_same_run(held.record, record):
            self._name(record, held.record if held else None)
        touched = self.calls_of(record) | (self.calls_of(held.record) if held else {})
        for call in touched:
            self._touch(call, slot.sequence)

    def _name(self, record: Record, held: Record | None) -> None:
        """Let an operation be found by its job, its subject and its model."""
        if held is not None and self._jobs.get(held.job) == record.id:
            del self._jobs[held.job]
        if held is not None and held.call:
            self._leave_call(held)
        if record.call:
            self._calls[record.call].add(record.id)
            for job in record.beside:
                self._besides.setdefault(job, set()).add(record.call)
        self._jobs[record.job] = record.id
        self._subjects[subjects.operation(record)] = record.id
        if record.kind == "staging":
            self._stagings[record.model].add(record.id)

    def _leave_call(self, held: Record) -> None:
        """Take a run out of its call, and from those beside it what only this run has told of them."""
        self._calls[held.call].discard(held.id)
        told = {job for name in self._calls[held.call] for job in self.slots[name].record.beside}
        for job in set(held.beside) - told:
            calls = self._besides[job]
            calls.discard(held.call)
            if not calls:
                del self._besides[job]

    def _touch(self, call: str, sequence: int) -> None:
        """Note that the parts of a call have changed; forget the call once it has none."""
        self._calls_at.pop(call, None)
        if self._calls[call]:
            self._calls_at[call] = sequence
        else:
            del self._calls[call]

    def _put_mirror(self, mirror: Mirror) -> None:
        held = self.mirrors.pop(mirror.id, None)
        if held is not None:
            self._mirror_jobs[held.job].discard(held.id)
            self._seats[held.subject].pop(held.id, None)
        self.mirrors[mirror.id] = mirror
        self._mirror_jobs[mirror.job].add(mirror.id)
        self._seats[mirror.subject][mirror.id] = None

    def _silence_mirrors(self, record: Record, entry: Entry) -> None:
        """End what a record of ours shows to be an echo, and what it was written over: the log has that no more."""
        there = self._seats.get(entry.subject, ())
        for name in [*there, record.id, f"staging:{record.model}"]:
            mirror = self.mirrors.get(name)
            if mirror is not None and not mirror.done and (name in there or speaks_of(mirror, record)):
                self._put_mirror(replace(mirror, done=True, sequence=entry.sequence))

    def _unseated_by(self, entry: Entry, newcomer: str = "") -> Mirror | None:
        seated = next(reversed(self._seats.get(entry.subject, {})), "")
        mirror = self.mirrors.get(seated)
        return mirror if mirror is not None and not mirror.done and mirror.id != newcomer else None

    def _displaced_by(self, entry: Entry) -> Record | None:
        slot = self.slots.get(self._subjects.get(entry.subject, ""))
        return slot.record if slot else None


def _is_same_run(one: Record, other: Record) -> bool:
    return one.job == other.job and one.call == other.call and one.model == other.model and one.kind == other.kind


def _decode(entry: Entry, message: type[_Message]) -> _Message:
    return msgspec.json.decode(entry.payload, type=message)
