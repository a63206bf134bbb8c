"""The tracker: follows the log, folds it, and is the only part that knows that work has a record.

Reading costs nothing but memory; waiting is for a change of the fold; writing goes through compare-and-set.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AbstractContextManager, aclosing, asynccontextmanager, suppress
from typing import Final

from stagecast import archive, broadcast, operations, subjects
from stagecast.bus import Anew, Bus, CaughtUp, Heard, Lost
from stagecast.changes import Changes, Topic
from stagecast.errors import AppendConflict, BusUnavailable, Fenced, Interrupted, StagecastError
from stagecast.fold import Change, Fold, Slot
from stagecast.mending import Mender
from stagecast.messages import Entry, Horizon, Kind, Record
from stagecast.mirror import Mirror
from stagecast.ownership import RETRY_INTERVAL, TICK_INTERVAL, Ownership, horizon_in, standing_record
from stagecast.restatement import Restatement
from stagecast.revision import Revision, is_one_stream
from stagecast.server_clock import ServerClock
from stagecast.unheard import Unheard

_logger = logging.getLogger(__name__)

RESTATE_GRACE: Final = 0.5
"""Seconds for which the old picture stays in view after the log came back as another one: owners restate theirs."""
PLACE_TIMEOUT: Final = 2.0
WARN_INTERVAL: Final = 60.0


class Tracker:
    """One process's view of everything, and its pen."""

    def __init__(
        self, bus: Bus, process: str, *, clock: Callable[[], float] = time.time, interval: float = TICK_INTERVAL,
        mends: bool = True, chance: random.Random | None = None, monotonic: Callable[[], float] | None = None,
    ) -> None:  # fmt: skip
        self.bus = bus
        self.process = process
        self.fold = Fold()
        self.is_degraded, self.is_closing = True, False
        self.malformed = 0
        self.owned: dict[str, Ownership] = {}
        self.caught_up = asyncio.Event()
        self.hearers: list[Callable[[Record], None]] = []
        """Called with each record that an operation comes to have, also those that are soon outranked."""
        self.forgetters: list[Callable[[tuple[Slot | Mirror, ...], Horizon], None]] = []
        """Called with what a horizon has made this process forget, and with that one."""
        self.server_clock = ServerClock(monotonic or (lambda: asyncio.get_running_loop().time()))
        self._clock = clock
        self._interval = interval
        self._chance = chance or random.SystemRandom()
        self._mender = Mender(bus.log, process, mends=mends, chance=self._chance)
        self._incoming = self._settled = self.fold
        self.placed = self.revision  # where the latest of what this process wrote stands: maybe beyond its fold
        self._changes = Changes()
        self._is_heard, self._warned = False, float("-inf")
        self._restatement = Restatement(bus.log)
        self._unheard = Unheard()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def revision(self) -> Revision:
        """How far this process has folded the log."""
        return self.fold.revision

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Tracker, None]:
        """Follow the log for as long as the block lasts."""
        follower = asyncio.create_task(self._follow(), name="tracker")
        try:
            yield self
        finally:
            for task in (follower, *self._tasks):
                task.cancel()
            await asyncio.gather(follower, *self._tasks, return_exceptions=True)

    @property
    def identity(self) -> str:
        """The identity of the stream that is followed now, which may be newer than the picture in view."""
        return self._incoming.revision.identity

    def now(self) -> float:
        """Return the time that this process dates its records with, in seconds since 1970."""
        return self._clock()

    def new_id(self) -> str:
        """Return an id that nobody else has, of a job or a call."""
        return f"{self._chance.getrandbits(64):016x}"

    async def changed(self, after: Revision, timeout: float | None = None) -> bool:
        """Wait until the fold stands at another revision than ``after``; tell whether it does."""
        return await self.until(lambda: self.revision != after, timeout)

    async def reached(self, revision: Revision, timeout: float | None = None) -> bool:
        """Wait until the fold has reached ``revision``; tell whether it has.

        One that seems to be of a later stream, when the log was heard all the while, is of one that is gone: the server
        that made it had a clock that ran ahead. Then nothing later than what is here can be had.
        """
        if await self.until(lambda: revision.reached_by(self.revision), timeout):
            return True
        return revision.is_after(self.revision) and not self.is_degraded

    async def until(self, condition: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait until ``condition`` holds, asked anew after every change of the fold; tell whether it does."""
        return await self._changes.until(condition, timeout)

    def listening(self, topic: Topic, hear: Callable[[], None]) -> AbstractContextManager[None]:
        """Call ``hear`` after each change of what it concerns, and after a fresh picture, within the block."""
        return self._changes.listening(topic, hear)

    async def say(self, subject: str, payload: bytes, *, expected: int | None = None) -> Revision:
        """Append to the log and return the revision that has it. Raises `AppendConflict`, `BusUnavailable`."""
        return await self.place(await self.bus.log.append(subject, payload, expected=expected))

    async def place(self, sequence: int) -> Revision:
        """Return the revision of a message that somebody wrote just now.

        What was written may be in a log of which this process has not heard yet: then it waits to learn of it.

        Raises:
            BusUnavailable: it does not.
        """
        if not await self.until(lambda: is_one_stream(sequence, self._incoming.revision.sequence), PLACE_TIMEOUT):
            raise BusUnavailable("it went into a log that cannot be heard yet")
        at = Revision(self.identity, sequence)
        self.placed = at.later(self.placed)
        return at

    async def write(self, record: Record, expected: int) -> Revision:
        """Append an operation's record where its last word stands at ``expected``. Raises like `say`."""
        revision = await self.say(subjects.operation(record), broadcast.encode(record), expected=expected)
        self._unheard.note(record, revision.sequence, self._incoming)
        return revision

    async def open(
        self, kind: Kind, model: str, node: str = "", *, cause: str, parameters: dict[str, str] | None = None,
        bytes_total: int = 0, total_files: int = 0, claim: bool = False, call: str = "",
        beside: tuple[str, ...] = (),
    ) -> tuple[Record, Revision]:  # fmt: skip
        """Queue an operation, or return the one that is under way already. ``claim``: own it from the start."""
        identifier = operations.operation_id(kind, model, node)
        while True:
            held, sequence = await self.standing(identifier, kind, model, node)
            if held is not None and not operations.is_ended(held):
                return held, await self.place(sequence) if sequence else self.revision
            if held is not None:
                await archive.keep(self.bus.history, held)
            record = operations.opened(
                held, kind=kind, model=model, node=node, job=self.new_id(), now=self._clock(), cause=cause, call=call,
                parameters=parameters, bytes_total=bytes_total, total_files=total_files, beside=beside,
                era=0 if held and sequence else await self.present_era(),
            )  # fmt: skip
            if claim:
                record = operations.claimed(record, self.process, self._clock())
            with suppress(AppendConflict):
                return record, await self.write(record, sequence)

    async def standing(self, identifier: str, kind: Kind, model: str, node: str) -> tuple[Record | None, int]:
        """Return the log's own last word on an operation, and the sequence of whatever stands on its subject."""
        probe = Record(id=identifier, job="", kind=kind, model=model, node=node)
        entry = await self.bus.log.last(subjects.operation(probe))
        held = standing_record(entry)
        known = [word for word in (self.fold.slots.get(identifier), self._unheard.get(identifier)) if word is not None]
        if entry is None and known:
            # Gone from the log: with the log, or because all but this process have forgotten it by now.
            horizon = horizon_in(await self.bus.log.last(subjects.HORIZON))
            known = [word for word in known if not horizon.forgets(word.sequence)]
        for word in known:
            held = operations.merge(held, word.record)
        return held, entry.sequence if entry else 0

    async def present_era(self) -> int:
        """Return the era in which an operation begins of which the log knows nothing. Raises `BusUnavailable`."""
        standing = horizon_in(await self.bus.log.last(subjects.HORIZON))
        return max(standing.number, self.fold.horizon.number)

    def close(self) -> None:
        """Wake everybody who waits for a change: this process is about to end."""
        self.is_closing = True
        self._changes.notify()

    @asynccontextmanager
    async def own(self, record: Record, *, passes_on: bool = False) -> AsyncGenerator[Ownership | None, None]:
        """Claim an operation and yield the right to write its record; what the block does decides how it ends.

        A block that returns has succeeded, one that raises has failed with that cause, which goes on only if told so by
        ``passes_on``. Cancelling and pausing from outside cancel it. Yields None where somebody else was first.
        """
        ownership = await self._claim(record)
        if ownership is None:
            yield None
            return
        self.owned[record.id] = ownership
        ticker = asyncio.create_task(ownership.run(), name=f"ticks of {record.id}")
        try:
            yield ownership
            ownership.settle()
            if not operations.is_ended(ownership.record):
                await ownership.end("succeeded")
        except Fenced as error:
            _logger.info("%s", error.message)
            if passes_on:
                raise
        except (asyncio.CancelledError, Interrupted):
            await self._stopped(ownership)
        except StagecastError as error:
            await ownership.fail(error.message)
            if passes_on:
                raise
        except Exception as error:
            await ownership.fail(f"{type(error).__name__}: {error}")
            if passes_on:
                raise
            _logger.exception("%s", record.id)
        finally:
            ticker.cancel()
            await asyncio.gather(ticker, return_exceptions=True)
            self.owned.pop(record.id, None)
            ownership.released.set()

    async def _claim(self, record: Record) -> Ownership | None:
        """Claim an operation, however long the bus is away; None where somebody else has it or it has ended."""
        while True:
            try:
                return await self._try_to_claim(record)
            except BusUnavailable:
                await asyncio.sleep(RETRY_INTERVAL)

    async def _try_to_claim(self, record: Record) -> Ownership | None:
        while True:
            held, sequence = await self.standing(record.id, record.kind, record.model, record.node)
            if held is None or operations.is_ended(held) or held.state == "paused":
                return None
            if held.owner == self.process and held.state == "running":
                # Claimed at the start, or by a claim whose answer was lost.
                return self._ownership(held, sequence)
            if operations.fence(held) > operations.fence(record) or held.owner != record.owner:
                return None
            claimed = operations.claimed(held, self.process, self._clock())
            with suppress(AppendConflict):
                revision = await self.write(claimed, sequence)
                return self._ownership(claimed, revision.sequence)

    def _ownership(self, record: Record, sequence: int) -> Ownership:
        return Ownership(
            self.bus.log, record, sequence, clock=self._clock, interval=self._interval,
            wrote=lambda word, at: self._unheard.note(word, at, self._incoming),
        )  # fmt: skip

    async def _stopped(self, ownership: Ownership) -> None:
        """Write what a stop from outside makes of the operation; without one, this process itself is leaving."""
        task = asyncio.current_task()
        if ownership.stopped_by is None:
            with suppress(StagecastError, TimeoutError):
                async with asyncio.timeout(1.0):
                    await ownership.leave()
            raise asyncio.CancelledError
        others = task.uncancel() if task is not None else 0
        with suppress(Fenced):
            if ownership.stopped_by == "cancel":
                await ownership.end("cancelled")
            elif ownership.stopped_by == "pause":
                await ownership.change(state="paused", note="paused", rate=None)
            elif ownership.stopped_by == "turn":
                await ownership.put_back()
        if others:
            raise asyncio.CancelledError

    async def _follow(self) -> None:
        async with aclosing(self.bus.log.follow()) as heard:
            async for each in heard:
                try:
                    self._hear(each)
                except Exception:
                    _logger.exception("folding %r", each)

    def _hear(self, heard: Heard) -> None:
        if isinstance(heard, Entry):
            self._apply(heard)
        elif isinstance(heard, Anew):
            self._begin_anew(heard.identity)
        elif isinstance(heard, CaughtUp):
            self._catch_up(heard)
        elif isinstance(heard, Lost):
            self._is_heard, self.is_degraded = False, True
            self._changes.notify()

    def _begin_anew(self, identity: str) -> None:
        """Follow another log than before, and put back there what this process knows of operations."""
        earlier, self._incoming = self._incoming, Fold(Revision(identity, 0))
        self.server_clock.forget()
        self._restatement.is_over = True
        words = [*self._restatement.missing(), *self._unheard]
        self._restatement = Restatement(self.bus.log, (self.fold, earlier), words, self._restatement)
        self._is_heard, self.is_degraded = False, True
        self._changes.tell("identity")
        if self._restatement.is_needed or self.owned:
            self._spawn(self._restate())
        self._changes.notify()

    def _catch_up(self, heard: CaughtUp) -> None:
        incoming = self._incoming
        at = max(incoming.revision.sequence, heard.sequence)
        incoming.revision = Revision(incoming.revision.identity, at)
        self._is_heard = True
        self._changes.notify()
        if self.caught_up.is_set() and incoming is not self._settled:
            asyncio.get_running_loop().call_later(RESTATE_GRACE, self._settle, incoming)
        elif not self._mender.is_whole:
            self._spawn(self._settle_once_mended(incoming))
        else:
            self._settle(incoming)

    async def _settle_once_mended(self, fold: Fold) -> None:
        await self._mender.mended()
        self._settle(fold)

    def _settle(self, fold: Fold) -> None:
        """Show a fold as soon as everything that is known stands in it."""
        if fold is self._incoming:
            self._settled = fold
            self._show()

    def _show(self) -> None:
        if self._settled is self._incoming and self._is_heard and self._restatement.is_whole:
            self.fold = self._incoming
            self.is_degraded = not self.bus.is_connected
            self.caught_up.set()
            for identifier in list(self.owned):
                self._tell_owner(identifier)
            self._changes.tell("holding", "placement", "limits")
            self._changes.notify()

    def _apply(self, entry: Entry) -> None:
        self.server_clock.hear(entry.time)
        change = self._incoming.apply(entry)
        if change.what == "malformed":
            self._count_malformed(entry)
        if self.caught_up.is_set():
            for repair in self._mender.repairs(change, entry.sequence, lambda: self._incoming):
                self._spawn(repair)
        else:
            self._mender.look(change, entry.subject)
        if change.what == "operation":
            self._hear_word(self._incoming.slots[change.id].record)
        elif change.what == "foreign":
            self._restatement.hear_foreign(change.id)
        elif change.what == "horizon":
            self._hear_horizon(change, entry.sequence)
        if self._incoming is self.fold:
            if change.what == "operation":
                self._tell_owner(change.id)
            if change.what == "holding" or change.what == "placement" or change.what == "limits":
                self._changes.tell(change.what)
            self._changes.notify()
        else:
            self._show()

    def _hear_word(self, record: Record) -> None:
        for hear in self.hearers:
            hear(record)
        self._unheard.hear(record)
        self._restatement.hear(record)

    def _hear_horizon(self, change: Change, sequence: int) -> None:
        self._unheard.let_go(sequence)
        for hear in self.forgetters:
            hear(change.forgotten, self._incoming.horizon)

    def _tell_owner(self, identifier: str) -> None:
        ownership, slot = self.owned.get(identifier), self.fold.slots.get(identifier)
        if ownership is not None and slot is not None and ownership.is_taken_by(slot.record):
            ownership.halt("fence")

    async def _restate(self) -> None:
        await self._restatement.write()
        for ownership in list(self.owned.values()):
            with suppress(Fenced):
                await ownership.restate()

    def _count_malformed(self, entry: Entry) -> None:
        self.malformed += 1
        now = asyncio.get_running_loop().time()
        if now - self._warned >= WARN_INTERVAL:
            self._warned = now
            _logger.warning("dropped a malformed event on %s (%d so far)", entry.subject, self.malformed)

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
