"""Rows: what people and programs see of an operation (WIRE section 3), derived when read. Pure.

A row depends on the fold alone, never on the reader's clock, so two replicas at one revision give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Literal

import msgspec

from stagecast import broadcast, operations
from stagecast.fold import Fold, Slot
from stagecast.messages import (
    Attempt,
    Bottleneck,
    GalleryStatus,
    Hindrance,
    Kind,
    Phase,
    Priority,
    Record,
    StagingStatus,
    State,
)
from stagecast.mirror import Mirror
from stagecast.quantities import as_shown, format_time, parse_time

_CAMEL = {
    "job_id": "jobID", "full_name": "fullName", "task_type": "taskType", "current_bytes": "currentBytes",
    "total_bytes": "totalBytes", "file_name": "fileName", "file_index": "fileIndex", "total_files": "totalFiles",
    "bytes_per_second": "bytesPerSecond", "eta_seconds": "etaSeconds", "node_name": "nodeName", "node_id": "nodeID",
    "is_deletion": "isDeletion", "is_backend": "isBackend", "is_queued": "isQueued", "started_at": "startedAt",
    "updated_at": "updatedAt", "begun_by": "begunBy", "duration_seconds": "durationSeconds",
    "bytes_moved": "bytesMoved", "mean_bytes_per_second": "meanBytesPerSecond", "ended_at": "endedAt",
    "stalled_since": "stalledSince", "stalled_on": "stalledOn", "kept_bytes": "keptBytes", "call_id": "callID",
    "limited_by": "limitedBy", "time_spent": "timeSpent",
}  # fmt: skip


class AttemptRow(msgspec.Struct, kw_only=True, rename=_CAMEL):
    """One attempt of a job. ``replaced``: it had no end of its own, and ``error`` says what it last waited for.

    ``startedAt`` is absent where nobody ever took it up.
    """

    attempt: int
    state: Literal["succeeded", "failed", "cancelled", "paused", "replaced"]
    owner: str
    error: str | msgspec.UnsetType = msgspec.UNSET
    started_at: str | msgspec.UnsetType = msgspec.UNSET
    ended_at: str


class NodeShare(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Where one node's part of a call stands. ``status`` is the operation's state, ``percentage`` 0 to 100."""

    node_name: str
    status: State
    percentage: float
    bytes_sent: int
    total_bytes: int
    file_name: str
    phase: Phase
    error: str | msgspec.UnsetType = msgspec.UNSET


class Row(msgspec.Struct, kw_only=True, rename=_CAMEL):
    """One operation as WIRE section 3 shows it. Sizes in bytes, ``progress`` 0 to 100, times RFC 3339 in UTC.

    ``nodes`` has the parts of all operations of the same call, where it asked for several. ``kept_bytes`` were left on
    the disk by a cancel that asked for it.

    Of what has ended also: ``cause`` and ``begunBy``, why the job and this attempt were begun; ``durationSeconds`` and
    ``bytesMoved`` of this attempt, ``meanBytesPerSecond`` over all of it; ``attempts``, the job's, this one the last.

    Of a staging ``priority``, and while it moves bytes ``limitedBy``: on what most of its time went just now. By its
    name, and in the history, ``timeSpent``: the parts of the time of all its streams, together 1. ``verification`` is
    there where it only reads a copy anew: what it found, empty until it has succeeded.
    """

    id: str
    job_id: str
    name: str
    full_name: str
    task_type: Kind
    state: State
    phase: Phase
    progress: int
    current_bytes: int
    total_bytes: int
    file_name: str
    file_index: int
    total_files: int
    bytes_per_second: float | msgspec.UnsetType = msgspec.UNSET
    eta_seconds: float | msgspec.UnsetType = msgspec.UNSET
    node_name: str
    node_id: str
    owner: str
    attempt: int
    is_deletion: bool
    is_backend: bool
    is_queued: bool
    cancellable: bool
    message: str
    error: str | msgspec.UnsetType = msgspec.UNSET
    dismissed: bool | msgspec.UnsetType = msgspec.UNSET
    started_at: str
    updated_at: str
    cause: str | msgspec.UnsetType = msgspec.UNSET
    begun_by: str | msgspec.UnsetType = msgspec.UNSET
    duration_seconds: float | msgspec.UnsetType = msgspec.UNSET
    bytes_moved: int | msgspec.UnsetType = msgspec.UNSET
    mean_bytes_per_second: float | msgspec.UnsetType = msgspec.UNSET
    attempts: list[AttemptRow] | msgspec.UnsetType = msgspec.UNSET
    stalled_since: str | msgspec.UnsetType = msgspec.UNSET
    stalled_on: Hindrance | msgspec.UnsetType = msgspec.UNSET
    kept_bytes: int | msgspec.UnsetType = msgspec.UNSET
    call_id: str | msgspec.UnsetType = msgspec.UNSET
    priority: Priority | msgspec.UnsetType = msgspec.UNSET
    limited_by: Bottleneck | msgspec.UnsetType = msgspec.UNSET
    time_spent: dict[Bottleneck, float] | msgspec.UnsetType = msgspec.UNSET
    verification: str | msgspec.UnsetType = msgspec.UNSET
    nodes: list[NodeShare] | msgspec.UnsetType = msgspec.UNSET

    def __iter__(self) -> Iterator[tuple[str, object]]:
        """Yield the fields under the names that the API has: ``dict(row)`` is what a web framework can answer with."""
        return iter(msgspec.to_builtins(self).items())


