from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from typing import Any

import msgspec
import pytest

from stagecast import operations, rows, subjects
from stagecast.bus import Bus, CaughtUp, Heard, Log, Lost
from stagecast.bus.memory import MemoryBus
from stagecast.bus.nats import connect
from stagecast.commands import Commands
from stagecast.history import History
from stagecast.messages import Entry, Kind, Outcome
from stagecast.past import Sought, place_before
from stagecast.settings import Bounds
from stagecast.tracker import Tracker
from tests.conftest import NatsServer, eventually
from tests.peers import Peers, gathered


@pytest.fixture(params=["memory", "nats"])
async def peers(request: pytest.FixtureRequest) -> AsyncIterator[Peers]:
    async with gathered(request) as found:
        yield found


@pytest.fixture(params=["nats"])
async def cluster(request: pytest.FixtureRequest) -> AsyncIterator[Peers]:
    async with gathered(request) as found:
        yield found


class Wall:
    """A wall clock that goes on by a second with every look."""

    def __init__(self) -> None:
        self.now = 1.7e9

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


async def run(tracker: Tracker, outcome: Outcome, model: str = "m", kind: Kind = "staging") -> str:
    record, _ = await tracker.open(kind, model, "n", cause="asked")
    async with tracker.own(record) as ownership:
        assert ownership is not None
        await ownership.end(outcome, error="why" if outcome == "failed" else "")
    return record.job


async def kept(bus: Bus, job: str, attempt: int) -> int:
    """Return the sequence at which the end of an attempt is kept, or 0."""
    entry = await bus.history.last(subjects.history(job, attempt))
    return entry.sequence if entry else 0


def as_answered(history: History) -> bytes:
    """Return what a replica answers, as bytes."""
    page = history.page(limit=1000)
    return msgspec.json.encode([[rows.detailed(record) for record in page.records], str(page.following)])


async def until_kept(bus: Bus, job: str, attempt: int) -> None:
    async with asyncio.timeout(60):
        while not await kept(bus, job, attempt):
            await asyncio.sleep(0.005)


async def entries(bus: Bus) -> list[Entry]:
    """Return what the second log has."""
    found: list[Entry] = []
    async with aclosing(bus.history.follow()) as heard:
        async for each in heard:
            if isinstance(each, CaughtUp):
                break
            if isinstance(each, Entry):
                found.append(each)
    return found


async def test_each_ended_attempt_is_kept_once_though_three_write_it(peers: Peers) -> None:
    trackers = [await peers.tracker(name, clock=Wall()) for name in ("one", "two", "three")]
    histories = [History(each) for each in trackers]
    async with AsyncExitStack() as stack:
        for history in histories:
            await stack.enter_async_context(history.running())
        jobs = [await run(trackers[0], outcome, outcome) for outcome in ("succeeded", "failed", "cancelled")]
        await eventually(lambda: all(all(each.find(job) for job in jobs) for each in histories))
        retried = operations.commanded(histories[0].find(jobs[1]), "retry", 1.8e9)  # type: ignore[arg-type]
        _, sequence = await trackers[0].standing(retried.id, "staging", "failed", "n")
        await trackers[0].write(retried, sequence)
        async with trackers[0].own(retried):
            pass
        await eventually(lambda: all(each.find(jobs[1]).state == "succeeded" for each in histories))  # type: ignore[union-attr]
        seen = [[(record.job, record.attempt) for record in each.page().records] for each in histories]
        assert seen[0] == seen[1] == seen[2]
        assert len({as_answered(each) for each in histories}) == 1, "the same bytes"
        assert len(seen[0]) == len(set(seen[0])) == 4
        for job, attempt in seen[0]:
            await until_kept(trackers[0].bus, job, attempt)
        kept_at = {await kept(trackers[0].bus, job, attempt) for job, attempt in seen[0]}
    assert sorted(kept_at) == list(range(min(kept_at), min(kept_at) + 4))


async def test_an_end_that_is_followed_at_once_by_a_retry_is_kept_too(peers: Peers) -> None:
    one = await peers.tracker("one")
    history = History(one)
    async with history.running():
        await eventually(history.caught_up.is_set)
        record, revision = await one.open("staging", "m", "n", cause="asked", claim=True)
        end = operations.ended(record, "failed", 1.7e9, "why")
        revision = await one.write(end, revision.sequence)
        await one.reached(revision, 5.0)
        await one.write(operations.commanded(end, "retry", 1.7e9), revision.sequence)
        await eventually(lambda: history.find(record.job))
    assert history.find(record.job) == end


