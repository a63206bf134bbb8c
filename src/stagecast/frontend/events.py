"""The event stream: server-sent events that resume on any replica (WIRE section 3)."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from stagecast import revision
from stagecast.feed import Feed
from stagecast.frontend.gate import catch_up
from stagecast.revision import Revision
from stagecast.tracker import Tracker


async def begin(tracker: Tracker, last_event_id: str) -> Revision | None:
    """Return the revision after which a stream goes on, or None if it begins with a snapshot.

    An id that is not ours, or of a stream that no longer exists, begins anew.

    Raises:
        ReplicaBehind: this replica has not folded what the client has seen, and does not within 2 s.
    """
    wanted = revision.parse(last_event_id)
    if wanted is None:
        return None
    await catch_up(tracker, wanted)
    return wanted if wanted.identity == tracker.revision.identity else None


async def stream(feed: Feed, replica: str, after: Revision | None) -> AsyncGenerator[bytes, None]:
    """Yield a snapshot unless the stream goes on after ``after``, then the changes as they are folded."""
    yield b": replica %s\nretry: 500\n\n" % replica.encode()
    with feed.listening():
        told, is_quiet = ((after, feed.place[1]) if after is not None else None), False
        while not feed.is_closing:
            now = feed.place
            is_resumed = told is not None and feed.is_resumed(told)
            frames = feed.since(told[0].sequence) if told is not None and is_resumed else feed.snapshot()
            told = now
            if frames:
                is_quiet = False
                yield frames
            while not await feed.moved(told):
                if is_quiet:
                    yield b": beat\n\n"
                is_quiet = not is_quiet
