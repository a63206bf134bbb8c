"""The bus: one log that every process folds, one log of what has ended, and the few messages beside them.

Two implementations pass the same contract: `stagecast.bus.memory` for one process alone, `stagecast.bus.nats` for a
cluster. Nothing above this seam knows which one it has.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from stagecast.messages import Entry


@dataclass(frozen=True, slots=True)
class Anew:
    """What follows is a whole picture from nothing, of the stream with this identity. Forget what was folded."""

    identity: str


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """Everything that stood in the log has come; what follows is live. ``sequence`` is the log's last one."""

    sequence: int


@dataclass(frozen=True, slots=True)
class Lost:
    """The log cannot be heard at the moment; `CaughtUp` follows when it can again."""


Heard = Entry | Anew | CaughtUp | Lost
Answer = Callable[[bytes], Awaitable[bytes]]


class Log(Protocol):
    """One stream of messages that keeps the last word on every subject."""

    async def append(self, subject: str, payload: bytes, *, expected: int | None = None) -> int:
        """Write a message and return its sequence once it is durable.

        ``expected`` is the sequence at which the subject's last word must stand, 0 for none at all; without it the
        message is written in any case.

        Raises:
            AppendConflict: the subject's last word stands elsewhere. Nothing was written.
            BusUnavailable: whether it was written is not known.
        """
        ...

    async def last(self, subject: str) -> Entry | None:
        """Return the last word on a subject. Raises `BusUnavailable`."""
        ...

    async def remove(self, subject: str, through: int) -> None:
        """Take a subject's last word out of the log, if it stands no later than ``through``; nobody is told.

        A compare-and-set finds nothing there from then on, and who follows from an earlier place a gap.

        Raises:
            BusUnavailable: whether it is out is not known. To be asked for again.
        """
        ...

    def follow(self) -> AsyncGenerator[Heard, None]:
        """Yield the log: `Anew`, the last word on each subject in order, `CaughtUp`, then each message as it comes.

        Wherever the follower is made to wait, what it has heard is what the log was at one moment; messages between
        which it does not wait belong together. Goes on through every loss of the connection, resuming where it was.
        A stream that is not the one that was followed begins with `Anew` again. Ends only by being closed.
        """
        ...


class Bus(Protocol):
    """What connects the processes of a cluster."""

    @property
    def log(self) -> Log:
        """What everybody folds."""
        ...

    @property
    def history(self) -> Log:
        """What has ended: each end once, bounded by count and age."""
        ...

    @property
    def is_connected(self) -> bool:
        """Tell whether a message sent now would go out."""
        ...

    async def publish(self, subject: str, payload: bytes) -> None:
        """Send a message that nobody keeps; while there is no connection it is dropped."""
        ...

    async def subscribe(self, subject: str, hear: Callable[[str, bytes], None]) -> None:
        """Call ``hear(subject, payload)`` for each message on ``subject``, which may hold wildcards, for good."""
        ...

    async def answer(self, subject: str, answer: Answer) -> None:
        """Answer each request on ``subject``, for good."""
        ...

    async def request(self, subject: str, payload: bytes, timeout: float) -> bytes:
        """Ask whoever answers ``subject`` and return the answer.

        Raises:
            NobodyListens: no process answers the subject.
            BusUnavailable: no answer came within ``timeout`` seconds.
        """
        ...