def row(record: Record, nodes: list[NodeShare] | None = None) -> Row:
    """Return the row of one of our own operations; ``nodes`` are the parts of its call, where that has several."""
    is_stalled = record.state == "stalled"
    rate, eta = _pace(record)
    return Row(
        id=record.id,
        job_id=record.job,
        name=record.model,
        full_name=record.model,
        task_type=record.kind,
        state=record.state,
        phase=record.phase,
        progress=int(broadcast.percentage(record)),
        current_bytes=record.bytes_done,
        total_bytes=record.bytes_total,
        file_name=record.file_name,
        file_index=record.file_index,
        total_files=record.total_files,
        bytes_per_second=rate,
        eta_seconds=eta,
        node_name=record.node,
        node_id=record.node,
        owner=record.owner,
        attempt=record.attempt,
        is_deletion=record.kind == "deletion",
        is_backend=False,
        is_queued=record.state == "queued",
        cancellable=operations.is_cancellable(record),
        message=broadcast.sentence(record),
        error=record.error if record.state == "failed" else msgspec.UNSET,
        dismissed=True if record.dismissed else msgspec.UNSET,
        started_at=format_time(record.started_at),
        updated_at=format_time(record.updated_at),
        stalled_since=format_time(record.waits_since or record.updated_at) if is_stalled else msgspec.UNSET,
        stalled_on=(record.waits_on or "owner") if is_stalled else msgspec.UNSET,
        kept_bytes=record.bytes_kept if record.keep_partial else msgspec.UNSET,
        call_id=record.call or msgspec.UNSET,
        nodes=nodes or msgspec.UNSET,
        priority=operations.priority(record) if record.kind == "staging" else msgspec.UNSET,
        limited_by=operations.bottleneck(record) or msgspec.UNSET,
        verification=_found(record) if operations.is_verification(record) else msgspec.UNSET,
    )


def _found(record: Record) -> str:
    return record.note if record.state == "succeeded" else ""


def detailed(record: Record, nodes: list[NodeShare] | None = None) -> Row:
    """Return the row of one operation with where its time went, and of an ended one with what only then can be told."""
    shown = row(record, nodes)
    shown.time_spent = _parts(record) or msgspec.UNSET
    if not operations.is_ended(record):
        return shown
    seconds, moved = operations.took(record), operations.moved(record)
    shown.cause = record.cause or msgspec.UNSET
    shown.begun_by = record.begun_by or msgspec.UNSET
    shown.duration_seconds = round(seconds, 3) if seconds is not None else msgspec.UNSET
    shown.bytes_moved = moved if moved is not None else msgspec.UNSET
    shown.mean_bytes_per_second = round(moved / seconds, 1) if moved and seconds else msgspec.UNSET
    shown.attempts = [_attempt(each) for each in operations.told(record)]
    return shown


def share(record: Record) -> NodeShare:
    """Return one operation's part of its call."""
    return NodeShare(
        node_name=record.node,
        status=record.state,
        percentage=round(broadcast.percentage(record), 2),
        bytes_sent=record.bytes_done,
        total_bytes=record.bytes_total,
        file_name=record.file_name,
        phase=record.phase,
        error=record.error if record.state == "failed" else msgspec.UNSET,
    )


def shares(fold: Fold, record: Record) -> list[NodeShare] | None:
    """Return the parts of the call that an operation is one of, by node; None where it is the only one."""
    slot = fold.slots.get(record.id)
    parts = fold.call(record.call) if record.call and slot and slot.record.call == record.call else []
    return [share(slot.record) for slot in parts] if len(parts) > 1 else None


def row_of(fold: Fold, record: Record) -> Row:
    """Return the row of one of our own operations, with its call's parts."""
    return row(record, shares(fold, record))


def mirror_row(mirror: Mirror) -> Row:
    """Return the row of an operation that a foreign publisher broadcasts."""
    status = mirror.status
    staging = status if isinstance(status, StagingStatus) else None
    gallery = status if isinstance(status, GalleryStatus) else None
    current = staging.bytes_sent if staging else gallery.current_bytes if gallery else 0
    deletion = gallery.deletion if gallery else False
    state = _mirror_state(mirror)
    return Row(
        id=mirror.id,
        job_id=mirror.job,
        name=mirror.model,
        full_name=mirror.model,
        task_type="staging" if staging else "deletion" if deletion else "installation",
        state=state,
        phase="transferring",
        progress=max(0, min(100, int(status.progress))) if status.progress == status.progress else 0,
        current_bytes=max(0, current),
        total_bytes=max(0, status.total_bytes),
        file_name=status.file_name,
        file_index=max(0, staging.file_index) if staging else 0,
        total_files=max(0, staging.total_files) if staging else 0,
        node_name=staging.node_name if staging else "",
        node_id=staging.node_name if staging else "",
        owner="",
        attempt=0,
        is_deletion=deletion,
        is_backend=False,
        is_queued=False,
        cancellable=gallery.cancellable and not mirror.done if gallery else False,
        message=status.message,
        error=mirror.error if state == "failed" else msgspec.UNSET,
        dismissed=True if state == "failed" else msgspec.UNSET,  # no list shows it, and nobody has to take it out
        started_at=mirror_start(mirror)[1],
        updated_at=format_time(mirror.time),
    )


