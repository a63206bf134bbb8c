from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagecast import broadcast, operations, subjects
from stagecast import ownership as module
from stagecast.bus import Bus, Log
from stagecast.bus.memory import MemoryBus
from stagecast.errors import BusUnavailable, Fenced
from stagecast.messages import Entry, Record, Verb
from stagecast.ownership import Ownership, standing_record
from tests.conftest import eventually
from tests.peers import a_record, gathered

QUEUED = a_record(state="queued", owner="")
SUBJECT = subjects.operation(QUEUED)


@pytest.fixture(params=["memory", "nats"])
async def bus(request: pytest.FixtureRequest) -> AsyncIterator[Bus]:
    async with gathered(request) as peers:
        yield await peers.bus("a")


class Recorder:
    """A log that notes when it was written to, and loses the acknowledgements it is told to lose."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.written: list[tuple[float, Record]] = []
        self.losses = 0

    async def append(self, subject: str, payload: bytes, *, expected: int | None = None) -> int:
        at = time.monotonic()
        sequence = await self._log.append(subject, payload, expected=expected)
        record = standing_record(Entry(subject, sequence, payload, 0.0))
        assert record is not None
        self.written.append((at, record))
        if self.losses:
            self.losses -= 1
            raise BusUnavailable("the acknowledgement was lost")
        return sequence

    async def last(self, subject: str) -> Entry | None:
        return await self._log.last(subject)

    @property
    def records(self) -> list[Record]:
        return [record for _, record in self.written]


async def claim(bus: Bus, owner: str = "a") -> tuple[Record, int]:
    standing = await bus.log.last(SUBJECT)
    record = operations.claimed(standing_record(standing) or QUEUED, owner, 1.7e9)
    return record, await bus.log.append(
        SUBJECT, broadcast.encode(record), expected=standing.sequence if standing else 0
    )


async def say(bus: Bus, record: Record) -> None:
    await bus.log.append(SUBJECT, broadcast.encode(record))


async def owning(bus: Bus, interval: float = 0.001) -> tuple[Ownership, Recorder]:
    record, sequence = await claim(bus)
    recorder = Recorder(bus.log)
    ownership = Ownership(recorder, record, sequence, clock=lambda: 1.7e9, interval=interval)  # type: ignore[arg-type]
    ownership.settle()
    return ownership, recorder


async def standing(bus: Bus) -> Record | None:
    return standing_record(await bus.log.last(SUBJECT))


async def ticking(ownership: Ownership, until: Callable[[], bool], each: Callable[[], None]) -> None:
    ticker = asyncio.create_task(ownership.run())
    try:
        async with asyncio.timeout(60):
            while not until():
                each()
                await asyncio.sleep(0.001)
    finally:
        async with ownership._writing:  # or a word might be on its way, of which nobody would know whether it came
            ticker.cancel()
        await asyncio.wait([ticker])


async def test_the_first_tick_goes_out_at_once_and_then_at_most_one_an_interval(bus: Bus) -> None:
    ownership, recorder = await owning(bus, interval=0.3)
    began = time.monotonic()
    await ticking(ownership, lambda: len(recorder.written) == 4, lambda: ownership.advance(10))
    assert time.monotonic() - began >= 3 * 0.3


async def test_the_first_tick_does_not_wait_for_an_interval(bus: Bus) -> None:
    ownership, recorder = await owning(bus, interval=3600.0)
    await ticking(ownership, lambda: len(recorder.written) == 1, lambda: ownership.advance(10))


async def test_the_last_bytes_before_a_pause_are_told_too(bus: Bus) -> None:
    ownership, recorder = await owning(bus, interval=0.02)
    steps = iter([7, 5])

    def burst() -> None:
        ownership.advance(next(steps, 0))

    await ticking(ownership, lambda: bool(recorder.records) and recorder.records[-1].bytes_done == 12, burst)


async def test_transitions_always_go_out_however_many(bus: Bus) -> None:
    ownership, recorder = await owning(bus, interval=60.0)
    for index in range(1, 21):
        ownership.enter(index, f"file {index}")
        await ownership.change(phase="transferring")
    await ownership.end("succeeded")
    assert [record.file_index for record in recorder.records] == [*range(1, 21), 20]
    seqs = [record.seq for record in recorder.records]
    assert seqs == sorted(set(seqs))
    assert await standing(bus) == recorder.records[-1] == ownership.record


async def test_every_byte_from_every_thread_is_counted(bus: Bus) -> None:
    ownership, _ = await owning(bus)

    def work() -> None:
        for _ in range(1000):
            ownership.advance(3)

    with ThreadPoolExecutor(4) as threads:
        await asyncio.gather(*(asyncio.wrap_future(threads.submit(work)) for _ in range(4)))
    assert ownership.bytes_done == 12_000
    await ownership.end("succeeded")
    assert ownership.record.bytes_done == 12_000


async def test_a_rate_is_said_only_once_enough_was_seen(bus: Bus) -> None:
    ownership, recorder = await owning(bus, interval=0.05)
    await ticking(ownership, lambda: len(recorder.records) >= 8, lambda: ownership.advance(1000))
    assert recorder.records[0].rate is None
    assert (recorder.records[-1].rate or 0.0) > 0.0
    await ownership.end("cancelled")
    assert recorder.records[-1].rate is None


async def test_a_note_is_a_sign_of_life_and_goes_with_its_phase(bus: Bus) -> None:
    ownership, recorder = await owning(bus)
    await ticking(ownership, lambda: bool(recorder.records), lambda: ownership.tell("waiting for a holder"))
    assert recorder.records[0].note == "waiting for a holder"
    await ownership.change(phase="verifying")
    assert recorder.records[-1].note == ""


async def test_nothing_follows_an_end(bus: Bus) -> None:
    ownership, recorder = await owning(bus)
    await ownership.end("failed", error="no disk")
    for late in (lambda: ownership.change(state="stalled"), lambda: ownership.end("succeeded"), ownership.restate):
        with pytest.raises(Fenced):
            await late()
    ownership.advance(1)
    await ownership.run()
    assert len(recorder.written) == 1
    assert await standing(bus) == ownership.record


async def test_whoever_lost_the_operation_can_write_nothing_more(bus: Bus) -> None:
    ownership, recorder = await owning(bus)
    theirs, _ = await claim(bus, "b")
    assert theirs.attempt == 2
    for late in (lambda: ownership.change(phase="verifying"), lambda: ownership.end("succeeded"), ownership.restate):
        with pytest.raises(Fenced, match="attempt 1 is no longer the current one"):
            await late()
    assert recorder.written == []
    assert await standing(bus) == theirs


async def test_a_tick_that_meets_the_fence_halts_the_work(bus: Bus) -> None:
    record, sequence = await claim(bus)
    made = asyncio.Event()
    found: list[Ownership] = []

    async def body() -> None:
        found.append(Ownership(bus.log, record, sequence, interval=0.001))
        made.set()
        await asyncio.Event().wait()

    work = asyncio.create_task(body())
    await made.wait()
    theirs, _ = await claim(bus, "b")
    found[0].advance(1)
    await found[0].run()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert found[0].stopped_by == "fence"
    assert found[0].stop.is_set()
    assert await standing(bus) == theirs


@pytest.mark.parametrize("outcome", ["cancelled", "failed"])
async def test_an_end_by_somebody_else_is_final(bus: Bus, outcome: str) -> None:
    ownership, _ = await owning(bus)
    end = operations.ended(ownership.record, outcome, 9.0)  # type: ignore[arg-type]
    await say(bus, end)
    with pytest.raises(Fenced):
        await ownership.end("succeeded")
    assert await standing(bus) == end


@pytest.mark.parametrize("commands", [("cancel",), ("pause",), ("cancel", "retry")])
async def test_a_command_over_the_owners_head_holds_though_it_begins_a_new_attempt_just_then(
    bus: Bus, commands: Sequence[Verb]
) -> None:
    ownership, _ = await owning(bus)
    await ownership.change(bytes_total=100, bytes_done=50)
    commanded = ownership.record
    for command in commands:
        commanded = operations.commanded(commanded, command, 9.0)
    await say(bus, commanded)
    with pytest.raises(Fenced):
        await ownership.change(bytes_done=20)  # bytes were lost: that would be the next attempt's first word
    assert await standing(bus) == commanded


async def test_an_owner_writes_over_how_an_earlier_attempt_ended(bus: Bus) -> None:
    """A log that came back empty hears of the operation from somebody who has not seen the retry."""
    ownership, _ = await owning(bus)
    await ownership.change(bytes_total=100, bytes_done=50)
    end = operations.ended(ownership.record, "failed", 9.0)
    await ownership.change(bytes_done=20)
    await say(bus, end)
    await ownership.change(bytes_done=30)
    assert await standing(bus) == ownership.record
    assert ownership.record.attempt == end.attempt + 1


async def test_a_pause_written_over_the_owners_head_holds(bus: Bus) -> None:
    for bytes_done in range(4):  # the tie between equal sequence numbers must not depend on what is in the records
        ownership, _ = await owning(bus)
        ownership.advance(bytes_done)
        paused = operations.commanded(ownership.record, "pause", 9.0 * 10**bytes_done)
        await say(bus, paused)
        with pytest.raises(Fenced):
            await ownership.change(phase="transferring")
        assert await standing(bus) == paused


async def test_an_owner_that_was_taken_for_dead_goes_on(bus: Bus) -> None:
    ownership, _ = await owning(bus)
    await say(bus, operations.stalled(operations.succeeding(ownership.record, 9.0), "silence", 9.0))
    ownership.advance(5)
    await ownership.change(phase="transferring")
    held = await standing(bus)
    assert held == ownership.record
    assert (held.state, held.owner, held.bytes_done, held.attempt) == ("running", "a", 5, 2)


async def test_what_somebody_else_wrote_on_the_subject_is_written_over(bus: Bus) -> None:
    ownership, _ = await owning(bus)
    for payload in (b'{"model_id":"m","done":true}', b"nonsense", broadcast.encode(QUEUED)):
        await bus.log.append(SUBJECT, payload)
        await ownership.change(phase="transferring")
        assert await standing(bus) == ownership.record
        assert ownership.record.attempt == 1


@pytest.mark.parametrize("losses", [1, 3])
async def test_a_lost_acknowledgement_writes_nothing_twice(bus: Bus, losses: int) -> None:
    ownership, recorder = await owning(bus)
    recorder.losses = losses
    await ownership.end("succeeded")
    assert [record.state for record in recorder.records] == ["succeeded"]
    assert await standing(bus) == ownership.record
    last = await bus.log.last(SUBJECT)
    assert last is not None
    assert last.sequence == ownership.sequence


async def test_a_tick_whose_acknowledgement_was_lost_is_followed_by_the_next(bus: Bus) -> None:
    ownership, recorder = await owning(bus)
    recorder.losses = 1
    await ticking(ownership, lambda: len(recorder.records) >= 3, lambda: ownership.advance(1))
    await ownership.change(phase="verifying")
    assert await standing(bus) == ownership.record
    assert ownership.stopped_by is None


async def test_a_tick_whose_acknowledgement_was_lost_keeps_its_number_to_itself(bus: Bus) -> None:
    """Law L6: what follows it is higher, not another record of the same rank."""
    ownership, recorder = await owning(bus, interval=60.0)
    recorder.losses = 1
    await ticking(ownership, lambda: bool(recorder.records), lambda: ownership.advance(1))
    ownership.advance(1)
    await ownership.change(phase="verifying")
    assert [(record.attempt, record.seq) for record in recorder.records] == [(1, 2), (1, 3)]


async def test_a_log_that_tells_of_more_bytes_than_there_are_gets_a_new_attempt(bus: Bus) -> None:
    """As when another process put an own earlier word back into a log that was lost."""
    ownership, _ = await owning(bus)
    await say(bus, operations.succeeding(ownership.record, 9.0, bytes_done=50))
    await ownership.change(bytes_done=8)
    held = await standing(bus)
    assert held == ownership.record
    assert (held.attempt, held.bytes_done) == (2, 8)


async def test_a_word_that_is_cancelled_between_two_tries_does_not_count_as_said(bus: Bus) -> None:
    """The next one must find out by itself that somebody took us for dead: a new attempt, no word of equal rank."""
    ownership, recorder = await owning(bus)
    await say(bus, operations.stalled(ownership.record, "taken for dead", 9.0))
    looked, tried_again, append = asyncio.Event(), asyncio.Event(), recorder.append

    async def hanging(subject: str, payload: bytes, *, expected: int | None = None) -> int:
        if expected == ownership.sequence and not looked.is_set():
            looked.set()
            return await append(subject, payload, expected=expected)  # refused
        tried_again.set()
        return await asyncio.Event().wait()  # type: ignore[return-value]  # never

    recorder.append = hanging  # type: ignore[method-assign]
    writing = asyncio.create_task(ownership.change(phase="transferring"))
    await tried_again.wait()
    writing.cancel()
    await asyncio.wait([writing])
    recorder.append = append  # type: ignore[method-assign]
    await ownership.change(phase="verifying")
    assert await standing(bus) == ownership.record
    assert (ownership.record.attempt, ownership.record.state, ownership.record.phase) == (2, "running", "verifying")


@pytest.mark.parametrize("state", ["paused", "stalled"])
async def test_what_waits_to_be_said_behind_the_last_word_is_not_said(bus: Bus, state: str) -> None:
    """A tick that waits while a pause is written must not show the operation as running again (law L3)."""
    ownership, recorder = await owning(bus)
    parting = ownership.change(state="paused") if state == "paused" else ownership.leave()
    await asyncio.gather(parting, ownership.change(phase="verifying"))
    assert [record.state for record in recorder.records] == [state]
    ownership.advance(5)
    await ownership.run()
    assert [record.state for record in recorder.records] == [state]


@pytest.mark.parametrize("ends", [False, True])
async def test_what_the_work_came_to_is_told_before_what_comes_next(bus: Bus, ends: bool) -> None:
    """No phase comes back after the next one has begun, whenever the ticker gets its turn."""
    ownership, recorder = await owning(bus)
    ownership.enter(1, "a.bin")
    ownership.check(5, 5)
    ownership.advance(5)
    ownership.complete(1, "a.bin")
    await (ownership.end("succeeded") if ends else ownership.change(phase="publishing"))
    told = [(record.phase, record.file_name, record.state) for record in recorder.records]
    last = ("transferring", "a.bin", "succeeded") if ends else ("publishing", "a.bin", "running")
    assert told == [
        ("verifying", "a.bin", "running"), ("transferring", "a.bin", "running"), ("transferring", "a.bin", "running"),
        last,
    ]  # fmt: skip


async def test_only_a_later_word_of_another_takes_the_operation_away(bus: Bus) -> None:
    ownership, _ = await owning(bus)
    ours = ownership.record
    replace = msgspec.structs.replace
    assert not ownership.is_taken_by(QUEUED)
    assert not ownership.is_taken_by(ours)
    assert not ownership.is_taken_by(replace(ours, owner="z", attempt=0, seq=99))
    assert not ownership.is_taken_by(operations.stalled(ours, "silence", 9.0))
    assert not ownership.is_taken_by(operations.succeeding(ours, 9.0))
    assert ownership.is_taken_by(operations.claimed(ours, "b", 9.0))
    assert ownership.is_taken_by(operations.ended(ours, "cancelled", 9.0))
    assert ownership.is_taken_by(operations.commanded(ours, "pause", 9.0))
    await ownership.end("succeeded")
    assert not ownership.is_taken_by(ownership.record)


async def test_a_halt_comes_once_and_not_after_the_outcome_is_decided(bus: Bus) -> None:
    record, sequence = await claim(bus)
    ownership = Ownership(bus.log, record, sequence)
    ownership._body = None
    ownership.halt("pause")
    ownership.halt("cancel")
    assert ownership.stopped_by == "pause"
    decided = Ownership(bus.log, record, sequence)
    decided.settle()
    decided.halt("cancel")
    assert decided.stopped_by is None


async def test_advancing_costs_microseconds(bus: Bus) -> None:
    ownership, _ = await owning(bus)
    ownership.advance(1)

    def seconds() -> float:
        began = time.perf_counter()
        for _ in range(500):
            ownership.advance(1)
        return (time.perf_counter() - began) / 500

    assert min(seconds() for _ in range(20)) < 20e-6, "the best of them: in another one the machine may stand still"


async def test_a_bus_that_is_away_keeps_transitions_waiting_and_drops_ticks(bus: Bus) -> None:
    ownership, recorder = await owning(bus)
    is_away = True
    inner = recorder._log

    class Away:
        async def append(self, subject: str, payload: bytes, *, expected: int | None = None) -> int:
            if is_away:
                raise BusUnavailable("stopped")
            return await inner.append(subject, payload, expected=expected)

        async def last(self, subject: str) -> Entry | None:
            return await inner.last(subject)

    recorder._log = Away()  # type: ignore[assignment]
    change = asyncio.create_task(ownership.change(phase="verifying"))
    await asyncio.sleep(0)
    assert not change.done()
    is_away = False
    await eventually(change.done)
    assert (await standing(bus)) == ownership.record
    assert ownership.record.phase == "verifying"


async def test_what_is_read_again_shows_as_verifying_and_counts_neither_as_done_nor_as_moved(bus: Bus) -> None:
    ownership, recorder = await owning(bus)
    await ownership.change(phase="transferring", bytes_total=100, bytes_done=45, bytes_present=45)
    attempt, parts = ownership.record.attempt, iter([30, 15])

    def step() -> None:
        if recorder.records[-1].note == "45 B of 45 B checked":
            ownership.advance(1)
        elif part := next(parts, 0):
            ownership.check(part, 45)

    await ticking(ownership, lambda: recorder.records[-1].bytes_done > 45, step)
    assert {(record.attempt, record.bytes_present) for record in recorder.records} == {(attempt, 45)}
    verifying = [record for record in recorder.records if record.phase == "verifying"]
    assert {(record.bytes_done, record.rate) for record in verifying} == {(45, None)}
    assert (recorder.records[-1].phase, recorder.records[-1].note) == ("transferring", "")


async def test_bytes_that_turn_out_to_be_here_are_done_but_did_not_move(bus: Bus) -> None:
    ownership, recorder = await owning(bus, interval=0.01)
    await ownership.change(bytes_total=10**9, bytes_done=5, bytes_present=5)
    await ticking(ownership, lambda: len(recorder.records) >= 30, lambda: ownership.find(10))
    end = recorder.records[-1]
    assert end.bytes_done == end.bytes_present > 5
    assert {record.rate for record in recorder.records} == {None}


async def test_bytes_that_were_lost_make_a_new_attempt(bus: Bus) -> None:
    ownership, recorder = await owning(bus)
    await ownership.change(bytes_total=100, bytes_done=50)
    await ownership.change(bytes_done=20)
    first, second = recorder.records
    assert (second.attempt, second.bytes_done) == (first.attempt + 1, 20)
    assert await standing(bus) == second


async def test_whoever_takes_its_work_back_counts_only_what_follows_as_moved_since(bus: Bus) -> None:
    """What the attempts took and moved is together what the work took and moved."""
    record, sequence = await claim(bus)
    now = record.claimed_at
    ownership = Ownership(bus.log, record, sequence, clock=lambda: now)
    ownership.settle()
    ownership.advance(60)
    now += 95
    await ownership.change(phase="transferring", bytes_total=100)
    first = operations.stalled(operations.succeeding(ownership.record, now + 5), "silence", now + 5)
    await say(bus, first)
    ownership.advance(20)
    now += 10
    await ownership.change(phase="transferring")
    ownership.find(5)
    ownership.advance(15)
    now += 6
    await ownership.end("succeeded")
    end = await standing(bus)
    assert end == ownership.record
    assert [(told.attempt, told.ended_at - told.claimed_at) for told in end.earlier] == [(1, 100)]
    assert (operations.took(first), operations.moved(first)) == (100, 60)
    assert (end.attempt, operations.took(end), operations.moved(end), end.bytes_done) == (2, 6, 35, 100)


ACTIONS = ("advance", "find", "done", "total", "said", "judged", "unanswered")
SCRIPT = st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 99)), max_size=15)


async def played(script: list[tuple[str, int]]) -> list[Record]:
    """Return what an owner and a judge have written, the one or the other at a time."""
    log = Recorder(MemoryBus().log)
    record = operations.claimed(QUEUED, "a", 1.7e9)
    ownership = Ownership(log, record, await log.append(SUBJECT, broadcast.encode(record)))  # type: ignore[arg-type]
    for action, count in script:
        if action in {"advance", "find"}:
            getattr(ownership, action)(count)
        elif action == "unanswered":
            log.losses = 1
        elif action == "judged":
            standing = await log.last(SUBJECT)
            held = standing_record(standing)
            assert standing is not None
            assert held is not None
            log.losses = 0
            word = broadcast.encode(operations.stalled(held, "silence", 1.7e9))
            await log.append(SUBJECT, word, expected=standing.sequence)
        else:
            changes = {"done": {"bytes_done": count}, "total": {"bytes_total": count}}.get(action, {})
            await ownership.change(**changes)  # type: ignore[arg-type]
    await ownership.end("cancelled")
    return log.records


@given(SCRIPT)
def test_progress_never_falls_within_an_attempt(script: list[tuple[str, int]]) -> None:
    """Whatever the work tells of itself, bytes and percentage (law L2), and a lower fence never follows (law L6)."""
    with patch.object(module, "RETRY_INTERVAL", 0.0):
        records = asyncio.run(played(script))
    for one, other in itertools.pairwise(records):
        assert operations.outranks(other, one)
        if operations.fence(other) == operations.fence(one):
            assert other.bytes_done >= one.bytes_done
            assert broadcast.percentage(other) >= broadcast.percentage(one)


class Unanswering:
    """A log that takes what is written, and whose first answer never comes."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.has_taken = asyncio.Event()
        self.last = log.last

    async def append(self, subject: str, payload: bytes, *, expected: int | None = None) -> int:
        sequence = await self._log.append(subject, payload, expected=expected)
        if not self.has_taken.is_set():
            self.has_taken.set()
            await asyncio.Event().wait()
        return sequence


