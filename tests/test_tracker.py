from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext

import msgspec
import pytest

from stagecast import broadcast, subjects
from stagecast import tracker as tracker_module
from stagecast.bus import Anew, CaughtUp
from stagecast.bus.memory import MemoryBus
from stagecast.changes import Topic
from stagecast.errors import BadInput, BusUnavailable, Interrupted, NotEnoughSpace
from stagecast.messages import Entry, Holding, Placement, Record
from stagecast.ownership import Ownership, standing_record
from stagecast.revision import Revision, identity_of
from stagecast.tracker import Tracker
from tests.conftest import NatsServer, eventually
from tests.peers import Peers, a_record, agree, gathered, listed

ID = "staging:m@n"


@pytest.fixture(params=["memory", "nats"])
async def peers(request: pytest.FixtureRequest) -> AsyncIterator[Peers]:
    async with gathered(request) as found:
        yield found


@pytest.fixture(params=["nats"])
async def cluster(request: pytest.FixtureRequest) -> AsyncIterator[Peers]:
    async with gathered(request) as found:
        yield found


class Work:
    """A block that owns an operation, goes on until it is told how to end, and can be seen from outside."""

    def __init__(self, tracker: Tracker, record: Record) -> None:
        self._tracker = tracker
        self._record = record
        self.ownership: Ownership | None = None
        self.error: Exception | None = None
        self.finish = asyncio.Event()
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> bool:
        async with self._tracker.own(self._record) as self.ownership:
            if self.ownership is None:
                return False
            await self.finish.wait()
            if self.error is not None:
                raise self.error
        return True

    @property
    def owned(self) -> Ownership:
        assert self.ownership is not None
        return self.ownership

    async def end(self, error: Exception | None = None) -> None:
        self.error = error
        self.finish.set()
        await self.task


@asynccontextmanager
async def working(tracker: Tracker, node: str = "n") -> AsyncIterator[Work]:
    record, _ = await tracker.open("staging", "m", node, cause="asked")
    work = Work(tracker, record)
    await eventually(lambda: work.ownership is not None)
    try:
        yield work
    finally:
        work.finish.set()
        await asyncio.wait([work.task])


def held(tracker: Tracker, operation: str = ID) -> Record:
    record = tracker.fold.record(operation)
    assert record is not None
    return record


async def shows(tracker: Tracker, state: str, operation: str = ID) -> Record:
    await eventually(lambda: (found := tracker.fold.record(operation)) is not None and found.state == state)
    return held(tracker, operation)


async def test_an_operation_goes_from_queued_to_succeeded_on_every_tracker(peers: Peers) -> None:
    one, two = await peers.tracker("one"), await peers.tracker("two")
    record, revision = await one.open("staging", "m", "n", cause="asked", bytes_total=10)
    assert (record.state, record.owner, record.attempt, record.cause) == ("queued", "", 1, "asked")
    assert await two.reached(revision, 5.0)
    assert held(two) == record
    async with two.own(held(two)) as ownership:
        assert ownership is not None
        assert set(two.owned) == {ID}
        ownership.advance(10)
        await ownership.change(phase="verifying")
    assert two.owned == {}
    end = await shows(one, "succeeded")
    assert (end.owner, end.bytes_done, end.phase, end.attempt, end.job) == ("two", 10, "verifying", 1, record.job)
    await agree(one, two)
    assert listed(one) == b"[]"


async def test_what_was_just_opened_can_be_owned_before_the_log_comes_back(peers: Peers) -> None:
    tracker = await peers.tracker("one")
    for number in range(20):
        record, _ = await tracker.open("staging", f"m{number}", "n", cause="asked")
        async with tracker.own(record) as ownership:
            assert ownership is not None
            await tracker.reached(Revision(tracker.revision.identity, ownership.sequence), 5.0)
            await ownership.change(phase="verifying")
            assert ownership.stopped_by is None
        assert (await shows(tracker, "succeeded", record.id)).attempt == 1


