"""An operation that this process owns: work reports numbers here, and the log hears of them.

Every record is written with a compare-and-set on its subject's last sequence, so the log itself refuses whatever a
fenced owner still wants to say. Byte ticks are leading-edge debounced: the first goes out at once, then at most one an
interval; transitions always go out, are acknowledged, and are tried again for as long as the bus is away.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final, Literal

import msgspec

from stagecast import broadcast, operations, subjects
from stagecast.bus import Log
from stagecast.errors import AppendConflict, BusUnavailable, Fenced
from stagecast.messages import Entry, Hindrance, Outcome, Record
from stagecast.quantities import format_size

TICK_INTERVAL: Final = 1.0
"""Seconds between two byte ticks of one operation, at least (WIRE section 1)."""
RATE_WINDOW: Final = 5.0
"""Seconds of real bytes over which a rate is taken."""
RETRY_INTERVAL: Final = 0.1
BEAT: Final = 3.0
"""Seconds without a word after which an owner gives a sign of life, whatever its work is at."""
PATIENCE: Final = 5.0
"""Seconds without a byte after which work that waits for one is stalled."""

Stop = Literal["cancel", "pause", "fence"]


class Ownership:
    """The right to write one operation's record, for as long as nobody else claims it."""

    def __init__(
        self,
        log: Log,
        record: Record,
        sequence: int,
        *,
        clock: Callable[[], float] = time.time,
        interval: float = TICK_INTERVAL,
    ) -> None:
        self.record = record
        self._wanted = record
        self.stop = threading.Event()
        self.stopped_by: Stop | None = None
        self.keep_partial = False
        """Whether a cancel leaves on the disk what has arrived."""
        self.bytes_kept = 0
        """How much of it the work has left there."""
        self.released = asyncio.Event()
        self.sequence = sequence
        self._log = log
        self._clock = clock
        self._interval = interval
        self._loop = asyncio.get_running_loop()
        self._writing = asyncio.Lock()
        self._woken = asyncio.Event()
        self._counting = threading.Lock()
        self._awake = False
        self._is_settled = False
        self._bytes_done = record.bytes_done
        self._moved = 0
        self._present = record.bytes_present
        self._checked = 0
        self._is_checking = False
        self._hindrance: tuple[Hindrance, str] = ("", "")
        self._waits_since: float | None = None
        self._file: tuple[int, str] = (record.file_index, record.file_name)
        self._note = record.note
        self._turns: deque[dict[str, object]] = deque()
        self._samples: deque[tuple[float, int]] = deque([(self._loop.time(), 0)])
        self._said_at = self._loop.time()
        self._body: asyncio.Task[object] | None = asyncio.current_task()

    @property
    def bytes_done(self) -> int:
        """Bytes reported so far, the ones that were there before included."""
        return self._bytes_done

    def advance(self, count: int) -> None:
        """Count ``count`` more bytes that moved. From any thread; costs well under a microsecond once awake."""
        with self._counting:
            self._bytes_done += count
            self._moved += count
            self._waits_since = None
            if self._is_checking:
                self._is_checking, self._note = False, ""
                self._turns.append({"phase": "transferring"})
            if self._awake:
                return
            self._awake = True
        self._loop.call_soon_threadsafe(self._woken.set)

    def find(self, count: int) -> None:
        """Count ``count`` more bytes that turned out to be here already: done, but not moved. From any thread."""
        with self._counting:
            self._bytes_done += count
            self._present += count
        self._wake()

    def check(self, count: int, total: int) -> None:
        """Say that ``count`` more of ``total`` bytes that are here already were read again. From any thread.

        The operation is verifying until the next byte moves. Nothing is counted: they were, or are by `find`.
        """
        with self._counting:
            self._checked += count
            self._waits_since = None
            of = f" of {format_size(total)}" if total else ""
            self._note = f"{format_size(self._checked)}{of} checked"
            if not self._is_checking:
                self._is_checking = True
                self._turns.append({"phase": "verifying"})
        self._wake()

    def wait(self, on: Hindrance, then: str = "") -> None:
        """Say that the work waits for something; ``then`` says what becomes of that. Nothing: it no longer waits.

        It may be said again and again; the next byte ends it. After `PATIENCE` seconds the operation is stalled. From
        any thread.
        """
        if not on:
            self._waits_since = None
            if self.record.state == "stalled":
                self._wake()
        elif self._waits_since is None:
            self._hindrance, self._waits_since = (on, then), self._loop.time()
        else:
            self._hindrance = (on, then)

    def enter(self, index: int, name: str) -> None:
        """Say which file moves now; ``index`` counts from 1. Callable from any thread."""
        self._file = (index, name)
        self._wake()

    def tell(self, note: str) -> None:
        """Say one line on what the phase waits for. A sign of life, sent like a byte tick. From any thread."""
        self._note = note
        self._wake()

    async def change(
        self, *, bytes_done: int | None = None, bytes_present: int | None = None, **fields: object
    ) -> None:
        """Write a transition: new values for fields of the record. Returns once the log has it.

        ``bytes_done`` is where `advance` counts on from, ``bytes_present`` what of it was here before. Where it is less
        than the record says, bytes were lost since, and the work is a new attempt, for within one progress never falls
        (law L2).

        Raises:
            Fenced: somebody else owns the operation now, or has ended it.
        """
        self._waits_since = None
        if bytes_done is not None:
            self._bytes_done = bytes_done
            self._samples = deque([(self._loop.time(), self._moved)])
        if bytes_present is not None:
            self._present = bytes_present
        if "phase" in fields:
            self._note, self._is_checking, self._checked = "", fields["phase"] == "verifying", 0
        await self._write(lambda: self._current(**fields), retry=True)

    async def leave(self) -> None:
        """Write that the owner goes, and somebody else may take the operation. Raises `Fenced`."""
        await self._write(
            lambda: operations.stalled(self._current(), "its process is stopping", self._clock()), retry=True
        )

    async def end(self, state: Outcome, *, error: str = "", note: str = "") -> None:
        """Write the end. Returns once the log has it. Raises `Fenced`."""
        left: dict[str, object] = {}
        if state == "cancelled":
            left = {"keep_partial": self.keep_partial, "bytes_kept": self.bytes_kept}
            self._bytes_done = max(self._bytes_done, self.bytes_kept)
        await self._write(
            lambda: operations.ended(self._current(), state, self._clock(), error, note, **left), retry=True
        )

    def complete(self, index: int, name: str) -> None:
        """Say that a file is whole. Always published, however soon after the last tick. Callable from any thread."""
        self._turns.append({"file_index": index, "file_name": name})
        self._loop.call_soon_threadsafe(self._woken.set)

    async def run(self) -> None:
        """Send byte ticks, completed files, other turns of the work, and signs of life until cancelled."""
        next_tick = 0.0
        try:
            while not operations.is_ended(self.record):
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(self._due(next_tick)):
                        await self._woken.wait()
                self._woken.clear()
                while self._turns:
                    await self._write(partial(self._current, **self._turns.popleft()), retry=True)
                if self._loop.time() >= self._due(next_tick):
                    next_tick = self._loop.time() + self._interval
                    with self._counting:
                        self._awake = False
                    await self._write(self._ticked, retry=False)
        except Fenced:
            self.halt("fence")

    def _due(self, next_tick: float) -> float:
        """Return when the next word is due: news, a sign of life, or that the work is stalled."""
        due = self._said_at + BEAT
        if self._awake:
            due = min(due, next_tick)
        if self._waits_since is not None and self.record.state == "running":
            due = min(due, max(self._waits_since + PATIENCE, self._said_at + self._interval))
        return due

    def _wake(self) -> None:
        with self._counting:
            if self._awake:
                return
            self._awake = True
        self._loop.call_soon_threadsafe(self._woken.set)

    def is_taken_by(self, held: Record) -> bool:
        """Tell whether ``held`` takes the operation away: a later word that this process did not say itself."""
        if held == self._wanted or not operations.outranks(held, self.record):
            return False
        is_ours = held.owner == self.record.owner and held.attempt <= self.record.attempt + 1
        return not is_ours or held.state not in {"running", "stalled"}

    def settle(self) -> None:
        """Let nothing interrupt the work's end any more: its outcome is decided and only has to be written."""
        self._is_settled = True

    def halt(self, by: Stop, *, keep_partial: bool = False) -> None:
        """Stop the work: cancel, pause, or because somebody else owns the operation now. Idempotent."""
        if self.stopped_by is None and not self._is_settled and not operations.is_ended(self.record):
            self.stopped_by, self.keep_partial = by, keep_partial
            self.stop.set()
            if self._body is not None:
                self._body.cancel()

    async def restate(self) -> None:
        """Write the record again, into a log that came back without it."""
        await self._write(self._current, retry=True)

    def _current(self, **fields: object) -> Record:
        index, name = self._file
        values: dict[str, object] = {
            "state": "running",
            "bytes_done": self._bytes_done,
            "bytes_present": self._present,
            "file_index": index,
            "file_name": name,
            "note": self._note,
            **fields,
        }
        following = operations.succeeding(self.record, self._clock(), **values)
        if following.bytes_done < self.record.bytes_done:
            lost = operations.anew(self.record, following.updated_at, "bytes that had arrived were lost")
            return msgspec.structs.replace(
                following, attempt=lost.attempt, seq=0, earlier=lost.earlier, claimed_at=lost.claimed_at
            )
        return following

    def _ticked(self) -> Record:
        now, since = self._loop.time(), self._waits_since
        current = self._current(rate=self._rate(now))
        if since is None or now - since < PATIENCE:
            return current
        on, then = self._hindrance
        wall = self._clock()
        began = self.record.waits_since if self.record.state == "stalled" else wall - (now - since)
        return operations.stalled(current, then, wall, on, since=began)

    def _rate(self, now: float) -> float | None:
        """Return bytes per second over the window, or None where too little was seen to say."""
        moved = self._moved
        self._samples.append((now, moved))
        while len(self._samples) > 2 and self._samples[0][0] < now - RATE_WINDOW:
            self._samples.popleft()
        began, at_start = self._samples[0]
        if now - began < 0.2 or moved <= at_start:
            return None
        return (moved - at_start) / (now - began)

    async def _write(self, make: Callable[[], Record], *, retry: bool) -> None:
        async with self._writing:
            if operations.is_ended(self.record):
                raise Fenced(self.record.id, self.record.attempt)
            record: Record | None = make()
            self._said_at = self._loop.time()
            while record is not None:
                self._wanted = record
                try:
                    subject = subjects.operation(record)
                    self.sequence = await self._log.append(subject, broadcast.encode(record), expected=self.sequence)
                    break
                except AppendConflict:
                    record = await self._resolve(record)
                except BusUnavailable:
                    if not retry:
                        return
                    await asyncio.sleep(RETRY_INTERVAL)
            self.record = self._wanted

    async def _resolve(self, wanted: Record) -> Record | None:
        """Find out who wrote on our subject; return what to write over it, None if ``wanted`` stands there already.

        Raises `Fenced` where the operation was claimed, ended or paused by somebody else. Then the sequence that we
        go by stays the old one, so that whatever is tried later is refused as well.
        """
        standing = await self._standing(subjects.operation(wanted))
        held = standing_record(standing)
        if held is not None and held != wanted and _fences(held, wanted):
            raise Fenced(wanted.id, wanted.attempt)
        self.sequence = standing.sequence if standing else 0
        if held == wanted:
            return None
        if held is None or operations.outranks(wanted, held):
            return wanted
        # Our own word of before, or somebody took us for dead while we slept: claim the work anew and go on.
        return msgspec.structs.replace(wanted, attempt=held.attempt + 1, seq=0, earlier=operations.told(held))

    async def _standing(self, subject: str) -> Entry | None:
        while True:
            try:
                return await self._log.last(subject)
            except BusUnavailable:
                await asyncio.sleep(RETRY_INTERVAL)


def _fences(held: Record, wanted: Record) -> bool:
    if held.attempt != wanted.attempt:
        return held.attempt > wanted.attempt
    return held.owner not in {"", wanted.owner} or operations.is_ended(held) or held.state == "paused"


def standing_record(entry: Entry | None) -> Record | None:
    """Return the record in the log's last word on an operation's subject, or None if there is none of ours."""
    if entry is None:
        return None
    try:
        return broadcast.decode(entry.subject.partition(".")[0], entry.payload).op
    except msgspec.DecodeError:
        return None