async def test_what_was_just_changed_when_the_work_was_stopped_is_not_taken_back_by_the_last_word(bus: Bus) -> None:
    record, sequence = await claim(bus)
    log = Unanswering(bus.log)
    ownership = Ownership(log, record, sequence)  # type: ignore[arg-type]  # it is not followed
    change = ownership.change(phase="transferring", bytes_done=50, bytes_total=100, total_files=3)
    changing = asyncio.create_task(change)
    await log.has_taken.wait()
    changing.cancel()
    await asyncio.wait([changing])
    await ownership.change(state="paused", note="paused", rate=None)
    last = await standing(bus)
    assert last is not None
    assert (last.state, last.attempt, last.phase) == ("paused", record.attempt, "transferring")
    assert (last.bytes_done, last.bytes_total, last.total_files) == (50, 100, 3)


@pytest.mark.parametrize(("total", "attempt"), [(100, 1), (50, 1), (101, 2), (0, 2)])
async def test_a_total_that_would_let_the_percentage_fall_makes_a_new_attempt(
    bus: Bus, total: int, attempt: int
) -> None:
    """Within an attempt progress never falls (law L2), and that is what people are shown."""
    ownership, recorder = await owning(bus)
    await ownership.change(bytes_total=100, bytes_done=50)
    await ownership.change(bytes_total=total)
    last = recorder.records[-1]
    assert (last.attempt, last.bytes_done, last.bytes_total) == (attempt, 50, total)
    assert [each.error for each in last.earlier] == ["there is more to do than was known"] * (attempt - 1)


