"""An operation of another program, as the code that does the work sees it: it counts, and may say a line.

Units are the program's own: bytes, frames, rows, documents. ``total`` and ``done`` count whole ones of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from operator import index
from types import MappingProxyType
from typing import Final

import msgspec

from stagecast.errors import BadInput, Fenced, Interrupted, InvalidName, StagecastError
from stagecast.manifest import check_name
from stagecast.messages import MODEL_KINDS, Kind, Phase
from stagecast.ownership import Ownership

PARAMETERS_LIMIT: Final = 64 * 1024
"""Bytes that the parameters of one operation may have as JSON: they travel with every tick."""
_KIND: Final = re.compile("[a-z][a-z0-9_-]{0,39}", re.ASCII)


class Operation:
    """One attempt at a piece of work, for as long as this process owns it."""

    def __init__(self, ownership: Ownership) -> None:
        self._ownership = ownership
        self._stop = ownership.stop

    @property
    def id(self) -> str:
        """``<kind>:<name>``: the same for every run."""
        return self._ownership.record.id

    @property
    def job(self) -> str:
        """What this run is called; the same in every attempt of it."""
        return self._ownership.record.job

    @property
    def name(self) -> str:
        """What is worked on."""
        return self._ownership.record.model

    @property
    def parameters(self) -> Mapping[str, str]:
        """What was given when the work was asked for."""
        return MappingProxyType(self._ownership.record.parameters)

    @property
    def attempt(self) -> int:
        """Rises by one with each process that goes on with the work. More than 1: an earlier one did `done` of it."""
        return self._ownership.record.attempt

    @property
    def total(self) -> int:
        """How many units there are to do; 0 while that is not known."""
        return self._ownership.record.bytes_total

    @property
    def done(self) -> int:
        """How many units are done. Where the work is gone on with, what the last tick of the attempt before said."""
        return self._ownership.bytes_done

    @property
    def is_stopped(self) -> bool:
        """Whether it was cancelled, paused or taken over, for work in a thread that is long on its way to `advance`."""
        return self._stop.is_set()

    def advance(self, count: int = 1) -> None:
        """Count ``count`` more units as done. Callable from any thread, however often: others hear of it once a second.

        Raises:
            Interrupted: the operation was cancelled or paused from outside, or this process ends.
            StagecastError: another process has the operation now.
        """
        if count < 0:
            raise BadInput(f"advance({count}): progress never falls; say `await operation.update(done=...)` instead")
        if self._stop.is_set():
            raise self.interruption()
        self._ownership.advance(index(count))

    def tell(self, note: str) -> None:
        """Say one line for people on what is done right now. Callable from any thread."""
        self._ownership.tell(note)

    async def update(self, *, done: int | None = None, total: int | None = None, phase: Phase | None = None) -> None:
        """Correct what is known of the work; return once the log has it.

        ``phase`` ``publishing`` says that the end is decided: nothing stops the work any more. ``done`` is where
        `advance` counts on from. If it is less than what was told before, or ``total`` so much more that the percentage
        falls, this is a new attempt: within one, progress never falls (law L2).

        Raises:
            BadInput: a number is negative.
            StagecastError: another process has the operation now.
        """
        fields = {"bytes_total": None if total is None else whole(total, "total"), "phase": phase}
        known = {name: value for name, value in fields.items() if value is not None}
        at = None if done is None else whole(done, "done")
        await self._ownership.change(bytes_done=at, **known)  # type: ignore[arg-type]  # those two alone

    def interruption(self) -> StagecastError:
        """Return the error that says why the work had to stop."""
        by = self._ownership.stopped_by
        return Fenced(self.id, self.attempt) if by == "fence" else Interrupted(by or "the end of its process")


def whole(count: int, what: str) -> int:
    """Return a count of units as it is. Raises `BadInput` where it is negative or no whole number."""
    try:
        found = index(count)
    except TypeError:
        raise BadInput(f"{what} is {count!r}; it counts whole units") from None
    if found < 0:
        raise BadInput(f"{what} is {found}; it cannot be negative")
    return found


def check_kind(kind: Kind) -> None:
    """Raise `InvalidName` unless another program can have work of this kind."""
    if not _KIND.fullmatch(kind):
        raise InvalidName("kind of work", kind, "write 1 to 40 of a-z, 0-9, - and _, a letter first")
    if kind in MODEL_KINDS:
        raise InvalidName("kind of work", kind, "it is one of Stagecast's own; choose another word")


def check_work(kind: Kind, name: str, parameters: Mapping[str, str]) -> None:
    """Raise `BadInput` unless this can be asked for."""
    check_kind(kind)
    check_name(name, "piece of work")
    if not all(isinstance(each, str) for pair in parameters.items() for each in pair):
        raise BadInput("parameters hold text only; write other values as text, with json.dumps for one")
    if (size := len(msgspec.json.encode(dict(parameters)))) > PARAMETERS_LIMIT:
        raise BadInput(f"the parameters have {size:,} bytes, {PARAMETERS_LIMIT:,} at most: pass where to find them")