async def test_opened_and_claimed_at_once_it_is_owned_without_another_attempt(peers: Peers) -> None:
    tracker = await peers.tracker("one")
    record, _ = await tracker.open("installation", "m", cause="asked", claim=True, parameters={"ref": "x"})
    assert (record.owner, record.state, record.parameters) == ("one", "running", {"ref": "x"})
    async with tracker.own(record) as ownership:
        assert ownership is not None
        assert ownership.record == record
    assert (await shows(tracker, "succeeded", "installation:m")).attempt == 1


async def test_opening_what_is_under_way_returns_it(peers: Peers) -> None:
    one, two = await peers.tracker("one"), await peers.tracker("two")
    found = await asyncio.gather(*(each.open("staging", "m", "n", cause="asked") for each in (one, two) * 5))
    assert len({record.job for record, _ in found}) == 1
    assert len({record.id for record, _ in found}) == 1
    await agree(one, two)


async def test_a_new_run_after_an_end_is_another_job_above_the_old_one(peers: Peers) -> None:
    tracker = await peers.tracker("one")
    first, _ = await tracker.open("staging", "m", "n", cause="asked")
    async with tracker.own(first):
        pass
    second, _ = await tracker.open("staging", "m", "n", cause="asked again")
    assert second.job != first.job
    assert (second.attempt, second.state) == (2, "queued")
    assert await shows(tracker, "queued") == second


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (NotEnoughSpace("n", "/models", 10, 5), "n: /models has 5 bytes free, but 10 more are needed"),
        (ValueError("odd"), "ValueError: odd"),
    ],
)
async def test_a_block_that_raises_has_failed_with_that_cause(peers: Peers, error: Exception, said: str) -> None:
    tracker = await peers.tracker("one")
    async with working(tracker) as work:
        await work.end(error)
    end = await shows(tracker, "failed")
    assert end.error.startswith(said)
    assert work.task.exception() is None


@pytest.mark.parametrize(("verb", "state"), [("cancel", "cancelled"), ("pause", "paused")])
async def test_a_stop_from_outside_ends_the_block_and_not_its_task(peers: Peers, verb: str, state: str) -> None:
    tracker = await peers.tracker("one")
    record, _ = await tracker.open("staging", "m", "n", cause="asked")
    went_on = False

    async def work() -> None:
        nonlocal went_on
        async with tracker.own(record):
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        went_on = True

    task = asyncio.create_task(work())
    await eventually(lambda: ID in tracker.owned)
    tracker.owned[ID].halt(verb)  # type: ignore[arg-type]
    await task
    assert went_on
    assert (await shows(tracker, state)).owner == "one"


async def test_a_thread_that_was_stopped_says_so_by_its_own_error(peers: Peers) -> None:
    tracker = await peers.tracker("one")
    record, _ = await tracker.open("staging", "m", "n", cause="asked")

    def thread(ownership: Ownership) -> None:
        ownership.stop.wait(60)
        raise Interrupted("cancel")

    async def work() -> None:
        async with tracker.own(record) as ownership:
            assert ownership is not None
            pulling = asyncio.ensure_future(asyncio.to_thread(thread, ownership))
            try:
                await asyncio.shield(pulling)
            except asyncio.CancelledError:
                await pulling

    task = asyncio.create_task(work())
    await eventually(lambda: ID in tracker.owned)
    tracker.owned[ID].halt("cancel")
    await task
    await shows(tracker, "cancelled")


async def test_a_process_that_leaves_says_so_and_is_cancelled(peers: Peers) -> None:
    tracker = await peers.tracker("one")
    async with working(tracker) as work:
        work.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work.task
    assert (await shows(tracker, "stalled")).note == "its process is stopping"


async def test_a_process_that_leaves_while_its_work_is_being_cancelled_is_cancelled(peers: Peers) -> None:
    tracker = await peers.tracker("one")
    async with working(tracker) as work:
        work.owned.halt("cancel")
        work.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work.task
    await shows(tracker, "cancelled")


async def test_what_has_ended_or_was_claimed_anew_is_not_for_whoever_comes_late(peers: Peers) -> None:
    one, two = await peers.tracker("one"), await peers.tracker("two")
    async with working(one) as work:
        stale = work.owned.record
        async with two.own(stale) as theirs:
            assert theirs is not None
            assert theirs.record.attempt == 2
            async with one.own(stale) as ours:
                assert ours is None
    async with one.own(theirs.record) as ours:
        assert ours is None