async def test_what_was_lost_had_moved_in_the_attempt_before(bus: Bus) -> None:
    ownership, recorder = await owning(bus)
    ownership.advance(50)
    await ownership.change(bytes_total=100)
    await ownership.change(bytes_done=20)
    ownership.advance(80)
    await ownership.end("succeeded")
    assert [operations.moved(record) for record in recorder.records] == [50, 0, 80]


async def test_a_tick_that_begins_a_new_attempt_is_tried_until_the_log_has_it(bus: Bus) -> None:
    """Dropped, the next one would go by the stall's sequence, and write the earlier attempt over it (law L6)."""
    ownership, recorder = await owning(bus)
    await say(bus, operations.stalled(msgspec.structs.replace(ownership.record, seq=50), "silence", 9.0))
    inner, refusals = recorder.append, 1

    async def append(subject: str, payload: bytes, *, expected: int | None = None) -> int:
        nonlocal refusals
        standing = await bus.log.last(SUBJECT)
        if standing is not None and standing.sequence == expected and refusals:
            refusals -= 1
            raise BusUnavailable("it never came")
        return await inner(subject, payload, expected=expected)

    recorder.append = append  # type: ignore[method-assign]
    await ticking(ownership, lambda: bool(recorder.records), lambda: ownership.advance(1))
    await ownership.change(phase="verifying")
    assert {record.attempt for record in recorder.records} == {2}
    assert await standing(bus) == ownership.record


