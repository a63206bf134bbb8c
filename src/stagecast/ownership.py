"""An operation that this process owns: work reports numbers here, and the log hears of them.

Every record is written with a compare-and-set on its subject's last sequence, so the log itself refuses whatever a
fenced owner still wants to say. Byte ticks are leading-edge debounced: the first goes out at once, then at most one an
interval; transitions always go out, are acknowledged, and are tried again for as long as the bus is away.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final, Literal

import msgspec

from stagecast import broadcast, operations, subjects
from stagecast.bus import Log
from stagecast.errors import AppendConflict, BusUnavailable, Fenced
from stagecast.messages import Entry, Hindrance, Horizon, Outcome, Record
from stagecast.meter import Meter

TICK_INTERVAL: Final = 1.0
"""Seconds between two byte ticks of one operation, at least (WIRE section 1)."""
RETRY_INTERVAL: Final = 0.1
BEAT: Final = 3.0
"""Seconds without a word after which an owner gives a sign of life, whatever its work is at."""
PATIENCE: Final = 5.0
"""Seconds without a byte after which work that waits for one is stalled."""

_LASTING: Final = ("phase", "bytes_total", "total_files")
"""What a word of an owner changes for good, unlike what is counted anew for each."""

Stop = Literal["cancel", "pause", "fence", "turn"]


class Ownership(Meter):
    """The right to write one operation's record, for as long as nobody else claims it; and what its work reports to.

    Work that waits for something for `PATIENCE` seconds is said to be stalled, until the next byte.
    """

    def __init__(
        self,
        log: Log,
        record: Record,
        sequence: int,
        *,
        clock: Callable[[], float] = time.time,
        interval: float = TICK_INTERVAL,
        wrote: Callable[[Record, int], None] | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()
        super().__init__(record, self._loop.time, lambda: self._loop.call_soon_threadsafe(self._woken.set))
        self.record = record
        self._wanted = record
        self.stop = threading.Event()
        self.stopped_by: Stop | None = None
        self.stopped_for = ""
        """For what, where it is to wait for its turn again."""
        self.keep_partial = False
        """Whether a cancel leaves on the disk what has arrived."""
        self.bytes_kept = 0
        """How much of it the work has left there."""
        self.released = asyncio.Event()
        self.sequence = sequence
        self._log = log
        self._wrote = wrote
        self._clock = clock
        self._interval = interval
        self._writing = asyncio.Lock()
        self._is_settled = False
        self._is_over = False
        self._said_at = self._loop.time()
        self._next_tick = 0.0
        self._body: asyncio.Task[object] | None = asyncio.current_task()

    def wait(self, on: Hindrance, then: str = "") -> None:
        """Say what the work waits for: see `Meter.wait`. That it is no longer stalled is told at once."""
        super().wait(on, then)
        if not on and self.record.state == "stalled":
            self._wake()

    async def change(
        self, *, bytes_done: int | None = None, bytes_present: int | None = None, **fields: object
    ) -> None:
        """Write a transition: new values for fields of the record. Returns once the log has it.

        ``bytes_done`` is where `advance` counts on from, ``bytes_present`` what of it was here before. Where it is less
        than the record says, bytes were lost since, and the work is a new attempt, for within one progress never falls
        (law L2); so it is where there is so much more to do than the record says that the percentage would fall.

        Raises:
            Fenced: somebody else owns the operation now, or has ended it.
        """
        await self._say_turns()
        self._begin(bytes_done, bytes_present)
        if fields.get("state") == "paused":
            self._is_over = True
        if "phase" in fields:
            self._turn(fields["phase"])
            fields = {"rate": None, **fields}
            self._next_tick = 0.0  # the first byte after a start is told at once, whatever was told just before
        await self._write(lambda: self._current(**fields), retry=True)

    async def leave(self) -> None:
        """Write that the owner goes, and somebody else may take the operation. Raises `Fenced`."""
        self._is_over = True
        await self._write(
            lambda: operations.stalled(self._current(), "its process is stopping", self._clock()), retry=True
        )

    async def put_back(self) -> None:
        """Write that the operation waits for its turn again. Raises `Fenced`."""
        await self._say_turns()
        self._is_over = True
        await self._write(lambda: operations.put_back(self._current(), self._clock(), self.stopped_for), retry=True)

    async def end(self, state: Outcome, *, error: str = "", note: str = "") -> None:
        """Write the end. Returns once the log has it. Raises `Fenced`."""
        await self._say_turns()
        left: dict[str, object] = {}
        if state == "cancelled":
            left = {"keep_partial": self.keep_partial, "bytes_kept": self.bytes_kept}
            self._bytes_done = max(self._bytes_done, self.bytes_kept)
        await self._write(
            lambda: operations.ended(self._current(), state, self._clock(), error, note, **left), retry=True
        )

    async def fail(self, error: str) -> None:
        """Write that the work has failed, with its cause, unless somebody else has the operation now."""
        self.settle()
        with suppress(Fenced):
            await self.end("failed", error=error)

    async def run(self) -> None:
        """Send byte ticks, completed files, other turns of the work, and signs of life until cancelled."""
        try:
            while not (operations.is_ended(self.record) or self._is_over):
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(self._due()):
                        await self._woken.wait()
                self._woken.clear()
                await self._say_turns()
                if self._loop.time() >= self._due():
                    self._next_tick = self._loop.time() + self._interval
                    with self._counting:
                        self._awake = False
                    await self._write(self._ticked, retry=False)
        except Fenced:
            self.halt("fence")

    async def _say_turns(self) -> None:
        """Tell which files became whole and how the phase turned, in that order, before whatever is told next."""
        while self._turns:
            await self._write(partial(self._current, **self._turns.popleft()), retry=True)

    def _due(self) -> float:
        """Return when the next word is due: news, a sign of life, or that the work is stalled."""
        due = self._said_at + BEAT
        if self._awake:
            due = min(due, self._next_tick)
        waits = self._waits
        if waits is not None and self.record.state == "running":
            due = min(due, max(waits.since + PATIENCE, self._said_at + self._interval))
        return due

    def is_taken_by(self, held: Record) -> bool:
        """Tell whether ``held`` takes the operation away: a later word that this process did not say itself."""
        if held == self._wanted or not operations.outranks(held, self.record):
            return False
        is_next = held.era == self.record.era and held.attempt <= self.record.attempt + 1
        is_ours = held.owner == self.record.owner and is_next
        return not is_ours or held.state not in {"running", "stalled"}

    def settle(self) -> None:
        """Let nothing interrupt the work's end any more: its outcome is decided and only has to be written."""
        self._is_settled = True

    def halt(self, by: Stop, *, keep_partial: bool = False, why: str = "") -> None:
        """Stop the work: cancel, pause, because somebody else owns it now, or to wait for its turn. Idempotent."""
        if self.stopped_by is None and not self._is_settled and not operations.is_ended(self.record):
            self.stopped_by, self.stopped_for, self.keep_partial = by, why, keep_partial
            self.stop.set()
            if self._body is not None:
                self._body.cancel()

    async def restate(self) -> None:
        """Write the record again, into a log that came back without it."""
        await self._write(self._current, retry=True)

    def _current(self, **fields: object) -> Record:
        # Where its pause, or that its process goes, is about to be said, no tick may come after that and deny it.
        state = self.record.state if self._is_over else "running"
        values = {"state": state, **self._counted(), **fields}
        following = operations.succeeding(self.record, self._clock(), **values)
        if following.bytes_done < self.record.bytes_done:
            return self._anew(self.record, following, "bytes that had arrived were lost")
        if broadcast.percentage(following) < broadcast.percentage(self.record):
            return self._anew(self.record, following, "there is more to do than was known")
        return following

    def _ticked(self) -> Record | None:
        if self._is_over:
            return None
        now, waits = self._loop.time(), self._waits  # taken once: another thread may end it
        current = self._current(rate=self._rate(now), limited_by=self._limited_by(now))
        if waits is None or now - waits.since < PATIENCE:
            return current
        wall = self._clock()
        began = self.record.waits_since if self.record.state == "stalled" else wall - (now - waits.since)
        return operations.stalled(current, waits.then, wall, waits.on, since=began)

    async def _write(self, make: Callable[[], Record | None], *, retry: bool) -> None:
        async with self._writing:
            if operations.is_ended(self.record):
                raise Fenced(self.record.id, self.record.attempt)
            record = None if _has_parted(self.record) else make()
            if record is None:
                return
            self._said_at = self._loop.time()
            at = self.sequence
            while record is not None:
                self._wanted = record
                try:
                    subject = subjects.operation(record)
                    at = await self._log.append(subject, broadcast.encode(record), expected=at)
                    break
                except AppendConflict:
                    record, at = await self._resolve(record)
                except BusUnavailable:
                    if not retry and record.attempt == self.record.attempt:
                        return
                    await asyncio.sleep(RETRY_INTERVAL)
            # Both at once: whoever is cancelled before has written nothing, and the next word finds that out anew.
            self.record, self.sequence = self._wanted, at
            if self._wrote is not None:
                self._wrote(self.record, at)

    async def _resolve(self, wanted: Record) -> tuple[Record | None, int]:
        """Find out who wrote on our subject; return what to write over it, and where it stands.

        That is None if ``wanted`` stands there already. Raises `Fenced` where the operation was claimed, ended or
        paused by somebody else. Then the sequence that we go by stays the old one, so that whatever is tried later is
        refused as well.
        """
        standing = await self._standing(subjects.operation(wanted))
        held = standing_record(standing)
        if held is not None and held != wanted and _fences(held, self.record, wanted):
            raise Fenced(wanted.id, wanted.attempt)
        if standing is None and horizon_in(await self._standing(subjects.HORIZON)).forgets(self.sequence):
            # It has ended without us, so long ago that all have forgotten it: nothing revives it.
            raise Fenced(wanted.id, wanted.attempt)
        return self._over(held, wanted), standing.sequence if standing else 0

    def _over(self, held: Record | None, wanted: Record) -> Record | None:
        """Return what to write over the word that stands there."""
        if held == wanted:
            return None
        if held is None or operations.fence(held) < operations.fence(wanted):
            return wanted
        if (held.state == "stalled" and held.waits_on == "owner") or held.bytes_done > wanted.bytes_done:
            # Somebody took us for dead while we slept, or the log tells of bytes that are lost.
            return self._anew(held, wanted)
        following = msgspec.structs.replace(wanted, seq=max(wanted.seq, held.seq + 1))
        return _with_changes_of(held, self.record, following) if operations.is_later(held, self.record) else following

    def _anew(self, held: Record, wanted: Record, why: str = "") -> Record:
        """Return ``wanted`` as the first word of the attempt after the one that is held; what moved in that one is its.

        From here on the meter counts for the new one.
        """
        following = operations.anew(held, wanted.updated_at, why)
        present = min(held.bytes_done, wanted.bytes_done)
        with self._counting:
            self._bytes_present += present - wanted.bytes_present
        return msgspec.structs.replace(
            wanted, attempt=following.attempt, seq=0, earlier=following.earlier, claimed_at=following.claimed_at,
            queued_at=following.queued_at, bytes_present=present,
        )  # fmt: skip

    async def _standing(self, subject: str) -> Entry | None:
        while True:
            try:
                return await self._log.last(subject)
            except BusUnavailable:
                await asyncio.sleep(RETRY_INTERVAL)


