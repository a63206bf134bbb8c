from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from unittest.mock import patch

import msgspec
import nats
import pytest

from stagecast import Service, broadcast, forgetting, horizon, operations, subjects
from stagecast.bus import Log
from stagecast.errors import BusUnavailable, Fenced
from stagecast.forgetting import Forgetting
from stagecast.history import History
from stagecast.horizon import AGE, STEP
from stagecast.messages import Horizon, Placement, Record
from stagecast.ownership import Ownership, standing_record
from stagecast.participant import Participant, participating
from stagecast.tracker import Tracker
from tests.conftest import NatsServer, eventually
from tests.peers import Peers, agree, gathered

LATE = 4e9
"""A time of the server's clock at which all that these tests write is old."""


@pytest.fixture(params=["memory", "nats"])
async def peers(request: pytest.FixtureRequest) -> AsyncIterator[Peers]:
    async with gathered(request) as found:
        yield found


class Judge:
    """A process that judges, whose time passes only where the test says so."""

    def __init__(self, tracker: Tracker, stack: AsyncExitStack) -> None:
        self.tracker = tracker
        self.history = History(tracker)
        self.forgetting = Forgetting(tracker, self.history)
        self._stack = stack

    async def read(self) -> Judge:
        await self._stack.enter_async_context(self.tracker.running())
        await self._stack.enter_async_context(self.history.running())
        await eventually(lambda: self.tracker.caught_up.is_set() and self.history.caught_up.is_set())
        return self

    async def sweep(self, now: float = LATE) -> None:
        await self.forgetting.sweep(now)

    async def sets_a_horizon_and_dies(self) -> None:
        """Set one, and hear it, but take nothing out of the log any more."""
        with patch.object(self.tracker.bus.log, "remove", side_effect=BusUnavailable("gone")):
            await self.sweep()
            await eventually(lambda: not self.known)

    @property
    def known(self) -> set[str]:
        return set(self.tracker.fold.slots)


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as found:
        yield found


async def judge(peers: Peers, stack: AsyncExitStack, name: str) -> Judge:
    return await Judge(Tracker(await peers.bus(name), name), stack).read()


async def swept(one: Judge) -> None:
    """Sweep until nothing is known any more, as it is done every few seconds: a judge may come too late for one."""
    async with asyncio.timeout(60):
        while one.known:
            await one.sweep()
            await asyncio.sleep(0.01)


async def done(tracker: Tracker, model: str, node: str = "", kind: str = "render") -> Record:
    """Have an operation begun and ended."""
    record, _ = await tracker.open(kind, model, node, cause="test", claim=True)
    async with tracker.own(record) as ownership:
        assert ownership is not None
    await eventually(lambda: tracker.fold.record(record.id) == ownership.record)
    return ownership.record


async def left_of(log: Log, *records: Record) -> list[str]:
    return [each.id for each in records if await log.last(subjects.operation(each)) is not None]


async def test_what_ended_long_ago_leaves_every_fold_and_the_log_and_stays_in_the_history(
    peers: Peers, stack: AsyncExitStack
) -> None:
    one, two = await judge(peers, stack, "one"), await judge(peers, stack, "two")
    plain = await peers.tracker("plain")
    ended = [await done(one.tracker, f"film-{number}") for number in range(5)]
    running, _ = await one.tracker.open("render", "going", cause="test", claim=True)
    await eventually(lambda: not any(one.history.lacks(each) for each in ended))
    await one.sweep()
    await eventually(lambda: [set(each.fold.slots) for each in (one.tracker, two.tracker, plain)] == [{running.id}] * 3)
    await one.sweep()
    assert await left_of(one.tracker.bus.log, *ended, running) == [running.id]
    await agree(one.tracker, two.tracker, plain)
    late = await peers.tracker("late")
    assert set(late.fold.slots) == {running.id}
    await agree(late, plain)
    assert [one.history.find(each.job) for each in ended] == ended


async def test_nothing_is_forgotten_before_its_time_or_before_the_history_has_it(
    peers: Peers, stack: AsyncExitStack
) -> None:
    one = await judge(peers, stack, "one")
    record = await done(one.tracker, "film")
    await eventually(lambda: not one.history.lacks(record))
    stands = one.tracker.fold.slots[record.id].time
    await one.sweep(stands + AGE + STEP - 0.1)
    await one.sweep(0.0)
    with patch.object(one.history, "lacks", return_value=True):
        await one.sweep()
    assert one.tracker.fold.horizon_at == 0
    await one.sweep(stands + AGE + STEP)
    await eventually(lambda: one.tracker.fold.horizon.number == 1)