def listed(fold: Fold) -> list[Row]:
    """Return the rows that people see now, sorted by start time, then id."""
    found = [
        (start(slot.record), row_of(fold, slot.record))
        for slot in fold.slots.values()
        if operations.is_listed(slot.record)
    ]
    found += [
        (mirror_start(mirror)[0], mirror_row(mirror)) for mirror in fold.mirrors.values() if is_shown(fold, mirror)
    ]
    return [shown for _, shown in sorted(found, key=lambda pair: (pair[0], pair[1].id))]


def changed(fold: Fold, after: int) -> list[tuple[int, Row]]:
    """Return the rows, ended ones too, that came to stand after the sequence ``after``, each with its own sequence.

    Before them come the listed rows of the same calls, for their parts have changed: with ``after`` itself, so that
    whoever breaks off among them is told again.
    """
    return [
        (at, row_of(fold, source.record) if isinstance(source, Slot) else mirror_row(source))
        for at, source in news(fold, after)
    ]


def news(fold: Fold, after: int) -> list[tuple[int, Slot | Mirror]]:
    """Return what the rows of `changed` are made of."""
    found: list[tuple[int, Slot | Mirror]] = [(after, slot) for slot in beside(fold, after)]
    found += [(slot.sequence, slot) for slot in fold.slots_after(after)]
    for mirror in fold.mirrors_after(after):
        source = _told(fold, mirror)
        if source is not None:
            found.append((mirror.sequence, source))
    return sorted(found, key=lambda pair: pair[0])


def beside(fold: Fold, after: int) -> list[Slot]:
    """Return the listed operations that did not change after ``after`` themselves, but others of their call did."""
    slots = (slot for call in fold.calls_after(after) for slot in fold.call(call) if slot.record.call == call)
    return [slot for slot in slots if slot.sequence <= after and operations.is_listed(slot.record)]


def is_shown(fold: Fold, mirror: Mirror) -> bool:
    """Tell whether a mirror stands in the list."""
    return not mirror.done and not fold.is_shadowed(mirror)


def _told(fold: Fold, mirror: Mirror) -> Slot | Mirror | None:
    """Return what a mirror's change shows under its id: it, or ours once it has gone; None where it is no news."""
    ours = fold.slots.get(mirror.id)
    if ours is not None and ours.sequence >= mirror.sequence:
        return None
    if mirror.done:
        return ours if ours is not None and operations.is_listed(ours.record) else mirror
    return None if fold.is_shadowed(mirror) else mirror


def _attempt(told: Attempt) -> AttemptRow:
    return AttemptRow(
        attempt=told.attempt,
        state=told.state,
        owner=told.owner,
        error=told.error or msgspec.UNSET,
        started_at=format_time(told.claimed_at) if told.claimed_at else msgspec.UNSET,
        ended_at=format_time(told.ended_at),
    )


def _pace(record: Record) -> tuple[float | msgspec.UnsetType, float | msgspec.UnsetType]:
    if record.state != "running" or not record.rate or record.rate <= 0:
        return msgspec.UNSET, msgspec.UNSET
    left = record.bytes_total - record.bytes_done
    eta = round(left / record.rate, 1) if record.phase == "transferring" and left > 0 else msgspec.UNSET
    return round(record.rate, 1), eta


def _parts(record: Record) -> dict[Bottleneck, float]:
    total = sum(record.spent.values())
    return {on: round(seconds / total, 3) for on, seconds in record.spent.items()} if total else {}


def _mirror_state(mirror: Mirror) -> State:
    if not mirror.done:
        return "running"
    if isinstance(mirror.status, GalleryStatus) and mirror.status.cancelled:
        return "cancelled"
    return "failed" if mirror.error else "succeeded"


def start(record: Record) -> float:
    """Return the start by which an operation stands in the list: as its row shows it, or ties would look unsorted."""
    return as_shown(record.started_at)


def mirror_start(mirror: Mirror) -> tuple[float, str]:
    """Return when a foreign operation began, in seconds since 1970 and as its publisher wrote it."""
    if isinstance(mirror.status, StagingStatus) and mirror.status.started_at:
        with suppress(ValueError, OverflowError):
            return parse_time(mirror.status.started_at), mirror.status.started_at
    return as_shown(mirror.time), format_time(mirror.time)