def _fences(held: Record, ours: Record, wanted: Record) -> bool:
    """Tell whether what stands there forbids ``wanted`` to whoever said ``ours`` last.

    ``wanted`` may begin an attempt that nobody has heard of: that does not lift it above an end of the one before.
    """
    if operations.fence(held) < operations.fence(ours):
        return False
    if operations.fence(held) > operations.fence(wanted):
        return True
    # Between two attempts of ours nobody else has claimed it; before the first, it was nobody's.
    owners = {"", wanted.owner} if operations.fence(held) == operations.fence(ours) else {wanted.owner}
    return held.owner not in owners or operations.is_ended(held) or held.state == "paused"


def _with_changes_of(held: Record, ours: Record, wanted: Record) -> Record:
    """Return ``wanted`` with what ``held`` has changed since ``ours``, and ``wanted`` does not change itself.

    It is a word of ours as well: whoever was stopped before its answer came did not know that the log has it.
    """
    lasting = {name: getattr(held, name) for name in _LASTING if getattr(wanted, name) == getattr(ours, name)}
    return msgspec.structs.replace(wanted, **lasting)


def _has_parted(record: Record) -> bool:
    """Tell whether an owner's own word was its last one: what waited to be said behind it is not said any more."""
    return record.state in {"paused", "queued"} or record.waits_on == "owner"


def horizon_in(entry: Entry | None) -> Horizon:
    """Return the horizon in the log's last word on where it stands; where there is none, nothing was forgotten."""
    if entry is None:
        return Horizon()
    try:
        return msgspec.json.decode(entry.payload, type=Horizon)
    except msgspec.DecodeError:
        return Horizon()


def standing_record(entry: Entry | None) -> Record | None:
    """Return the record in the log's last word on an operation's subject, or None if there is none of ours."""
    if entry is None:
        return None
    try:
        return broadcast.decode(entry.subject.partition(".")[0], entry.payload).op
    except msgspec.DecodeError:
        return None