async def test_of_two_judges_one_sets_the_horizon(peers: Peers, stack: AsyncExitStack) -> None:
    one, two = await judge(peers, stack, "one"), await judge(peers, stack, "two")
    record = await done(one.tracker, "film")
    await eventually(lambda: record.id in two.known)
    await eventually(lambda: not (one.history.lacks(record) or two.history.lacks(record)))
    before = one.tracker.revision.sequence
    await asyncio.gather(one.sweep(), two.sweep())
    await eventually(lambda: not (one.known or two.known))
    await agree(one.tracker, two.tracker)
    assert one.tracker.revision.sequence == before + 1


async def test_whoever_starts_takes_out_of_the_log_what_a_dead_judge_left_there(
    peers: Peers, stack: AsyncExitStack
) -> None:
    async with AsyncExitStack() as life:
        one = await judge(peers, life, "one")
        record = await done(one.tracker, "film")
        await eventually(lambda: not one.history.lacks(record))
        await one.sets_a_horizon_and_dies()
    log = (await peers.bus("looks")).log
    assert await left_of(log, record) == [record.id]
    two = await judge(peers, stack, "two")
    assert not two.known
    await two.sweep(0.0)
    assert await left_of(log, record) == []


async def test_the_next_who_sets_a_horizon_takes_out_what_the_one_before_left(
    peers: Peers, stack: AsyncExitStack
) -> None:
    two = await judge(peers, stack, "two")
    async with AsyncExitStack() as life:
        one = await judge(peers, life, "one")
        record = await done(one.tracker, "film")
        await eventually(lambda: not one.history.lacks(record))
        await one.sets_a_horizon_and_dies()
        await eventually(lambda: not two.known)
    assert await left_of(two.tracker.bus.log, record) == [record.id]
    other = await done(two.tracker, "another")
    await eventually(lambda: not two.history.lacks(other))
    await two.sweep()
    await eventually(lambda: not two.known)
    await two.sweep()
    assert await left_of(two.tracker.bus.log, record, other) == []


async def test_an_owner_that_slept_until_all_had_forgotten_its_work_revives_nothing(
    peers: Peers, stack: AsyncExitStack
) -> None:
    one = await judge(peers, stack, "one")
    record, revision = await one.tracker.open("render", "film", cause="test", claim=True)
    sleeper = Ownership(one.tracker.bus.log, record, revision.sequence)
    end = await one.tracker.write(operations.ended(record, "failed", 1.0, error="gone"), revision.sequence)
    dismissed = operations.commanded(operations.ended(record, "failed", 1.0, error="gone"), "dismiss", 2.0)
    await one.tracker.write(dismissed, end.sequence)
    await eventually(lambda: record.id in one.known and not one.history.lacks(dismissed))
    await swept(one)
    await one.sweep()
    with pytest.raises(Fenced):
        await sleeper.change(phase="verifying")
    assert await left_of(one.tracker.bus.log, record) == []


async def test_a_name_that_is_used_again_begins_anew_and_outranks_what_was_forgotten(
    peers: Peers, stack: AsyncExitStack
) -> None:
    one = await judge(peers, stack, "one")
    first = await done(one.tracker, "film")
    second = await done(one.tracker, "film")
    await eventually(lambda: not one.history.lacks(second))
    await swept(one)
    await one.sweep()
    sleeper = Ownership(one.tracker.bus.log, second, 1)
    third, at = await one.tracker.open("render", "film", cause="test", claim=True)
    assert (first.attempt, second.attempt, third.attempt) == (1, 2, 1)
    assert operations.is_later(third, second)
    sleeper.record = msgspec.structs.replace(second, state="running")
    with pytest.raises(Fenced):
        await sleeper.change(phase="verifying")
    standing = await one.tracker.bus.log.last(subjects.operation(third))
    assert standing is not None
    assert (standing.sequence, standing_record(standing)) == (at.sequence, third)
    await eventually(lambda: one.tracker.fold.record(third.id) == third)
    assert one.history.find(third.id) == second


async def test_what_failed_stays_until_it_is_dismissed(peers: Peers, stack: AsyncExitStack) -> None:
    one = await judge(peers, stack, "one")
    record, revision = await one.tracker.open("render", "film", cause="test", claim=True)
    failed = operations.ended(record, "failed", 1.0, error="because")
    await one.tracker.write(failed, revision.sequence)
    await eventually(lambda: one.tracker.fold.record(failed.id) == failed and not one.history.lacks(failed))
    await one.sweep()
    assert one.tracker.fold.horizon_at == 0
    slot = one.tracker.fold.slots[failed.id]
    await one.tracker.write(operations.commanded(failed, "dismiss", 2.0), slot.sequence)
    await eventually(lambda: not operations.is_listed(one.tracker.fold.slots[failed.id].record))
    await swept(one)