async def test_each_completed_file_goes_out_however_soon_after_a_tick(bus: Bus) -> None:
    ownership, recorder = await owning(bus, interval=60.0)
    names = [f"file-{number}" for number in range(20)]
    ownership.advance(1)
    for number, name in enumerate(names, 1):
        ownership.complete(number, name)
    await ticking(ownership, lambda: len(recorder.records) >= 20, lambda: None)
    assert [record.file_name for record in recorder.records if record.file_name] == names


async def test_the_first_byte_after_a_start_is_told_at_once_whatever_was_told_before(bus: Bus) -> None:
    ownership, recorder = await owning(bus, interval=60.0)
    await ticking(ownership, lambda: len(recorder.records) == 1, lambda: ownership.tell("looking for a holder"))
    await ownership.change(phase="transferring", bytes_total=10)
    await ticking(ownership, lambda: recorder.records[-1].bytes_done > 0, lambda: ownership.advance(1))
    assert len(recorder.records) == 3


async def test_an_owner_gives_a_sign_of_life_whatever_its_work_is_at(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT", 0.05)
    ownership, recorder = await owning(bus, interval=60.0)
    await ownership.change(phase="publishing")
    await ticking(ownership, lambda: len(recorder.records) >= 4, lambda: None)
    assert {(record.state, record.phase, record.attempt) for record in recorder.records} == {
        ("running", "publishing", 1)
    }


async def test_what_waits_for_long_is_stalled_while_it_does(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT", 0.05)
    monkeypatch.setattr(module, "PATIENCE", 0.1)
    ownership, recorder = await owning(bus, interval=0.01)
    await ticking(
        ownership, lambda: recorder.records[-1:] != [] and recorder.records[-1].state == "stalled",
        lambda: ownership.wait("network", "it fails"),
    )  # fmt: skip
    stalled = recorder.records[-1]
    assert (stalled.waits_on, stalled.note, stalled.owner) == ("network", "it fails", "a")
    await ticking(ownership, lambda: len(recorder.records) > 8, lambda: ownership.wait("source", "it fails"))
    later = recorder.records[-1]
    assert (later.state, later.waits_on, later.waits_since) == ("stalled", "source", stalled.waits_since)
    await ticking(ownership, lambda: recorder.records[-1].state == "running", lambda: ownership.wait(""))
    assert (recorder.records[-1].waits_on, recorder.records[-1].waits_since) == ("", 0.0)
    assert await standing(bus) == ownership.record


async def test_no_tick_comes_after_a_pause_and_denies_it(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT", 0.0)
    ownership, recorder = await owning(bus, interval=0.0)
    ticker = asyncio.create_task(ownership.run())
    ownership.advance(1)
    await eventually(lambda: recorder.records)
    await ownership.change(state="paused", note="paused", rate=None)
    ownership.advance(1)
    await ticker
    assert [record.state for record in recorder.records[-2:]] == ["running", "paused"]
    await ownership.restate()
    assert (await standing(bus)).state == "paused"  # type: ignore[union-attr]


async def test_no_tick_comes_after_the_goodbye_and_denies_it(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT", 0.0)
    ownership, recorder = await owning(bus, interval=0.0)
    ticker = asyncio.create_task(ownership.run())
    await eventually(lambda: recorder.records)
    await ownership.leave()
    await ticker
    assert (recorder.records[-1].state, recorder.records[-1].waits_on) == ("stalled", "owner")
    assert await standing(bus) == recorder.records[-1]
