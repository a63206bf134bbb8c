from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from stagecast import operations, subjects
from stagecast.bus import Bus
from stagecast.history import History
from stagecast.messages import Kind, Outcome
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
        seen = [[(record.job, record.attempt) for record in each.newest()] for each in histories]
        assert seen[0] == seen[1] == seen[2]
        assert len(seen[0]) == len(set(seen[0])) == 4
        kept_at = {await kept(trackers[0].bus, job, attempt) for job, attempt in seen[0]}
    assert kept_at == {1, 2, 3, 4}


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
        await eventually(lambda: len(history._kept) == 6)
        ends = [record.updated_at for record in history.newest()]
        assert ends == sorted(ends, reverse=True)
        assert len(ends) == 6
        assert {record.kind for record in history.newest(kind="loading")} == {"loading"}
        assert [record.model for record in history.newest(model="m1")] == ["m1", "m1"]
        assert [record.updated_at for record in history.newest(before=ends[2])] == ends[3:]
        assert [record.updated_at for record in history.newest(limit=2)] == ends[:2]
        assert history.find("nothing") is None


async def test_what_ended_is_in_the_history_the_moment_it_leaves_the_list(peers: Peers) -> None:
    tracker = await peers.tracker("one")
    history = History(tracker)
    job = await run(tracker, "succeeded")
    await eventually(lambda: not list(tracker.fold.live()) and tracker.fold.slots)
    assert [record.job for record in history.newest()] == [job]


async def test_it_survives_every_process(peers: Peers) -> None:
    async with peers.passing("one") as one, History(one).running() as history:
        job = await run(one, "failed")
        await eventually(lambda: history.find(job))
        old = history.newest()
    two = await peers.tracker("two")
    async with History(two).running() as again:
        await eventually(again.caught_up.is_set)
        assert again.newest() == old
        assert again.find(job) == old[0]


async def test_rubbish_in_the_history_is_passed_over(peers: Peers, caplog: pytest.LogCaptureFixture) -> None:
    tracker = await peers.tracker("one")
    await tracker.bus.history.append("stagecast.history.x-1", b"nonsense")
    async with History(tracker).running() as history:
        await run(tracker, "succeeded")
        await eventually(lambda: len(history._kept) == 1)
    assert "cannot read stagecast.history.x-1" in caplog.text


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
        await eventually(lambda: history.find(later))
        assert await kept(one.bus, later, 1) > 0
        assert await kept(one.bus, job, 1) > 0
        async with History(await cluster.tracker("two")).running() as another:
            await eventually(lambda: {record.job for record in another.newest()} == {job, later})
        assert {record.job for record in history.newest()} == {job, later}
