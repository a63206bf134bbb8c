"""Mirrors: operations of publishers that speak WIRE sections 1 or 2 only, as their last events tell of them. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from stagecast import broadcast
from stagecast.messages import Entry, GalleryEvent, GalleryStatus, Record, StagingEvent, StagingStatus


@dataclass(frozen=True, slots=True)
class Mirror:
    """The last event of a publisher that speaks WIRE sections 1 or 2 only. ``done`` ones stay, to be told once."""

    id: str
    job: str
    model: str
    subject: str
    sequence: int
    time: float
    done: bool
    status: StagingStatus | GalleryStatus
    payload: bytes = b""
    error: str = ""
    """Why it failed, where that is known."""


def speaks_of(mirror: Mirror, record: Record) -> bool:
    """Tell whether a foreign event can be about the very work that ``record`` is about."""
    if isinstance(mirror.status, GalleryStatus):
        return record.id == mirror.id
    is_staging = record.kind == "staging" and record.model == mirror.model
    return is_staging and mirror.status.node_name in {"", record.node}


def mirror_of(event: broadcast.Event, entry: Entry) -> Mirror | None:
    """Return what a foreign event tells; None where it names nothing."""
    if isinstance(event, StagingEvent):
        job = model = event.model_id
        done = event.done
        id_, error = f"staging:{model}", event.error
        status: StagingStatus | GalleryStatus = event.status or StagingStatus(model_id=model)
    elif isinstance(event, GalleryEvent):
        status = event.status or GalleryStatus()
        job = event.job_id
        model = status.gallery_element_name or job
        done = status.processed or status.cancelled
        id_, error = f"{'deletion' if status.deletion else 'installation'}:{model}", status.error or ""
    else:
        return None
    if not model:
        return None
    return Mirror(id_, job, model, entry.subject, entry.sequence, entry.time, done, status, entry.payload, error)
