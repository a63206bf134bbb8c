"""The event stream: server-sent events that resume on any replica (WIRE section 3)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Final

import msgspec

from stagecast import revision, rows
from stagecast.errors import ReplicaBehind
from stagecast.frontend.gate import MIN_REVISION_WAIT
from stagecast.revision import Revision
from stagecast.tracker import Tracker
from stagecast.view import View

BEAT: Final = 5.0
"""Seconds of quiet after which a comment shows that the stream is alive."""

_encoder = msgspec.json.Encoder()


async def begin(tracker: Tracker, last_event_id: str) -> Revision | None:
    """Return the revision after which a stream goes on, or None if it begins with a snapshot.

    An id that is not ours, or of a stream that no longer exists, begins anew.

    Raises:
        ReplicaBehind: this replica has not folded what the client has seen, and does not within 2 s.
    """
    wanted = revision.parse(last_event_id)
    if wanted is None:
        return None
    if not await tracker.reached(wanted, MIN_REVISION_WAIT):
        raise ReplicaBehind(last_event_id)
    return wanted if wanted.identity == tracker.revision.identity else None


async def stream(tracker: Tracker, view: View, replica: str, after: Revision | None) -> AsyncGenerator[bytes, None]:
    """Yield a snapshot unless the stream goes on after ``after``, then each change as it is folded."""
    yield b": replica %s\nretry: 500\n\n" % replica.encode()
    position, was_degraded = after, tracker.is_degraded
    while not tracker.is_closing:
        if position is None or position.identity != tracker.revision.identity or was_degraded != tracker.is_degraded:
            position, was_degraded = tracker.revision, tracker.is_degraded
            yield _frame("snapshot", view.body, position)
        else:
            seen = tracker.revision
            for sequence, row in rows.changed(tracker.fold, position.sequence):
                yield _frame("operation", _encoder.encode(row), Revision(seen.identity, sequence))
            position = seen
        if not await tracker.until(_moved(tracker, position, degraded=was_degraded), BEAT):
            yield b": beat\n\n"


def _moved(tracker: Tracker, position: Revision, *, degraded: bool) -> Callable[[], bool]:
    return lambda: tracker.revision != position or tracker.is_degraded != degraded or tracker.is_closing


def _frame(name: str, data: bytes, position: Revision) -> bytes:
    return b"id: %s\nevent: %s\ndata: %s\n\n" % (str(position).encode(), name.encode(), data)
