"""The broadcasts of WIRE sections 1 and 2: from our records to events that others read, and back. Pure."""

from __future__ import annotations

from typing import Final

import msgspec

from stagecast.messages import (
    MODEL_KINDS,
    Bottleneck,
    GalleryEvent,
    GalleryStatus,
    Hindrance,
    OperationEvent,
    Record,
    StagingEvent,
    StagingStatus,
)
from stagecast.operations import bottleneck, is_cancellable, is_ended, is_verification
from stagecast.quantities import format_size, format_time

Event = StagingEvent | GalleryEvent | OperationEvent

_WHAT: Final = {"staging": "Staging", "installation": "Installing", "loading": "Loading", "deletion": "Deleting"}
_staging = msgspec.json.Decoder(StagingEvent)
_gallery = msgspec.json.Decoder(GalleryEvent)
_operation = msgspec.json.Decoder(OperationEvent)

_WAITS: Final[dict[Hindrance, str]] = {
    "source": "not a byte from the source",
    "network": "no connection to the source",
    "target disk": "the target disk takes no bytes",
    "room": "no room on the target disk",
    "backend": "no sign of life from the backend",
}
_LIMITS: Final[dict[Bottleneck, str]] = {
    "source": "the source",
    "network": "the network",
    "source or network": "the source or the network",
    "hash": "hashing",
    "target disk": "the target disk",
    "limit": "the rate limit",
}


def encode(record: Record) -> bytes:
    """Return the event that broadcasts ``record``, as it stands on the record's subject."""
    return msgspec.json.encode(event(record))


def event(record: Record) -> Event:
    """Return the event that broadcasts ``record``: what WIRE asks for, and the record itself in ``op``."""
    if record.kind == "staging":
        return StagingEvent(model_id=record.model, status=_staging_status(record), done=is_ended(record), op=record)
    if record.kind == "installation":
        return GalleryEvent(job_id=record.job, status=_gallery_status(record), op=record)
    return OperationEvent(op=record)


def decode(prefix: str, payload: bytes) -> Event:
    """Return the event on a subject that begins with ``prefix``.

    Raises:
        msgspec.DecodeError: not JSON, a field that must be there is missing, or a type is wrong.
    """
    if prefix == "staging":
        return _staging.decode(payload)
    if prefix == "gallery":
        return _gallery.decode(payload)
    return _operation.decode(payload)


def percentage(record: Record) -> float:
    """Return the progress by bytes over the whole manifest, 0 to 100; 100 once all of them are there."""
    if record.state == "succeeded":
        return 100.0
    if record.bytes_total <= 0:
        return 0.0
    return min(100.0 * record.bytes_done / record.bytes_total, 100.0)


def sentence(record: Record) -> str:
    """Return one line for people that says where the operation stands."""
    what = "Verifying" if is_verification(record) else _WHAT.get(record.kind, record.kind.capitalize())
    subject = f"{what} {record.model}" + (f" on {record.node}" if record.node else "")
    if record.state == "failed":
        return f"{subject} failed: {record.error}"
    if record.state == "running":
        return f"{subject}: {_standing(record)}"
    if record.state == "stalled":
        return f"{subject}: stalled ({_hindrance(record)})"
    if record.state == "cancelled":
        return f"{subject}: {_leavings(record)}"
    return f"{subject}: {record.state}" + (f" ({record.note})" if record.note not in {"", record.state} else "")


def _standing(record: Record) -> str:
    if record.kind not in MODEL_KINDS:
        # What is counted there is no matter of ours: frames, rows, documents.
        counted = f"{record.bytes_done:,} of {record.bytes_total:,}" if record.bytes_total else f"{record.bytes_done:,}"
        return counted + (f" ({record.note})" if record.note else "")
    if record.phase == "transferring" and record.bytes_total:
        limited_by = _LIMITS.get(bottleneck(record), "")
        of = f"{format_size(record.bytes_done)} of {format_size(record.bytes_total)}"
        return f"{of}, limited by {limited_by}" if limited_by else of
    return record.phase + (f" ({record.note})" if record.note else "")


def _hindrance(record: Record) -> str:
    """Return on what a stalled operation waits, since when, and what will happen next."""
    what = _WAITS.get(record.waits_on, "")
    said = f"{what} since {format_time(record.waits_since)[11:19]} UTC" if what and record.waits_since else what
    return "; ".join(part for part in (said, record.note) if part)


def _leavings(record: Record) -> str:
    """Return what became of the bytes that had arrived of a cancelled operation."""
    if record.kind not in {"staging", "installation"} or not (record.bytes_kept or record.bytes_done):
        return "cancelled"
    if record.keep_partial:
        return f"cancelled; {format_size(record.bytes_kept)} kept"
    return f"cancelled; {format_size(record.bytes_done)} freed" + (f" {record.note}" if record.note else "")


def _staging_status(record: Record) -> StagingStatus:
    return StagingStatus(
        model_id=record.model,
        node_name=record.node,
        file_name=record.file_name,
        bytes_sent=record.bytes_done,
        total_bytes=record.bytes_total,
        progress=round(percentage(record), 2),
        speed=f"{format_size(record.rate)}/s" if record.rate else "",
        file_index=max(1, record.file_index),
        total_files=max(1, record.total_files),
        message=sentence(record),
        started_at=format_time(record.started_at),
    )


def _gallery_status(record: Record) -> GalleryStatus:
    return GalleryStatus(
        file_name=record.file_name,
        error=record.error or msgspec.UNSET,
        processed=is_ended(record),
        message=sentence(record),
        progress=round(percentage(record), 2),
        phase=record.phase,
        current_bytes=record.bytes_done,
        total_bytes=record.bytes_total,
        gallery_element_name=record.model,
        cancelled=record.state == "cancelled",
        cancellable=is_cancellable(record),
    )