async def test_a_second_claim_fences_the_first_owner(peers: Peers) -> None:
    one, two = await peers.tracker("one"), await peers.tracker("two")
    async with working(one) as first:
        await shows(two, "running")
        async with two.own(held(two)) as second:
            assert second is not None
            assert (second.record.attempt, second.record.owner) == (2, "two")
            await first.task
            assert first.owned.stopped_by == "fence"
            assert first.owned.stop.is_set()
            standing = await one.bus.log.last(subjects.operation(second.record))
            assert standing is not None
            assert standing.sequence == second.sequence
        end = await shows(one, "succeeded")
    assert (end.owner, end.attempt) == ("two", 2)
    await agree(one, two)


async def test_a_late_word_of_the_earlier_owner_does_not_fence_the_new_one(peers: Peers) -> None:
    one, two = await peers.tracker("one"), await peers.tracker("two")
    async with working(one) as first:
        await shows(two, "running")
        await first.owned.change(phase="verifying")
        async with two.own(first.owned.record) as second:
            assert second is not None
            await two.reached(Revision(two.revision.identity, second.sequence), 5.0)
            assert second.stopped_by is None
    assert (await shows(one, "succeeded")).owner == "two"


async def test_two_trackers_at_one_revision_show_the_same_bytes(peers: Peers) -> None:
    one, two = await peers.tracker("one", interval=0.0), await peers.tracker("two")
    seen: dict[str, dict[Revision, bytes]] = {"one": {}, "two": {}}

    async def watch(tracker: Tracker) -> None:
        while True:
            at = tracker.revision
            seen[tracker.process][at] = listed(tracker)
            await tracker.changed(at)

    watchers = [asyncio.create_task(watch(each)) for each in (one, two)]
    async with working(one) as first, working(one, "o") as second:
        async with asyncio.timeout(60):
            while len(seen["one"].keys() & seen["two"].keys()) < 200:
                first.owned.advance(1)
                second.owned.advance(2)
                await asyncio.sleep(0.001)
    await agree(one, two)
    for watcher in watchers:
        watcher.cancel()
    await asyncio.wait(watchers)
    common = seen["one"].keys() & seen["two"].keys()
    assert [at for at in common if seen["one"][at] != seen["two"][at]] == []
    assert len({seen["one"][at] for at in common}) >= 100


async def test_a_tracker_that_starts_in_the_middle_shows_everything_when_it_is_caught_up(peers: Peers) -> None:
    one = await peers.tracker("one", interval=0.0)
    async with working(one) as first, working(one, "o"):
        for _ in range(20):
            first.owned.advance(1)
            await first.owned.change(phase="transferring")
        late = await peers.tracker("late")
        assert [row.model for row in late.fold.live()] == ["m", "m"]
        await agree(one, late)


async def test_waiting_is_for_a_change_and_gives_up_in_time(peers: Peers) -> None:
    one, two = await peers.tracker("one"), await peers.tracker("two")
    before = two.revision
    assert not await two.changed(before, 0.01)
    assert not await two.reached(Revision(before.identity, before.sequence + 1), 0.01)
    waiting = asyncio.create_task(two.changed(before, 10.0))
    _, revision = await one.open("staging", "m", "n", cause="asked")
    assert await waiting
    assert await two.reached(revision, 5.0)
    assert await two.reached(Revision("another stream", 10**9), 0.0)


async def test_a_burst_wakes_those_who_wait_once() -> None:
    bus, looks = MemoryBus(), 0

    def has_all() -> bool:
        nonlocal looks
        looks += 1
        return len(tracker.fold.slots) == 100

    async with Tracker(bus, "a").running() as tracker:
        await eventually(tracker.caught_up.is_set)
        waiting = asyncio.create_task(tracker.until(has_all))
        with tracker.listening("any", lambda: heard.append(len(tracker.fold.slots))):
            heard: list[int] = []
            await asyncio.sleep(0)
            for number in range(100):
                record = a_record(node=f"n{number}")
                await bus.log.append(subjects.operation(record), broadcast.encode(record))
            assert await waiting
            assert (looks, heard) == (2, [100])


