"""A log that comes back without its past gets it again, and nobody sees less meanwhile (law L8)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import msgspec
import pytest
from msgspec.structs import replace

from stagecast import broadcast, operations, rows, subjects
from stagecast.errors import BusUnavailable
from stagecast.fold import Fold, Slot
from stagecast.messages import Limits, NodeRecord, Placement, Record, StagingEvent, StagingStatus
from stagecast.ownership import standing_record
from stagecast.restatement import Restatement
from stagecast.revision import Revision, first_of
from stagecast.tracker import Tracker
from tests.conftest import eventually
from tests.losing import LosingBus, LosingLog
from tests.peers import a_record

EARLY = a_record(seq=4, bytes_done=8)
LATE = a_record(seq=7, bytes_done=32)
PAUSED = operations.commanded(a_record(seq=6, bytes_done=8), "pause", 9.0)
END = operations.ended(a_record(seq=5, bytes_done=32), "failed", 9.0, error="no disk")


@pytest.fixture
def log() -> LosingLog:
    return LosingLog()


async def standing(log: LosingLog) -> Record | None:
    return standing_record(await log.last(subjects.operation(EARLY)))


def knowing(log: LosingLog, *records: Record) -> Restatement:
    return Restatement(log, missing=records)


@pytest.mark.parametrize(("first", "second"), [(EARLY, LATE), (LATE, EARLY), (LATE, END), (END, LATE), (END, END)])
async def test_the_greater_word_stands_whoever_is_first(log: LosingLog, first: Record, second: Record) -> None:
    await knowing(log, first).write()
    await knowing(log, second).write()
    assert await standing(log) == operations.merge(first, second)


@pytest.mark.parametrize(("known", "standing_there"), [(LATE, PAUSED), (PAUSED, LATE)])
async def test_of_two_with_the_same_number_the_one_that_stands_stands(
    log: LosingLog, known: Record, standing_there: Record
) -> None:
    """Somebody who did not know the last word of the lost log gave a command in the new one."""
    await log.append(subjects.operation(EARLY), broadcast.encode(standing_there))
    restatement = knowing(log, known)
    await restatement.write()
    assert await standing(log) == standing_there
    restatement.hear(standing_there)
    assert restatement.is_whole


async def test_what_a_plain_publisher_wrote_there_meanwhile_gives_way(log: LosingLog) -> None:
    await log.append(subjects.operation(EARLY), b'{"model_id": "m"}')
    await knowing(log, EARLY).write()
    assert await standing(log) == EARLY


def test_everything_that_is_known_counts_the_best_of_each(log: LosingLog) -> None:
    one, two = Fold(slots={EARLY.id: Slot(EARLY, 4)}), Fold(slots={EARLY.id: Slot(LATE, 1)})
    other = a_record(model="other")
    assert Restatement(log, (one, two), [other]).missing() == [other, LATE]


def test_it_is_whole_once_everything_was_heard_in_that_version_or_a_later_one(log: LosingLog) -> None:
    restatement = knowing(log, LATE)
    restatement.hear(EARLY)
    assert not restatement.is_whole
    restatement.hear(replace(LATE, seq=8))
    assert restatement.is_whole


@pytest.mark.parametrize("generations", [(1, 2), (2, 1)])
async def test_the_newer_of_two_wishes_stands(log: LosingLog, generations: tuple[int, int]) -> None:
    for generation in generations:
        await Restatement(log, [Fold(placements={"m": Placement(model="m", generation=generation)})]).write()
    entry = await log.last(subjects.placement("m"))
    assert entry is not None
    assert msgspec.json.decode(entry.payload, type=Placement).generation == 2


async def test_a_node_is_put_back_but_over_nothing_that_it_says_itself(log: LosingLog) -> None:
    """What is queued for a node that is away waits for its process, and is ended where that stays away (law L7)."""
    old, new = (NodeRecord(name="n", kind="worker", process=process) for process in ("n/1", "n/2"))
    restatement = Restatement(log, [Fold(nodes={"n": old})])
    await restatement.write()
    entry = await log.last(subjects.node("n"))
    assert entry is not None
    assert msgspec.json.decode(entry.payload, type=NodeRecord) == old
    await log.append(subjects.node("n"), msgspec.json.encode(new))
    await restatement.write()
    entry = await log.last(subjects.node("n"))
    assert entry is not None
    assert msgspec.json.decode(entry.payload, type=NodeRecord) == new


async def test_where_that_log_was_lost_too_nothing_more_is_written(log: LosingLog) -> None:
    restatement = knowing(log, EARLY)
    restatement.is_over = True
    await restatement.write()
    assert await standing(log) is None


@pytest.fixture
async def bus() -> LosingBus:
    return LosingBus()


@pytest.fixture
async def tracker(bus: LosingBus) -> AsyncIterator[Tracker]:
    async with AsyncExitStack() as stack:
        tracker = Tracker(bus, "a")
        await stack.enter_async_context(tracker.running())
        await tracker.caught_up.wait()
        yield tracker


async def test_the_old_picture_stays_in_view_until_the_new_log_has_all_of_it(tracker: Tracker, bus: LosingBus) -> None:
    await tracker.write(LATE, 0)
    await eventually(lambda: LATE.id in tracker.fold.slots)
    seen: list[Record | None] = []

    async def watch() -> None:
        while True:
            seen.append(tracker.fold.record(LATE.id))
            await tracker.changed(tracker.revision)

    watching = asyncio.create_task(watch())
    bus.log.lose()
    await eventually(lambda: tracker.revision.identity == bus.log.identity and not tracker.is_degraded)
    watching.cancel()
    await asyncio.wait([watching])
    assert set(map(str, seen)) == {str(LATE)}


async def test_what_this_process_wrote_and_has_not_heard_yet_is_put_back_too(tracker: Tracker, bus: LosingBus) -> None:
    await tracker.write(EARLY, 0)
    await eventually(lambda: EARLY.id in tracker.fold.slots)
    with bus.log.unheard():
        await tracker.write(END, 1)
    assert tracker.fold.record(EARLY.id) == EARLY
    bus.log.lose()
    await eventually(lambda: tracker.revision.identity == bus.log.identity)
    assert tracker.fold.record(EARLY.id) == await standing(bus.log) == END


async def test_what_its_owner_wrote_last_is_put_back_too(tracker: Tracker, bus: LosingBus) -> None:
    queued = a_record(owner="", attempt=1, state="queued")
    await tracker.write(queued, 0)
    with bus.log.unheard():
        async with tracker.own(queued) as ownership:
            assert ownership is not None
            await ownership.change(bytes_done=5)
    bus.log.lose()
    await eventually(lambda: tracker.revision.identity == bus.log.identity)
    found = tracker.fold.record(queued.id)
    assert found is not None
    assert (found.state, found.bytes_done) == ("succeeded", 5)


async def say(tracker: Tracker, bus: LosingBus, model: str, *, done: bool = False) -> None:
    said = StagingEvent(model_id=model, status=StagingStatus(model_id=model, bytes_sent=5), done=done)
    await bus.log.append(f"staging.{model}.progress", msgspec.json.encode(said))
    await eventually(lambda: tracker._incoming.revision.sequence == bus.log.sequence)


async def test_what_a_foreign_publisher_said_last_stays_in_view(tracker: Tracker, bus: LosingBus) -> None:
    """It may say nothing more for a minute, and then only that it is done: nothing ends by vanishing (laws L3, L8)."""
    for model, done in (("running", False), ("over", False), ("over", True)):
        await say(tracker, bus, model, done=done)
    seen: list[tuple[str, list[str]]] = []

    async def watch() -> None:
        while True:
            seen.append((tracker.revision.identity, [row.id for row in rows.listed(tracker.fold)]))
            await tracker.changed(tracker.revision)

    watching = asyncio.create_task(watch())
    await eventually(lambda: seen)
    for _ in range(2):
        bus.log.lose()
        await eventually(lambda: seen[-1][0] == bus.log.identity and not tracker.is_degraded)
    watching.cancel()
    await asyncio.wait([watching])
    assert len({identity for identity, _ in seen}) == 3
    assert {tuple(shown) for _, shown in seen} == {("staging:running",)}
    await say(tracker, bus, "running", done=True)
    assert rows.listed(tracker.fold) == []


async def test_a_foreign_operation_of_which_the_new_log_tells_is_not_put_back(tracker: Tracker, bus: LosingBus) -> None:
    await say(tracker, bus, "m")
    bus.log.lose()
    await say(tracker, bus, "m", done=True)
    await eventually(lambda: tracker.revision.identity == bus.log.identity and not tracker.is_degraded)
    assert rows.listed(tracker.fold) == []


async def test_a_log_that_is_lost_twice_loses_nothing(tracker: Tracker, bus: LosingBus) -> None:
    other = a_record(model="other")
    await tracker.write(LATE, 0)
    await eventually(lambda: LATE.id in tracker.fold.slots)
    bus.log.lose()
    await eventually(lambda: subjects.operation(LATE) in bus.log.standing)
    # Written into the second log, which is not in view yet.
    await bus.log.append(subjects.operation(other), broadcast.encode(other))
    await eventually(lambda: other.id in tracker._incoming.slots)
    bus.log.lose()
    await eventually(lambda: tracker.revision.identity == bus.log.identity)
    assert tracker.fold.slots.keys() == {LATE.id, other.id}


async def test_a_wish_outlives_a_log_that_is_lost_before_it_stands_there(tracker: Tracker, bus: LosingBus) -> None:
    """Nobody waits for it before the new log is shown, so the picture at hand does not have it."""
    wish = Placement(model="m", nodes=("w",), generation=3)
    await tracker.say(subjects.placement("m"), msgspec.json.encode(wish))
    await eventually(lambda: tracker.fold.placements == {"m": wish})
    append = bus.log.append

    async def refusing(*_arguments: object, **_options: object) -> int:
        raise BusUnavailable("not now")

    bus.log.append = refusing  # type: ignore[method-assign]
    bus.log.lose()
    await eventually(lambda: tracker.revision.identity == bus.log.identity)
    assert tracker.fold.placements == {}
    bus.log.lose()
    bus.log.append = append  # type: ignore[method-assign]
    await eventually(lambda: tracker.fold.placements == {"m": wish})


async def test_a_revision_waits_for_the_log_that_it_is_of(tracker: Tracker, bus: LosingBus) -> None:
    """Written into a log of which this process has not heard: it must not be taken for a place in the lost one (L5)."""
    await tracker.write(EARLY, 0)
    await eventually(lambda: EARLY.id in tracker.fold.slots)
    later = first_of(9) + 5
    placing = asyncio.create_task(tracker.place(later))
    await asyncio.sleep(0)
    assert not placing.done()
    bus.log.lose()
    bus.log.sequence = later
    await bus.log.append("staging.x.progress", b"{}")
    await eventually(placing.done)
    assert placing.result() == Revision(bus.log.identity, later)


async def test_a_claim_whose_answer_was_lost_is_a_claim(tracker: Tracker) -> None:
    queued = a_record(owner="z", attempt=1, state="stalled")
    revision = await tracker.write(queued, 0)
    await tracker.write(operations.claimed(queued, "a", 9.0), revision.sequence)
    async with tracker.own(queued) as ownership:
        assert ownership is not None
        assert ownership.record.attempt == 2


@pytest.mark.parametrize(("known", "stands"), [(0, 0), (3, 3), (5, 4), (4, 5)])
async def test_of_two_words_on_the_limits_the_later_one_stands(log: LosingLog, known: int, stands: int) -> None:
    if stands and stands != known:
        await log.append(subjects.LIMITS, msgspec.json.encode(Limits(rate=stands, generation=stands)))
    await Restatement(log, [Fold(limits=Limits(rate=known, generation=known)), Fold()]).write()
    entry = await log.last(subjects.LIMITS)
    found = msgspec.json.decode(entry.payload, type=Limits) if entry else Limits()
    assert found.rate == found.generation == max(known, stands)