async def test_the_newest_come_first_and_can_be_narrowed(peers: Peers) -> None:
    tracker = await peers.tracker("one", clock=Wall())
    async with History(tracker).running() as history:
        for number in range(6):
            await run(tracker, "succeeded", f"m{number % 3}", "loading" if number % 2 else "staging")
        await eventually(lambda: len(history) == 6)
        ends = [record.updated_at for record in history.page().records]
        assert ends == sorted(ends, reverse=True)
        assert len(ends) == 6
        assert {record.kind for record in history.page(Sought(kind="loading")).records} == {"loading"}
        assert [record.model for record in history.page(Sought(model="m1")).records] == ["m1", "m1"]
        assert [record.updated_at for record in history.page(before=place_before(ends[2])).records] == ends[3:]
        assert [record.updated_at for record in history.page(limit=2).records] == ends[:2]
        assert history.find("nothing") is None


class Shut:
    """A log that takes nothing: whoever appends waits for ever."""

    def __init__(self, log: Log) -> None:
        self.last = log.last
        self.follow = log.follow
        self.tried: list[str] = []

    async def append(self, subject: str, *_: object, **__: object) -> int:
        self.tried.append(subject)
        return await asyncio.get_running_loop().create_future()


class Shutting:
    """A bus whose history takes nothing."""

    def __init__(self, bus: Bus) -> None:
        self.history = Shut(bus.history)
        self._bus = bus

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)


async def test_what_ended_is_in_the_history_the_moment_it_leaves_the_list(peers: Peers) -> None:
    tracker = Tracker(Shutting(await peers.bus("one")), "one")  # type: ignore[arg-type]
    leaving: list[list[str]] = []
    async with tracker.running(), History(tracker).running() as history:
        await eventually(tracker.caught_up.is_set)
        tracker.hearers.append(lambda _: leaving.append([each.job for each in history.page().records]))
        job = await run(tracker, "succeeded")
        await eventually(lambda: not list(tracker.fold.live()) and tracker.fold.slots)
        await eventually(lambda: tracker.bus.history.tried)  # type: ignore[attr-defined]
    assert leaving[-1] == [job], "at that very record, though it is not written yet"
    assert leaving[-2] == []


async def test_no_end_is_lost_though_every_replica_dies_before_it_is_kept(peers: Peers) -> None:
    worker = await peers.tracker("worker")
    async with AsyncExitStack() as stack:
        dying = [Tracker(Shutting(await peers.bus(name)), name) for name in ("one", "two", "three")]  # type: ignore[arg-type]
        for each in dying:
            await stack.enter_async_context(each.running())
            await stack.enter_async_context(History(each).running())
        job = await run(worker, "failed")
        await eventually(lambda: all(each.bus.history.tried for each in dying))  # type: ignore[attr-defined]
    assert await kept(worker.bus, job, 1) == 0, "all of them died over it"
    async with History(await peers.tracker("four")).running() as history:
        await until_kept(worker.bus, job, 1)
        assert [(record.job, record.error) for record in history.page().records] == [(job, "why")]


async def test_a_new_run_while_no_replica_lives_is_not_written_over_an_end_that_nobody_kept(peers: Peers) -> None:
    worker = await peers.tracker("worker")
    first = await run(worker, "failed")
    second = await run(worker, "succeeded")
    assert await kept(worker.bus, first, 1) > 0
    async with History(await peers.tracker("one")).running() as history:
        await until_kept(worker.bus, second, 2)
        assert {record.job for record in history.page().records} == {first, second}


async def test_a_retry_is_not_written_over_an_end_that_nobody_kept(peers: Peers) -> None:
    tracker = await peers.tracker("one")
    job = await run(tracker, "failed")
    await eventually(lambda: not list(tracker.fold.live()) and tracker.fold.record(job))
    await Commands(tracker).give(job, "retry")
    assert await kept(tracker.bus, job, 1) > 0


async def test_a_dismissed_end_is_kept_as_it_was(peers: Peers) -> None:
    """A replica that starts later, when the log has another run, knows nothing of the dismissal."""
    tracker = await peers.tracker("one")
    job = await run(tracker, "failed")
    await eventually(lambda: not list(tracker.fold.live()) and tracker.fold.record(job))
    await Commands(tracker).give(job, "dismiss")
    async with History(tracker).running() as history:
        await until_kept(tracker.bus, job, 1)
        [found] = history.page().records
    assert (found.job, found.state, found.dismissed) == (job, "failed", False)