async def test_who_has_given_up_is_forgotten() -> None:
    async with Tracker(MemoryBus(), "a").running() as tracker:
        await eventually(tracker.caught_up.is_set)
        assert not await tracker.until(lambda: False, 0.0)
        waiting = asyncio.create_task(tracker.until(lambda: False))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert tracker._changes._waiters == {}


SAID: dict[Topic, tuple[str, msgspec.Struct]] = {
    "holding": (subjects.holding("n", "m"), Holding(node="n", model="m", digest="d")),
    "placement": (subjects.placement("m"), Placement(model="m", nodes=("n",))),
}


@pytest.mark.parametrize(("topic", "other"), [("holding", "placement"), ("placement", "holding")])
async def test_who_listens_hears_of_what_concerns_it_and_of_a_fresh_picture(
    topic: Topic, other: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker_module, "RESTATE_GRACE", 0.0)
    bus, heard = MemoryBus(), []
    async with Tracker(bus, "a").running() as tracker:
        await eventually(tracker.caught_up.is_set)
        with tracker.listening(topic, lambda: heard.append(tracker.revision)):
            for subject, message in (SAID[other], SAID[topic], SAID[other]):
                await tracker.reached(await tracker.say(subject, msgspec.json.encode(message)))
            assert [revision.sequence for revision in heard] == [2]
            for each in (Anew("zanother"), CaughtUp(0)):
                for follower in bus.log._followers:
                    follower.put_nowait(each)
            await eventually(lambda: tracker.revision.identity == "zanother")
            assert heard[1].identity == "zanother"
        count = len(heard)
        await tracker.reached(await tracker.say(SAID[topic][0], msgspec.json.encode(SAID[topic][1])))
        assert len(heard) == count


async def test_who_listens_for_another_stream_hears_of_it_before_it_is_shown() -> None:
    bus, heard = MemoryBus(), []
    async with Tracker(bus, "a").running() as tracker:
        await eventually(tracker.caught_up.is_set)
        with tracker.listening("identity", lambda: heard.append((tracker.identity, tracker.revision.identity))):
            shown = tracker.revision.identity
            for follower in bus.log._followers:
                follower.put_nowait(Anew("zanother"))
            await eventually(lambda: heard)
            assert heard == [("zanother", shown)]


async def test_a_revision_of_a_later_stream_is_waited_for_and_given_up_only_by_who_hears_the_log(peers: Peers) -> None:
    tracker = await peers.tracker("a")
    later = Revision(identity_of(1e10), 3)
    waiting = asyncio.create_task(tracker.reached(later, 10.0))
    assert await tracker.reached(later, 0.01)
    tracker.is_degraded = True
    assert not await tracker.reached(later, 0.01)
    assert not waiting.done()
    waiting.cancel()


async def test_malformed_events_are_dropped_counted_and_logged_once(
    peers: Peers, caplog: pytest.LogCaptureFixture
) -> None:
    one = await peers.tracker("one")
    caplog.set_level(logging.WARNING)
    for name, payload in {"x": b"nonsense", "y": b'{"done":true}', "z": b'{"model_id":5}'}.items():
        await one.bus.log.append(f"staging.{name}.progress", payload)
    await eventually(lambda: one.malformed == 3)
    assert listed(one) == b"[]"
    assert [record.message for record in caplog.records if "malformed" in record.message] == [
        "dropped a malformed event on staging.x.progress (1 so far)"
    ]


async def test_closing_wakes_who_waits(peers: Peers) -> None:
    tracker = await peers.tracker("one")
    waiting = asyncio.create_task(tracker.until(lambda: tracker.is_closing, 10.0))
    await asyncio.sleep(0)
    tracker.close()
    assert await waiting


