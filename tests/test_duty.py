"""A duty takes what is free, once, and what came meanwhile afterwards; on the memory bus and on a real nats-server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import msgspec
import pytest

from stagecast import operations, subjects
from stagecast.bus.memory import MemoryBus
from stagecast.commands import Commands
from stagecast.duty import Duty
from stagecast.errors import AppendConflict
from stagecast.messages import Limits, Record
from stagecast.ownership import Ownership
from stagecast.tracker import Tracker
from tests.conftest import eventually
from tests.peers import Peers, a_record, gathered


@pytest.fixture(params=["memory", "nats"])
async def peers(request: pytest.FixtureRequest) -> AsyncIterator[Peers]:
    async with gathered(request) as peers:
        yield peers


class Performer:
    """Work that lasts until it is let go, and what it was called with."""

    def __init__(self) -> None:
        self.begun: list[Record] = []
        self.cleared: list[Record] = []
        self.go = asyncio.Event()

    async def perform(self, ownership: Ownership) -> None:
        self.begun.append(ownership.record)
        await self.go.wait()

    async def clear(self, record: Record) -> None:
        self.cleared.append(record)


@pytest.fixture
def performer() -> Performer:
    return Performer()


def is_shown(tracker: Tracker, operation: str, state: str) -> bool:
    record = tracker.fold.record(operation)
    return record is not None and record.state == state


async def written(tracker: Tracker, record: Record) -> None:
    """Write a record over whatever stands on its subject."""
    while True:
        _, sequence = await tracker.standing(record.id, record.kind, record.model, record.node)
        with suppress(AppendConflict):
            await tracker.write(record, sequence)
            return


async def test_what_stood_before_and_what_comes_are_taken_once_each(peers: Peers, performer: Performer) -> None:
    one, two = await peers.tracker("one"), await peers.tracker("two")
    before, _ = await one.open("render", "before", cause="test")
    async with Duty(two, "render", performer.perform).running():
        after, _ = await one.open("render", "after", cause="test")
        await one.open("mix", "other kind", cause="test")
        await one.open("render", "other node", "n", cause="test")
        await eventually(lambda: len(performer.begun) == 2)
        performer.go.set()
        await eventually(lambda: all(is_shown(one, each.id, "succeeded") for each in (before, after)))
    assert {record.model for record in performer.begun} == {"before", "after"}
    assert {record.owner for record in performer.begun} == {"two"}
    assert {record.state for record in one.fold.live()} == {"queued"}


async def test_of_many_processes_one_takes_it(peers: Peers, performer: Performer) -> None:
    trackers = [await peers.tracker(f"t{number}") for number in range(3)]
    duties = [Duty(tracker, "render", performer.perform) for tracker in trackers]
    async with duties[0].running(), duties[1].running(), duties[2].running():
        record, _ = await trackers[0].open("render", "m", cause="test")
        performer.go.set()
        await eventually(lambda: all(is_shown(tracker, record.id, "succeeded") for tracker in trackers))
    assert len(performer.begun) == 1


@pytest.mark.parametrize(("waits_on", "taken"), [("owner", True), ("source", False)])
async def test_what_waits_for_a_dead_owner_is_taken_over_and_nothing_else(
    peers: Peers, performer: Performer, waits_on: str, taken: bool
) -> None:
    tracker = await peers.tracker("two")
    fresh, _ = await tracker.open("render", "m", cause="test")
    claimed = operations.claimed(fresh, "one", 1.0)
    await written(tracker, claimed)
    performer.go.set()
    async with Duty(tracker, "render", performer.perform).running():
        await written(tracker, operations.stalled(claimed, "gone", 2.0, on=waits_on))  # type: ignore[arg-type]
        marker, _ = await tracker.open("render", "marker", cause="test")
        await eventually(lambda: is_shown(tracker, marker.id, "succeeded"))
        if taken:
            await eventually(lambda: is_shown(tracker, fresh.id, "succeeded"))
    found = [record for record in performer.begun if record.id == fresh.id]
    assert [(record.attempt, record.owner) for record in found] == ([(2, "two")] if taken else [])


async def test_a_node_goes_on_with_what_its_earlier_process_left_running(peers: Peers, performer: Performer) -> None:
    tracker = await peers.tracker("new")
    queued, _ = await tracker.open("staging", "m", "n", cause="test")
    await written(tracker, operations.claimed(queued, "old", 1.0))
    performer.go.set()
    async with Duty(tracker, "staging", performer.perform, node="n").running():
        await eventually(lambda: is_shown(tracker, queued.id, "succeeded"))
    assert [(record.attempt, record.owner) for record in performer.begun] == [(2, "new")]


async def test_a_retry_that_comes_before_the_task_has_ended_is_not_lost(peers: Peers, performer: Performer) -> None:
    tracker = await peers.tracker("a")
    hold, held = asyncio.Event(), asyncio.Event()

    async def lingering(ownership: Ownership) -> None:
        performer.begun.append(ownership.record)
        if len(performer.begun) == 1:
            await ownership.end("failed", error="broken")
            held.set()
            await hold.wait()

    async with Duty(tracker, "staging", lingering, node="n").running():
        record, _ = await tracker.open("staging", "m", "n", cause="test")
        await held.wait()
        ended, _ = await tracker.standing(record.id, "staging", "m", "n")
        assert ended is not None
        retried = operations.commanded(ended, "retry", 5.0)
        await written(tracker, retried)
        await eventually(lambda: is_shown(tracker, record.id, "queued"))
        hold.set()
        await eventually(lambda: is_shown(tracker, record.id, "succeeded"))
    assert [record.attempt for record in performer.begun] == [1, retried.attempt]


async def test_what_was_cancelled_while_nobody_worked_on_it_is_cleared(peers: Peers, performer: Performer) -> None:
    tracker = await peers.tracker("a")
    queued, _ = await tracker.open("staging", "m", "n", cause="test")
    await written(tracker, operations.commanded(queued, "cancel", 2.0))
    async with Duty(tracker, "staging", performer.perform, node="n", clear=performer.clear).running():
        await eventually(lambda: performer.cleared)
    assert [(record.id, record.state) for record in performer.cleared] == [(queued.id, "cancelled")]
    assert performer.begun == []


async def test_work_that_breaks_is_failed_and_the_duty_goes_on(peers: Peers, performer: Performer) -> None:
    tracker = await peers.tracker("a")

    async def broken(ownership: Ownership) -> None:
        if ownership.record.model == "bad":
            raise RuntimeError("boom")

    async with Duty(tracker, "render", broken).running():
        bad, _ = await tracker.open("render", "bad", cause="test")
        await eventually(lambda: is_shown(tracker, bad.id, "failed"))
        good, _ = await tracker.open("render", "good", cause="test")
        await eventually(lambda: is_shown(tracker, good.id, "succeeded"))
    record = tracker.fold.record(bad.id)
    assert record is not None
    assert record.error == "RuntimeError: boom"


async def test_what_comes_in_the_very_moment_in_which_work_ends_is_done_too() -> None:
    tracker = Tracker(MemoryBus(), "a")
    first, second = (a_record(state="cancelled", attempt=attempt) for attempt in (1, 2))
    cleared: list[Record] = []

    async def clear(record: Record) -> None:
        cleared.append(record)
        if record is first:
            # Runs after this task's last step, and before anybody is told of its end.
            asyncio.get_running_loop().call_soon(duty.take, second)

    duty = Duty(tracker, "staging", Performer().perform, node="n", clear=clear)
    async with tracker.running(), duty.running():
        duty.take(first)
        await eventually(lambda: cleared == [first, second])


async def test_only_so_many_at_once_and_what_was_taken_meanwhile_is_left_alone(
    peers: Peers, performer: Performer
) -> None:
    tracker, other = await peers.tracker("a"), await peers.tracker("b")
    async with Duty(tracker, "render", performer.perform, at_once=2).running():
        opened = [(await tracker.open("render", name, cause="test"))[0] for name in "abcd"]
        await eventually(lambda: len(performer.begun) == 2)
        await eventually(lambda: is_shown(other, opened[3].id, "queued"))
        async with other.own(opened[2]) as ownership:
            assert ownership is not None
            await eventually(lambda: is_shown(tracker, opened[2].id, "running"))
            performer.go.set()
            await eventually(lambda: is_shown(tracker, opened[3].id, "succeeded"))
            assert ownership.stopped_by is None
    assert [record.model for record in performer.begun] == ["a", "b", "d"]


@pytest.mark.parametrize("node", ["", "n"])
async def test_what_this_process_claimed_and_lost_sight_of_is_taken_up(
    peers: Peers, performer: Performer, node: str
) -> None:
    """The claim reached the log, its acknowledgement never came: nobody else would ever take it."""
    one = await peers.tracker("one")
    async with Duty(one, "render", performer.perform, node=node).running():
        record, _ = await one.open("render", "scene", node, cause="test", claim=True)
        await eventually(lambda: len(performer.begun) == 1)
        performer.go.set()
        await eventually(lambda: is_shown(one, record.id, "succeeded"))
    assert [(each.owner, each.attempt) for each in performer.begun] == [("one", 1)]


async def test_a_block_that_is_bound_to_its_process_is_nobody_elses_to_take(peers: Peers, performer: Performer) -> None:
    one, two = await peers.tracker("one"), await peers.tracker("two")
    bound, _ = await one.open("render", "bound", cause=operations.BLOCK, claim=True)
    await written(one, operations.stalled(bound, "gone", 1.7e9))
    async with Duty(two, "render", performer.perform).running(), Duty(one, "render", performer.perform).running():
        free, _ = await one.open("render", "free", cause="submit")
        performer.go.set()
        await eventually(lambda: is_shown(two, free.id, "succeeded"))
        assert is_shown(two, bound.id, "stalled")
        assert {record.model for record in performer.begun} == {"free"}
        held, sequence = await one.standing(bound.id, "render", "bound", "")
        assert held is not None
        failed = operations.ended(held, "failed", 1.7e9)
        at = await one.write(failed, sequence)
        await one.write(operations.commanded(failed, "retry", 1.7e9), at.sequence)
        await eventually(lambda: is_shown(two, bound.id, "succeeded"))


class Stagings:
    """Stagings of one node that last until each is let go; ``peak`` is how many ran at once at most."""

    def __init__(self, tracker: Tracker, room: int) -> None:
        self.tracker = tracker
        self.room = room
        self.running: set[str] = set()
        self.peak = 0
        self.cleared: list[str] = []
        self.go: dict[str, asyncio.Event] = {}
        self.duty = Duty(
            tracker, "staging", self.perform, node="n", clear=self.clear, at_once=lambda: self.room,
            is_short=self.is_short,
        )  # fmt: skip

    async def perform(self, ownership: Ownership) -> None:
        name = ownership.record.model
        self.running.add(name)
        self.peak = max(self.peak, len(self.running))
        try:
            await self.go.setdefault(name, asyncio.Event()).wait()
        finally:
            self.running.remove(name)

    async def clear(self, record: Record) -> None:
        self.cleared.append(record.model)

    async def is_short(self, record: Record) -> bool:
        return record.model.startswith("short")

    async def ask(self, name: str, priority: str = "normal") -> Record:
        record, revision = await self.tracker.open("staging", name, "n", cause="t", parameters={"priority": priority})
        await self.tracker.reached(revision)
        return record

    def let_go(self, name: str) -> None:
        self.go.setdefault(name, asyncio.Event()).set()

    def now(self, name: str) -> Record:
        record = self.tracker.fold.record(f"staging:{name}@n")
        assert record is not None
        return record


async def test_the_more_urgent_goes_first_and_then_the_older(peers: Peers) -> None:
    work = Stagings(await peers.tracker("a"), 1)
    async with work.duty.running():
        await work.ask("first")
        await eventually(lambda: work.running == {"first"})
        for name, priority in (("low", "low"), ("plain", "normal"), ("later", "normal"), ("high", "high")):
            await work.ask(name, priority)
        done = ["first"]
        for following in ("high", "plain", "later", "low"):
            work.let_go(done[-1])
            await eventually(lambda following=following: work.running == {following})  # type: ignore[misc]
            done.append(following)
        assert work.peak == 1


async def test_what_somebody_waits_for_takes_the_place_of_the_least_urgent_which_goes_on_by_itself(
    peers: Peers,
) -> None:
    work = Stagings(await peers.tracker("a"), 2)
    async with work.duty.running():
        await work.ask("plain")
        await work.ask("low", "low")
        await eventually(lambda: work.running == {"plain", "low"})
        await work.ask("wanted", "request")
        await eventually(lambda: work.running == {"plain", "wanted"})
        assert (work.now("low").state, work.now("low").note) == ("queued", "gave way to staging:wanted@n")
        work.let_go("wanted")
        await eventually(lambda: work.running == {"plain", "low"})
        low = work.now("low")
        assert (low.state, low.attempt, low.begun_by) == ("running", 2, "")
        assert [(each.state, each.error) for each in low.earlier] == [("replaced", "gave way to others")]
        assert work.now("plain").attempt == 1
        work.let_go("low")
        await eventually(lambda: work.now("low").state == "succeeded")
        assert work.peak == 2


async def test_what_gave_way_can_be_cancelled_and_is_cleared_though_it_is_not_its_turn(peers: Peers) -> None:
    work = Stagings(await peers.tracker("a"), 1)
    async with work.duty.running(), Commands(work.tracker).running() as commands:
        low, plain = await work.ask("low", "low"), await work.ask("plain")
        await eventually(lambda: work.running == {"low"})
        await work.ask("wanted", "request")
        await eventually(lambda: work.running == {"wanted"})
        for record in (low, plain):
            cancelled, _ = await commands.give(record.id, "cancel")
            assert cancelled.state == "cancelled"
        await eventually(lambda: sorted(work.cleared) == ["low", "plain"])
        again, _ = await commands.give(low.id, "retry")
        assert again.state == "queued"
        work.let_go("wanted")
        await eventually(lambda: work.running == {"low"})
        assert work.now("plain").state == "cancelled"


async def test_what_is_paused_while_it_waits_does_not_stand_in_the_way(peers: Peers) -> None:
    work = Stagings(await peers.tracker("a"), 1)
    async with work.duty.running(), Commands(work.tracker).running() as commands:
        await work.ask("first")
        wanted = await work.ask("wanted", "low")
        await commands.give(wanted.id, "pause")
        last = await work.ask("last", "low")
        work.let_go("first")
        await eventually(lambda: work.running == {"last"})
        await commands.give(wanted.id, "resume")
        work.let_go("last")
        await eventually(lambda: work.running == {"wanted"})
        assert is_shown(work.tracker, last.id, "succeeded")


async def test_what_becomes_more_urgent_while_it_waits_goes_before_the_others(peers: Peers) -> None:
    work = Stagings(await peers.tracker("a"), 1)
    async with work.duty.running():
        await work.ask("first")
        await work.ask("second")
        await work.ask("third", "low")
        await eventually(lambda: work.running == {"first"})
        await written(work.tracker, operations.succeeding(work.now("third"), 9.0, parameters={"priority": "request"}))
        await eventually(lambda: work.running == {"third"})
        assert (work.now("first").state, work.now("second").state) == ("queued", "queued")


async def test_what_is_short_does_not_wait_for_its_turn(peers: Peers) -> None:
    work = Stagings(await peers.tracker("a"), 1)
    async with work.duty.running():
        await work.ask("first")
        await eventually(lambda: work.running == {"first"})
        work.let_go("short")
        await work.ask("short")
        await eventually(lambda: work.now("short").state == "succeeded")
        assert work.running == {"first"}


async def test_how_many_at_once_changes_while_they_run(peers: Peers) -> None:
    work = Stagings(await peers.tracker("a"), 1)
    async with work.duty.running():
        for name in "abc":
            await work.ask(name)
        await eventually(lambda: work.running == {"a"})
        for room, running in ((3, {"a", "b", "c"}), (2, {"a", "b"}), (1, {"a"})):
            work.room = room
            await work.tracker.say(subjects.LIMITS, msgspec.json.encode(Limits(generation=room)))
            await eventually(lambda running=running: work.running == running)  # type: ignore[misc]
        assert work.now("c").attempt == 1, "it waits, and has begun nothing anew"


async def test_work_that_is_past_stopping_is_waited_for(peers: Peers) -> None:
    work = Stagings(await peers.tracker("a"), 1)
    async with work.duty.running():
        low = await work.ask("low", "low")
        await eventually(lambda: work.running == {"low"})
        work.tracker.owned[low.id].settle()
        await work.ask("wanted", "request")
        work.let_go("low")
        await eventually(lambda: work.running == {"wanted"})
        assert (work.now("low").state, work.now("low").attempt) == ("succeeded", 1)
