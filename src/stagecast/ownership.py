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
from stagecast.messages import Entry, Outcome, Record

TICK_INTERVAL: Final = 1.0
"""Seconds between two byte ticks of one operation, at least (WIRE section 1)."""
RATE_WINDOW: Final = 5.0
"""Seconds of real bytes over which a rate is taken."""
RETRY_INTERVAL: Final = 0.1

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
        wrote: Callable[[Record], None] | None = None,
    ) -> None:
        self.record = record
        self._wanted = record
        self.stop = threading.Event()
        self.stopped_by: Stop | None = None
        self.released = asyncio.Event()
        self.sequence = sequence
        self._log = log
        self._wrote = wrote
        self._clock = clock
        self._interval = interval
        self._loop = asyncio.get_running_loop()
        self._writing = asyncio.Lock()
        self._woken = asyncio.Event()
        self._counting = threading.Lock()
        self._awake = False
        self._is_settled = False
        self._bytes_done = record.bytes_done
        self._floor = 0
        self._file: tuple[int, str] = (record.file_index, record.file_name)
        self._note = record.note
        self._whole: deque[tuple[int, str]] = deque()
        self._samples: deque[tuple[float, int]] = deque([(self._loop.time(), record.bytes_done)])
        self._body: asyncio.Task[object] | None = asyncio.current_task()

    @property
    def bytes_done(self) -> int:
        """Bytes reported so far, the ones that were there before included."""
        return max(self._bytes_done, self._floor)

    def advance(self, count: int) -> None:
        """Count ``count`` more bytes. Callable from any thread; costs well under a microsecond once awake."""
        with self._counting:
            self._bytes_done += count
            if self._awake:
                return
            self._awake = True
        self._loop.call_soon_threadsafe(self._woken.set)

    def enter(self, index: int, name: str) -> None:
        """Say which file moves now; ``index`` counts from 1. Callable from any thread."""
        self._file = (index, name)
        self.advance(0)

    def tell(self, note: str) -> None:
        """Say one line on what the phase waits for. A sign of life, sent like a byte tick. From any thread."""
        self._note = note
        self.advance(0)

    async def change(self, *, bytes_done: int | None = None, floor: int = 0, **fields: object) -> None:
        """Write a transition: new values for fields of the record. Returns once the log has it.

        ``bytes_done`` is where `advance` counts on from. ``floor`` is what is on the disk already, but will be counted
        again while it is checked: less is not shown. Where that is less than the record says, bytes were lost since,
        and the work is a new attempt, for within one progress never falls (law L2).

        Raises:
            Fenced: somebody else owns the operation now, or has ended it.
        """
        if bytes_done is not None:
            self._bytes_done, self._floor = bytes_done, floor
            self._samples.clear()
        if "phase" in fields:
            self._note = ""
        await self._write(lambda: self._current(**fields), retry=True)

    async def leave(self) -> None:
        """Write that the owner goes, and somebody else may take the operation. Raises `Fenced`."""
        await self._write(
            lambda: operations.stalled(self._current(), "its process is stopping", self._clock()), retry=True
        )

    async def end(self, state: Outcome, *, error: str = "", note: str = "") -> None:
        """Write the end. Returns once the log has it. Raises `Fenced`."""
        await self._write(lambda: operations.ended(self._current(), state, self._clock(), error, note), retry=True)

    def complete(self, index: int, name: str) -> None:
        """Say that a file is whole. Always published, however soon after the last tick. Callable from any thread."""
        self._whole.append((index, name))
        self._loop.call_soon_threadsafe(self._woken.set)

    async def run(self) -> None:
        """Send byte ticks and completed files until cancelled."""
        next_tick = 0.0
        try:
            while not operations.is_ended(self.record):
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, next_tick - self._loop.time()) if self._awake else None):
                        await self._woken.wait()
                self._woken.clear()
                while self._whole:
                    index, name = self._whole.popleft()
                    await self._write(partial(self._current, file_index=index, file_name=name), retry=True)
                if self._awake and self._loop.time() >= next_tick:
                    next_tick = self._loop.time() + self._interval
                    with self._counting:
                        self._awake = False
                    await self._write(self._ticked, retry=False)
        except Fenced:
            self.halt("fence")

    def is_taken_by(self, held: Record) -> bool:
        """Tell whether ``held`` takes the operation away: a later word that this process did not say itself."""
        if held == self._wanted or not operations.outranks(held, self.record):
            return False
        is_ours = held.owner == self.record.owner and held.attempt <= self.record.attempt + 1
        return not is_ours or held.state not in {"running", "stalled"}

    def settle(self) -> None:
        """Let nothing interrupt the work's end any more: its outcome is decided and only has to be written."""
        self._is_settled = True

    def halt(self, by: Stop) -> None:
        """Stop the work: cancel, pause, or because somebody else owns the operation now. Idempotent."""
        if self.stopped_by is None and not self._is_settled and not operations.is_ended(self.record):
            self.stopped_by = by
            self.stop.set()
            if self._body is not None:
                self._body.cancel()

    async def restate(self) -> None:
        """Write the record again, into a log that came back without it."""
        await self._write(self._current, retry=True)

    def _current(self, **fields: object) -> Record:
        index, name = self._file
        values: dict[str, object] = {
            "bytes_done": self.bytes_done,
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
        return self._current(rate=self._rate(self._loop.time()))

    def _rate(self, now: float) -> float | None:
        """Return bytes per second over the window, or None where too little was seen to say."""
        done = self.bytes_done
        self._samples.append((now, done))
        while len(self._samples) > 2 and self._samples[0][0] < now - RATE_WINDOW:
            self._samples.popleft()
        began, at_start = self._samples[0]
        if now - began < 0.2 or done <= at_start:
            return None
        return (done - at_start) / (now - began)

    async def _write(self, make: Callable[[], Record], *, retry: bool) -> None:
        async with self._writing:
            if operations.is_ended(self.record):
                raise Fenced(self.record.id, self.record.attempt)
            record: Record | None = make()
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
            if self._wrote is not None:
                self._wrote(self.record)

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
        return _over(held, wanted)

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


def _over(held: Record | None, wanted: Record) -> Record:
    """Return ``wanted`` as the word that follows what stands on our subject."""
    if held is None or held.attempt < wanted.attempt:
        return wanted
    if held.state == "stalled" or held.bytes_done > wanted.bytes_done:
        # Somebody took us for dead while we slept, or the log tells of bytes that are lost: the work begins anew.
        return msgspec.structs.replace(wanted, attempt=held.attempt + 1, seq=0, earlier=operations.told(held))
    return msgspec.structs.replace(wanted, seq=max(wanted.seq, held.seq + 1))


def standing_record(entry: Entry | None) -> Record | None:
    """Return the record in the log's last word on an operation's subject, or None if there is none of ours."""
    if entry is None:
        return None
    try:
        return broadcast.decode(entry.subject.partition(".")[0], entry.payload).op
    except msgspec.DecodeError:
        return None