async def test_an_owner_goes_on_while_nats_is_away_and_all_agree_afterwards(
    cluster: Peers, nats_server: NatsServer
) -> None:
    one, two = await cluster.tracker("one", interval=0.01), await cluster.tracker("two")
    async with working(one) as work:
        await shows(two, "running")
        before = two.revision
        nats_server.stop(kill=True)
        await eventually(lambda: one.is_degraded and two.is_degraded)
        assert held(two).state == "running"
        work.owned.advance(7)
        change = asyncio.create_task(work.owned.change(phase="verifying"))
        nats_server.start()
        await change
        await eventually(lambda: held(two) == work.owned.record)
        await agree(one, two)
        assert two.revision.identity == before.identity
        assert (held(two).bytes_done, held(two).phase, held(two).attempt) == (7, "verifying", 1)
        assert work.owned.stopped_by is None
    await shows(two, "succeeded")


async def test_a_log_that_comes_back_empty_gets_its_past_again(cluster: Peers, nats_server: NatsServer) -> None:
    one, two = await cluster.tracker("one", interval=0.01), await cluster.tracker("two")
    placement = Placement(model="m", nodes=("n",))
    await one.say(subjects.placement("m"), b'{"model":"m","nodes":["n"]}')
    failed, _ = await one.open("staging", "m", "o", cause="asked")
    async with one.own(failed):
        raise ValueError("odd")
    async with working(one) as work:
        await eventually(lambda: two.fold.record(ID) == one.fold.record(ID) == work.owned.record)
        await agree(one, two)
        before, picture = two.revision, listed(two)
        nats_server.stop(kill=True)
        nats_server.empty()
        nats_server.start()
        await eventually(lambda: two.is_degraded)
        assert listed(two) == picture
        async with asyncio.timeout(60):
            await eventually(lambda: one.revision.identity == two.revision.identity != before.identity)
        await agree(one, two)
        assert held(two).owner == "one"
        assert held(two, "staging:m@o").error == "ValueError: odd"
        assert two.fold.placements["m"] == placement
        work.owned.advance(9)
        await eventually(lambda: held(two).bytes_done == 9)
        assert work.owned.stopped_by is None
        late = await cluster.tracker("late")
        await agree(one, two, late)
    assert (await shows(two, "succeeded")).owner == "one"


async def test_a_process_can_leave_while_nats_is_away(cluster: Peers, nats_server: NatsServer) -> None:
    one = await cluster.tracker("one")
    async with working(one) as work:
        nats_server.stop(kill=True)
        await eventually(lambda: one.is_degraded)
        work.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work.task


async def test_a_cancel_does_not_lose_an_end_that_waits_for_nats(cluster: Peers, nats_server: NatsServer) -> None:
    one = await cluster.tracker("one")
    async with working(one) as work:
        nats_server.stop(kill=True)
        await eventually(lambda: one.is_degraded)
        work.error = ValueError("odd")
        work.finish.set()
        await eventually(lambda: work.owned._is_settled)
        work.owned.halt("cancel")
        nats_server.start()
        await work.task
    standing = await one.bus.log.last(subjects.operation(a_record()))
    record = standing_record(standing)
    assert record is not None
    assert (record.state, record.error) == ("failed", "ValueError: odd")


async def test_a_claim_waits_for_a_bus_that_is_away(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = await peers.tracker("one")
    record, _ = await tracker.open("staging", "m", "n", cause="asked")
    log, tries = tracker.bus.log, []
    last = log.last

    async def away(subject: str) -> Entry | None:
        tries.append(subject)
        if len(tries) < 3:
            raise BusUnavailable("not connected")
        return await last(subject)

    monkeypatch.setattr(log, "last", away)
    async with tracker.own(record) as ownership:
        assert ownership is not None
        assert len(tries) == 3


@pytest.mark.parametrize("error", [ValueError("no"), BadInput("no")])
async def test_what_a_block_raises_fails_it_and_goes_on_where_that_is_asked_for(peers: Peers, error: Exception) -> None:
    tracker = await peers.tracker("a")
    for passes_on in (False, True):
        record, _ = await tracker.open("render", f"film-{passes_on}", cause="asked", claim=True)
        with pytest.raises(type(error)) if passes_on else nullcontext():
            async with tracker.own(record, passes_on=passes_on):
                raise error
        await eventually(lambda record=record: (held := tracker.fold.record(record.id)) and held.state == "failed")
        held = tracker.fold.record(record.id)
        assert held is not None
        assert held.error == ("no" if isinstance(error, BadInput) else "ValueError: no")