async def test_a_word_on_what_all_have_forgotten_is_ended_again_as_the_history_says(
    peers: Peers, stack: AsyncExitStack
) -> None:
    one = await judge(peers, stack, "one")
    record = await done(one.tracker, "film")
    await eventually(lambda: not one.history.lacks(record))
    await swept(one)
    await one.sweep()
    echo = msgspec.structs.replace(record, state="running", seq=record.seq - 1)
    await one.tracker.say(subjects.operation(echo), broadcast.encode(echo))
    await eventually(lambda: one.known == {record.id})
    await one.sweep(0.0)
    await eventually(lambda: one.tracker.fold.record(record.id) == record)


async def test_a_log_that_came_back_empty_goes_on_in_the_era_of_the_one_before(
    nats_server: NatsServer, stack: AsyncExitStack
) -> None:
    from stagecast.bus.nats import connect

    bus = await stack.enter_async_context(connect(nats_server.url, "one"))
    one = await Judge(Tracker(bus, "one"), stack).read()
    await one.tracker.say(subjects.HORIZON, msgspec.json.encode(Horizon(number=7)), expected=0)
    wish = Placement(model="m", nodes=("w1",))
    await one.tracker.say(subjects.placement("m"), msgspec.json.encode(wish))
    await eventually(lambda: one.tracker.fold.horizon.number == 7 and one.tracker.fold.placements == {"m": wish})
    before = one.tracker.identity
    nats_server.stop(kill=True)
    nats_server.empty()
    nats_server.start()
    await eventually(lambda: one.tracker.revision.identity != before and one.tracker.fold.horizon.number == 7, 20)
    await eventually(lambda: one.tracker.fold.placements == {"m": wish})  # no operation was known, and yet
    record, _ = await one.tracker.open("render", "film", cause="test")
    assert record.era == 7


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let everything be old at once."""
    monkeypatch.setattr(horizon, "AGE", 0.0)
    monkeypatch.setattr(horizon, "STEP", 0.0)
    monkeypatch.setattr(forgetting, "SWEEP", 0.02)


def inside(service: Service) -> Participant:
    assert service._participant is not None
    return service._participant


async def messages_of(url: str) -> int:
    client = await nats.connect(url)
    try:
        return int((await client.jetstream().stream_info("STAGECAST")).state.messages)
    finally:
        await client.close()


@pytest.mark.usefixtures("hurried")
async def test_a_program_with_ever_new_names_leaves_nothing_behind_in_a_real_nats_server(
    nats_server: NatsServer, stack: AsyncExitStack
) -> None:
    services = [Service(nats=nats_server.url, name=name) for name in ("one", "two")]
    for service in services:

        @service.performs("render", at_once=0)
        async def render(operation: object) -> None:
            """Be done."""

        await stack.enter_async_context(service.lifespan())
    one, two = services
    submitted = [await one.submit("render", f"film-{number}") for number in range(40)]
    assert await inside(two).tracker.reached(one._written.later(inside(one).tracker.revision), 60)
    ended = await asyncio.gather(*(two.ended(row.job_id) for row in submitted))
    assert {row.state for row in ended} == {"succeeded"}
    await eventually(lambda: not (inside(one).fold.slots or inside(two).fold.slots), 30)
    async with asyncio.timeout(30):
        while await messages_of(nats_server.url) > 1:  # the horizon itself
            await asyncio.sleep(0.05)
    three = Service(nats=nats_server.url, name="three")
    await stack.enter_async_context(three.lifespan())
    assert three.row(submitted[0].job_id).state == "succeeded"
    again = await three.submit("render", "film-0")
    assert again.job_id != submitted[0].job_id
    assert (await three.ended(again.job_id)).state == "succeeded"


@pytest.mark.usefixtures("hurried")
async def test_alone_the_file_forgets_too(tmp_path: Path) -> None:
    service = Service(data=tmp_path)
    async with service.lifespan():
        for number in range(20):
            async with service.operation("render", f"film-{number}"):
                pass
        participant = inside(service)
        await eventually(lambda: not participant.fold.slots)
        last = await participant.tracker.bus.log.last(subjects.HORIZON)
        assert last is not None
    from stagecast.bus import sqlite

    async with sqlite.opened(tmp_path / "log.sqlite3") as bus, participating(bus, "next", judges=True) as following:
        assert not following.fold.slots
        assert following.row("render:film-7").state == "succeeded"
