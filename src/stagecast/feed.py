"""The feed: what the clients of the event stream are told, put together once for all that stand at the same place.

A client holds nothing but its position. Whoever is slow or away for long is told the last word on each operation that
has changed since, never each word in between: nothing queues up for anybody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from stagecast.fold import Fold
from stagecast.revision import Revision
from stagecast.tracker import Tracker
from stagecast.view import View

BEAT: Final = 5.0
"""Seconds of quiet after which a comment shows that a stream is alive."""
KEPT: Final = 4 * 1024 * 1024
"""Bytes of frames that are kept for other clients at the same place; beyond it each has its own made."""
Place = tuple[Revision, bool]
"""Where a client stands: the revision that it was told, and whether as one that may be out of date."""


class Feed:
    """Frames for any number of clients of one replica."""

    def __init__(self, tracker: Tracker, view: View) -> None:
        self._tracker = tracker
        self._view = view
        self._loop = asyncio.get_running_loop()
        self._made_for: tuple[Fold, Place] | None = None
        self._frames: dict[int, bytes] = {}
        self._snapshot = b""
        self._size = 0
        self._waiters: dict[asyncio.Future[bool], None] = {}
        self._listeners = 0
        self._listening = ExitStack()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def place(self) -> Place:
        """Where a client stands that was told everything."""
        return self._tracker.revision, self._tracker.is_degraded

    @property
    def is_closing(self) -> bool:
        """Tell whether the replica is about to end."""
        return self._tracker.is_closing

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Count one more client within the block. Without any the feed costs nothing."""
        self._listeners += 1
        if self._listeners == 1:
            self._listening.enter_context(self._tracker.listening("any", self._wake))
            self._timer = self._loop.call_later(BEAT / 2, self._look)
        try:
            yield
        finally:
            self._listeners -= 1
            if not self._listeners:
                self._forget()
                self._listening.close()
                if self._timer is not None:
                    self._timer.cancel()

    def is_resumed(self, told: Place) -> bool:
        """Tell whether what has changed is all that a client has to be told that was told so much.

        It is not where the client's last picture is of another stream, or what ended since may be forgotten.
        """
        if told[0].identity != self.place[0].identity or told[1] != self.place[1]:
            return False
        return told[0].sequence >= self._tracker.fold.horizon.through

    def snapshot(self) -> bytes:
        """Return the frame that tells the whole list."""
        self._look_at_now()
        if not self._snapshot:
            self._snapshot = _frame("snapshot", self._view.body.rstrip(), self._tracker.revision)
        return self._snapshot

    def since(self, sequence: int) -> bytes:
        """Return the frames of what has changed after ``sequence``; empty where no row has."""
        self._look_at_now()
        frames = self._frames.get(sequence)
        if frames is None:
            identity = self._tracker.revision.identity
            changed = self._view.changed(sequence)
            frames = b"".join(_frame("operation", row, Revision(identity, at)) for at, row in changed)
            if self._size + len(frames) <= KEPT:
                self._frames[sequence] = frames
                self._size += len(frames)
        return frames

    async def moved(self, place: Place) -> bool:
        """Wait until there is more to tell than at ``place``; False, for all alike, every half `BEAT` until then."""
        while self.place == place and not self.is_closing:
            waiter: asyncio.Future[bool] = self._loop.create_future()
            self._waiters[waiter] = None
            try:
                if not await waiter:
                    return False
            finally:
                self._waiters.pop(waiter, None)
        return True

    def _look_at_now(self) -> None:
        now = (self._tracker.fold, self.place)
        if self._made_for is None or self._made_for[0] is not now[0] or self._made_for[1] != now[1]:
            self._forget()
            self._made_for = now

    def _forget(self) -> None:
        self._made_for, self._snapshot, self._frames, self._size = None, b"", {}, 0

    def _wake(self, *, moved: bool = True) -> None:
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(moved)

    def _look(self) -> None:
        self._wake(moved=False)
        self._timer = self._loop.call_later(BEAT / 2, self._look)


def _frame(name: str, data: bytes, position: Revision) -> bytes:
    return b"id: %s\nevent: %s\ndata: %s\n\n" % (str(position).encode(), name.encode(), data)
