"""The streams of a cluster: how each is made on the NATS server, and what is put right on one that is there. Pure."""

from __future__ import annotations

from typing import Final

from nats.js.api import DiscardPolicy, StorageType, StreamConfig

from stagecast.settings import Bounds
from stagecast.subjects import HISTORY_SUBJECTS, LOG_SUBJECTS

LOG: Final = StreamConfig(
    name="STAGECAST",
    subjects=list(LOG_SUBJECTS),
    storage=StorageType.FILE,
    max_msgs_per_subject=1,
    discard=DiscardPolicy.OLD,
)
HISTORY: Final = StreamConfig(
    name="STAGECAST_HISTORY",
    subjects=list(HISTORY_SUBJECTS),
    storage=StorageType.FILE,
    max_msgs_per_subject=1,
    discard=DiscardPolicy.OLD,
)


def bounded(config: StreamConfig, bounds: Bounds) -> StreamConfig:
    """Return the stream with other bounds."""
    return config.evolve(max_msgs=bounds.count, max_age=bounds.age)


def amended(found: StreamConfig, wanted: StreamConfig, bounds: Bounds | None) -> StreamConfig | None:
    """Return what a stream that was found should be, or None if it is so. What else somebody set on it stays.

    A process that is told no bounds leaves those of the stream as they are.
    """
    now = found.evolve(subjects=wanted.subjects)
    if bounds is not None:
        now = bounded(now, bounds)
    is_same = set(found.subjects or ()) == set(wanted.subjects or ())
    limits = (found.max_msgs, found.max_age) == (now.max_msgs, now.max_age)
    return None if is_same and limits else now