@pytest.mark.parametrize("kind", ["memory", "nats"])
async def test_what_fell_out_of_the_history_does_not_come_back_with_the_next_replica(
    kind: str, request: pytest.FixtureRequest
) -> None:
    """The log still has the last word on each operation, also on those whose end is too old by now."""
    bounds = Bounds(count=3)
    async with AsyncExitStack() as stack:
        if kind == "memory":
            bus: Bus = MemoryBus(bounds)
        else:
            server: NatsServer = request.getfixturevalue("nats_server")
            bus = await stack.enter_async_context(connect(server.url, "one", bounds=bounds))
        tracker = await stack.enter_async_context(Tracker(bus, "one").running())
        async with History(tracker, bounds).running() as history:
            for number in range(5):
                await until_kept(bus, await run(tracker, "succeeded", f"m{number}"), 1)
            assert [record.model for record in history.page().records] == ["m4", "m3", "m2"]
            late = await run(tracker, "succeeded", "m5")
            await until_kept(bus, late, 1)
        stood = await entries(bus)
        assert len(stood) == 3
        async with History(tracker, bounds).running() as again:
            await eventually(again.caught_up.is_set)
            await until_kept(bus, await run(tracker, "succeeded", "m6"), 1)
            assert [record.model for record in again.page().records] == ["m6", "m5", "m4"]
        assert [each.subject for each in (await entries(bus))[:2]] == [each.subject for each in stood[1:]]


async def test_the_history_forgets_by_the_server_s_clock(peers: Peers) -> None:
    passed = 0.0
    tracker = await peers.tracker("one", monotonic=lambda: asyncio.get_running_loop().time() + passed)
    history = History(tracker, Bounds(age=60.0))
    async with history.running():
        job = await run(tracker, "succeeded")
        await until_kept(tracker.bus, job, 1)
        passed = 50.0
        assert history.find(job)
        passed = 70.0
        assert history.find(job) is None
        assert history.page().records == []


async def test_a_history_that_cannot_be_heard_yet_is_not_taken_for_empty(peers: Peers) -> None:
    class Deaf(Shutting):
        async def follow(self) -> AsyncIterator[Heard]:
            yield Lost()
            await asyncio.get_running_loop().create_future()

    deaf = Deaf(await peers.bus("one"))
    deaf.history.follow = deaf.follow  # type: ignore[assignment]
    tracker = Tracker(deaf, "one")  # type: ignore[arg-type]
    async with tracker.running(), History(tracker).running() as history:
        await eventually(tracker.caught_up.is_set)
        await run(tracker, "succeeded")
        assert not history.caught_up.is_set()


async def test_it_survives_every_process(peers: Peers) -> None:
    async with peers.passing("one") as one, History(one).running() as history:
        job = await run(one, "failed")
        await eventually(lambda: history.find(job))
        old = history.page().records
    two = await peers.tracker("two")
    async with History(two).running() as again:
        await eventually(again.caught_up.is_set)
        assert again.page().records == old
        assert again.find(job) == old[0]


async def test_it_survives_everything_restarting_at_once(cluster: Peers, nats_server: NatsServer) -> None:
    async with cluster.passing("one") as one, History(one).running() as history:
        jobs = [await run(one, outcome, outcome) for outcome in ("succeeded", "failed", "cancelled")]
        for job in jobs:
            await until_kept(one.bus, job, 1)
        before = as_answered(history)
    nats_server.stop(kill=True)
    nats_server.start()
    for name in ("two", "three"):
        async with History(await cluster.tracker(name)).running() as again:
            await eventually(again.caught_up.is_set)
            assert as_answered(again) == before
            assert [again.find(job).job for job in jobs] == jobs  # type: ignore[union-attr]
            assert again.find("staging:failed@n").error == "why"  # type: ignore[union-attr]


async def test_rubbish_in_the_history_is_passed_over(peers: Peers, caplog: pytest.LogCaptureFixture) -> None:
    tracker = await peers.tracker("one")
    await tracker.bus.history.append("stagecast.history.x-1", b"nonsense")
    async with History(tracker).running() as history:
        await run(tracker, "succeeded")
        await eventually(lambda: len(history) == 1)
        await eventually(lambda: "cannot read stagecast.history.x-1" in caplog.text)


async def test_an_end_while_nats_restarts_empty_is_kept_in_the_new_history(
    cluster: Peers, nats_server: NatsServer
) -> None:
    one = await cluster.tracker("one")
    async with History(one).running() as history:
        job = await run(one, "succeeded")
        await eventually(lambda: history.find(job))
        await one.open("staging", "m", "n", cause="so that the history alone knows of the end")
        await eventually(lambda: list(one.fold.live()))
        nats_server.stop(kill=True)
        nats_server.empty()
        nats_server.start()
        await eventually(lambda: one.is_degraded)
        await eventually(lambda: not one.is_degraded)
        later = await run(one, "succeeded", "later")
        await until_kept(one.bus, later, 1)
        await until_kept(one.bus, job, 1)
        async with History(await cluster.tracker("two")).running() as another:
            await eventually(lambda: {record.job for record in another.page().records} == {job, later})
            assert as_answered(another) == as_answered(history)
        assert {record.job for record in history.page().records} == {job, later}
