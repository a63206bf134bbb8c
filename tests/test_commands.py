from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

import msgspec
import pytest

from stagecast import commands as module
from stagecast import operations, subjects
from stagecast.bus import Log
from stagecast.bus.memory import MemoryBus
from stagecast.bus.nats import connect
from stagecast.commands import Commands
from stagecast.errors import BusUnavailable, CommandLost, NameTaken, Unknown, WrongState
from stagecast.messages import Entry, GalleryCancel, GalleryStatus, NodeRecord, Record, State, Verb
from stagecast.meter import Wait
from stagecast.mirror import Mirror
from stagecast.tracker import Tracker
from tests.conftest import NatsServer, eventually
from tests.peers import Peers, a_record, agree, gathered

ID = "staging:m@n"


@pytest.fixture(params=["memory", "nats"])
async def peers(request: pytest.FixtureRequest) -> AsyncIterator[Peers]:
    async with gathered(request) as found:
        yield found


@dataclass
class Pair:
    """A process that works on an operation, and another that people give their commands to."""

    owner: Tracker
    other: Tracker
    commands: Commands
    work: asyncio.Task[None]

    async def shows(self, condition: Callable[[Record], bool]) -> Record:
        def holds() -> bool:
            found = self.other.fold.record(ID)
            return found is not None and condition(found)

        await eventually(holds)
        record = self.other.fold.record(ID)
        assert record is not None
        return record


@pytest.fixture
async def pair(peers: Peers) -> AsyncIterator[Pair]:
    owner, other = await peers.tracker("owner"), await peers.tracker("other")
    record, _ = await owner.open("staging", "m", "n", cause="asked")

    async def work() -> None:
        async with owner.own(record):
            await asyncio.Event().wait()

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(Commands(owner).running())
        commands = await stack.enter_async_context(Commands(other).running())
        pair = Pair(owner, other, commands, asyncio.create_task(work()))
        await pair.shows(lambda found: found.state == "running")
        yield pair
        pair.work.cancel()
        await asyncio.wait([pair.work])


async def fail(peers: Peers) -> tuple[Tracker, Tracker, Commands]:
    """Return two trackers that show an operation that has failed."""
    one, two = await peers.tracker("one"), await peers.tracker("two")
    record, _ = await one.open("staging", "m", "n", cause="asked")
    async with one.own(record):
        raise ValueError("odd")
    await eventually(lambda: (found := two.fold.record(ID)) is not None and found.state == "failed")
    return one, two, Commands(two)


async def test_cancel_is_obeyed_by_the_owner_and_seen_by_who_asked(pair: Pair) -> None:
    record, revision = await pair.commands.give(ID, "cancel")
    assert (record.state, record.owner, record.attempt) == ("cancelled", "owner", 1)
    assert revision.reached_by(pair.other.revision)
    await pair.work
    before = await pair.owner.bus.log.last(subjects.operation(record))
    assert await pair.commands.give(ID, "cancel") == (record, revision)
    assert await pair.owner.bus.log.last(subjects.operation(record)) == before
    for verb in ("pause", "resume", "dismiss"):
        with pytest.raises(WrongState, match=f"cannot {verb} {ID}: it is cancelled"):
            await pair.commands.give(ID, verb)  # type: ignore[arg-type]


async def test_an_operation_is_named_by_its_job_too(pair: Pair) -> None:
    job = (await pair.shows(lambda _: True)).job
    record, _ = await pair.commands.give(job, "cancel")
    assert (record.id, record.state) == (ID, "cancelled")


async def test_pause_and_resume(pair: Pair) -> None:
    record, _ = await pair.commands.give(ID, "pause")
    assert record.state == "paused"
    await pair.work
    assert (await pair.commands.give(ID, "pause"))[0] == record
    record, revision = await pair.commands.give(ID, "resume")
    assert (record.state, record.owner, record.attempt, record.begun_by) == ("queued", "", 2, "resume")
    assert await pair.commands.give(ID, "resume") == (record, revision)
    with pytest.raises(WrongState, match=f"cannot retry {ID}: it is queued"):
        await pair.commands.give(ID, "retry")
    await pair.owner.reached(revision, 5.0)
    async with pair.owner.own(record) as ownership:
        assert ownership is not None
        assert ownership.record.attempt == 2
        assert (await pair.commands.give(ID, "resume"))[0].state == "running"
    await pair.shows(lambda found: found.state == "succeeded")
    with pytest.raises(WrongState, match=f"cannot resume {ID}: it is succeeded"):
        await pair.commands.give(ID, "resume")


async def test_retry_is_open_to_whoever_takes_it(peers: Peers) -> None:
    one, two, commands = await fail(peers)
    record, revision = await commands.give(ID, "retry")
    assert (record.state, record.owner, record.attempt, record.error) == ("queued", "", 2, "")
    assert await one.reached(revision, 5.0)
    assert await commands.give(ID, "retry") == (record, revision)
    async with two.own(record):
        pass
    await eventually(lambda: one.fold.record(ID).state == "succeeded")  # type: ignore[union-attr]
    await agree(one, two)


async def test_dismiss_takes_what_failed_off_the_list(peers: Peers) -> None:
    one, two, commands = await fail(peers)
    before = two.fold.record(ID)
    record, revision = await commands.give(ID, "dismiss")
    assert record.dismissed
    assert record.updated_at == before.updated_at  # type: ignore[union-attr]
    assert await one.reached(revision, 5.0)
    await agree(one, two)
    assert await commands.give(ID, "dismiss") == (record, revision)
    with pytest.raises(WrongState):
        await commands.give(ID, "retry")


@pytest.mark.parametrize("verb", ["cancel", "pause", "resume", "retry", "dismiss"])
async def test_what_nobody_knows_is_unknown(peers: Peers, verb: Verb) -> None:
    commands = Commands(await peers.tracker("one"))
    with pytest.raises(Unknown, match="no operation 'nothing' is known"):
        await commands.give("nothing", verb)


@pytest.mark.parametrize("verb", ["resume", "retry", "dismiss"])
async def test_a_state_that_forbids_it_is_told_and_nothing_happens(pair: Pair, verb: Verb) -> None:
    before = pair.other.revision
    with pytest.raises(WrongState, match=f"cannot {verb} {ID}: it is running"):
        await pair.commands.give(ID, verb)
    assert pair.other.revision == before


@pytest.mark.parametrize(("verb", "state"), [("cancel", "cancelled"), ("pause", "paused")])
async def test_an_owner_that_is_dead_is_not_waited_for(peers: Peers, verb: Verb, state: str) -> None:
    two = await peers.tracker("two")
    async with peers.passing("one") as one:
        await one.open("staging", "m", "n", cause="asked", claim=True)
    await eventually(lambda: two.fold.record(ID))
    record, revision = await Commands(two).give(ID, verb)
    assert (record.state, record.owner, record.attempt) == (state, "one", 1)
    assert revision.reached_by(two.revision)


async def test_an_owner_that_sleeps_is_overruled_and_fenced(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OWNER_TIMEOUT", 0.2)
    one, two = await peers.tracker("one"), await peers.tracker("two")
    record, _ = await one.open("staging", "m", "n", cause="asked")
    woken = asyncio.Event()

    async def work() -> None:
        async with one.own(record) as ownership:
            assert ownership is not None
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await woken.wait()
                raise

    async with Commands(one).running():
        task = asyncio.create_task(work())
        await eventually(lambda: (found := two.fold.record(ID)) is not None and found.state == "running")
        answer, _ = await Commands(two).give(ID, "cancel")
        assert answer.state == "cancelled"
        woken.set()
        await task
    await agree(one, two)
    assert one.fold.record(ID) == answer


async def test_a_queued_operation_is_cancelled_without_an_owner(peers: Peers) -> None:
    one, two = await peers.tracker("one"), await peers.tracker("two")
    queued, _ = await one.open("staging", "m", "n", cause="asked")
    await eventually(lambda: two.fold.record(ID))
    record, revision = await Commands(two).give(ID, "cancel")
    assert record.state == "cancelled"
    await one.reached(revision, 5.0)
    async with one.own(queued) as ownership:
        assert ownership is None


async def test_two_that_cancel_at_once_end_it_once(pair: Pair) -> None:
    answers = await asyncio.gather(
        pair.commands.give(ID, "cancel"), Commands(pair.owner).give(ID, "cancel"), return_exceptions=True
    )
    assert all(isinstance(answer, WrongState) or answer[0].state == "cancelled" for answer in answers)  # type: ignore[index]
    await pair.work
    await agree(pair.owner, pair.other)
    assert (await pair.shows(lambda _: True)).attempt == 1


async def test_a_cancel_that_comes_while_the_owner_pauses_cancels(pair: Pair) -> None:
    """The owner is on its way to something else: its answer must not be taken for the effect (law L5)."""
    pair.owner.owned[ID].halt("pause")
    record, revision = await pair.commands.give(ID, "cancel")
    assert record.state == "cancelled"
    assert revision.reached_by(pair.other.revision)
    await pair.work


async def test_a_pause_that_comes_while_the_work_ends_is_told_that_it_is_too_late(pair: Pair) -> None:
    pair.owner.owned[ID].halt("cancel")
    with pytest.raises(WrongState):
        await pair.commands.give(ID, "pause")
    await pair.work
    assert (await pair.shows(lambda found: found.state != "running")).state == "cancelled"


async def test_a_cancel_of_the_gallery_reaches_the_owner_by_id_and_by_job(peers: Peers) -> None:
    one, two = await peers.tracker("one"), await peers.tracker("two")

    async def install(record: Record) -> None:
        async with one.own(record):
            await asyncio.Event().wait()

    async with Commands(one).running():
        for by_job in (True, False):
            record, _ = await one.open("installation", "m", cause="asked", claim=True)
            task = asyncio.create_task(install(record))
            await eventually(lambda: one.owned)
            await two.bus.publish("gallery.any.cancel", b"nonsense")
            cancel = GalleryCancel(id=record.job if by_job else record.id)
            await two.bus.publish("gallery.any.cancel", msgspec.json.encode(cancel))
            await task
            await eventually(lambda: two.fold.record("installation:m").state == "cancelled")  # type: ignore[union-attr]


@pytest.mark.parametrize("by_job", [True, False])
@pytest.mark.parametrize("state", ["queued", "paused", "stalled"])
async def test_a_cancel_of_the_gallery_ends_once_what_nobody_owns(peers: Peers, state: State, by_job: bool) -> None:
    one, two = await peers.tracker("one"), await peers.tracker("two")
    async with peers.passing("dead") as dead:
        record, at = await dead.open("installation", "m", cause="asked", claim=state != "queued")
        if state == "stalled":
            at = await dead.write(operations.stalled(record, "away", 1.0), at.sequence)
        elif state == "paused":
            at = await dead.write(operations.commanded(record, "pause", 1.0), at.sequence)
    for each in (one, two):
        await each.reached(at)
    cancel = msgspec.json.encode(GalleryCancel(id=record.job if by_job else record.id))
    async with Commands(one, judges=True).running() as first, Commands(two, judges=True).running() as second:
        await one.bus.publish("gallery.any.cancel", cancel)
        await eventually(lambda: all(each.fold.record(record.id).state == "cancelled" for each in (one, two)))  # type: ignore[union-attr]
        await eventually(lambda: not first._tasks and not second._tasks)
    await agree(one, two)
    assert one.revision.sequence == at.sequence + 1


@pytest.mark.parametrize("is_obeyed", [True, False])
async def test_a_cancel_of_the_gallery_is_honoured_though_an_owner_that_died_just_now_is_not_stalled_yet(
    peers: Peers, monkeypatch: pytest.MonkeyPatch, is_obeyed: bool
) -> None:
    """Who judges waits for the owner to obey, which a living one does, and only then ends it over its head."""
    monkeypatch.setattr(module, "OWNER_TIMEOUT", 30.0 if is_obeyed else 0.1)
    one, owner = await peers.tracker("one"), await peers.tracker("owner")
    record, at = await owner.open("installation", "m", cause="asked", claim=True)
    await one.reached(at)
    async with Commands(one, judges=True).running() as judging:
        await one.bus.publish("gallery.any.cancel", msgspec.json.encode(GalleryCancel(id=record.job)))
        await eventually(lambda: judging._tasks)
        if is_obeyed:
            await owner.write(operations.ended(record, "cancelled", 2.0), at.sequence)
        await eventually(lambda: not judging._tasks)
    held = one.fold.record(record.id)
    assert held is not None
    assert held.state == "cancelled"
    assert one.revision.sequence == at.sequence + 1


@pytest.mark.parametrize(("judges", "claim"), [(False, False), (True, True)])
async def test_a_cancel_of_the_gallery_is_not_passed_on_by_who_does_not_judge_nor_to_who_hears_it(
    peers: Peers, judges: bool, claim: bool
) -> None:
    one = await peers.tracker("one")
    record, at = await one.open("installation", "m", cause="asked", claim=claim)
    await one.reached(at)
    async with Commands(one, judges=judges).running() as commands:
        commands._hear_gallery_cancel("gallery.any.cancel", msgspec.json.encode(GalleryCancel(id=record.id)))
        assert not commands._tasks


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        (b"nonsense", "JSON"),
        (b'{"verb":"explode","id":"x"}', "explode"),
        (b'{"verb":"cancel","id":"staging:x@n"}', "not owned here"),
        (b'{"verb":"dismiss","id":"staging:m@n"}', "the owner has no part in this"),
    ],
)
async def test_what_the_owner_cannot_obey_is_answered(pair: Pair, payload: bytes, error: str) -> None:
    answer = await pair.other.bus.request(subjects.command("owner"), payload, 5.0)
    assert error in json.loads(answer)["error"]
    assert not pair.work.done()


async def test_a_foreign_installation_is_asked_to_cancel_on_its_own_subject() -> None:
    bus = MemoryBus()
    heard: list[tuple[str, bytes]] = []
    await bus.subscribe("gallery.*.cancel", lambda subject, payload: heard.append((subject, payload)))
    tracker = Tracker(bus, "a")
    mirror = Mirror("installation:m", "job.1", "m", "s", 1, 5.0, done=False, status=GalleryStatus(cancellable=True))
    await Commands(tracker).give_foreign(mirror, "cancel")
    assert heard == [("gallery.job-1.cancel", b'{"id":"job.1"}')]


@pytest.mark.parametrize("verb", ["pause", "retry", "dismiss"])
async def test_nothing_else_can_be_asked_of_a_foreign_publisher(verb: Verb) -> None:
    mirror = Mirror("installation:m", "job", "m", "s", 1, 5.0, done=False, status=GalleryStatus())
    with pytest.raises(WrongState):
        await Commands(Tracker(MemoryBus(), "a")).give_foreign(mirror, verb)


async def test_a_name_is_taken_only_while_a_living_process_answers_for_it(peers: Peers) -> None:
    one, two = await peers.tracker("one/1"), await peers.tracker("one/2")
    node = NodeRecord(name="one", kind="worker", process="one/1")
    await one.say(subjects.node("one"), msgspec.json.encode(node))
    await eventually(lambda: "one" in two.fold.nodes)
    await Commands(two).check_name("one")
    async with Commands(one).running():
        await Commands(one).check_name("one")
        with pytest.raises(NameTaken, match="a living worker is called 'one' already; choose another name"):
            await Commands(two).check_name("one")
    await Commands(two).check_name("another")


async def ended_run(peers: Peers, state: str) -> tuple[Tracker, Commands, Record]:
    """Return an operation that has ended, and that the log has no more: only ``ended`` finds it."""
    tracker = await peers.tracker("one")
    past = a_record(job="past", state=state, error="why" if state == "failed" else "", attempt=4, bytes_done=7)
    commands = Commands(tracker)
    commands.ended = lambda name: past if name in {past.id, past.job} else None
    return tracker, commands, past


@pytest.mark.parametrize("name", [ID, "past"])
@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled"])
async def test_what_only_the_history_knows_is_answered_from_it(peers: Peers, state: str, name: str) -> None:
    tracker, commands, past = await ended_run(peers, state)
    fulfilled: set[Verb] = {"dismiss"} | ({"cancel"} if state == "cancelled" else set())
    for verb in ("cancel", "pause", "resume", "dismiss"):
        if verb in fulfilled:
            assert (await commands.give(name, verb))[0] == past  # type: ignore[arg-type]
        else:
            with pytest.raises(WrongState, match=f"cannot {verb} {ID}: it is {state}"):
                await commands.give(name, verb)  # type: ignore[arg-type]
    assert tracker.fold.slots == {}


async def test_what_has_failed_and_only_the_history_knows_can_be_tried_again(peers: Peers) -> None:
    tracker, commands, past = await ended_run(peers, "failed")
    record, _ = await commands.give("past", "retry")
    assert (record.id, record.job, record.attempt, record.state) == (ID, "past", past.attempt + 1, "queued")
    assert tracker.fold.record(ID) == record


async def test_a_run_that_another_has_followed_is_past(peers: Peers) -> None:
    tracker, commands, _ = await ended_run(peers, "failed")
    follower, revision = await tracker.open("staging", "m", "n", cause="asked")
    await tracker.reached(revision)
    for verb in ("cancel", "pause", "resume", "retry"):
        with pytest.raises(WrongState, match=f"cannot {verb} past: it is failed, and another run has followed it"):
            await commands.give("past", verb)  # type: ignore[arg-type]
    assert (await commands.give("past", "dismiss"))[0].job == "past"
    assert tracker.fold.record(ID) == follower


async def test_an_owner_that_waits_for_bytes_is_asked_as_one_that_runs(pair: Pair) -> None:
    ownership = pair.owner.owned[ID]
    ownership._waits = Wait("source", "it fails", -1e9)
    ownership.tell("now")
    await pair.shows(lambda found: found.state == "stalled" and found.waits_on == "source")
    record, _ = await pair.commands.give(ID, "cancel")
    assert (record.state, record.owner, record.attempt) == ("cancelled", "owner", 1)
    assert ownership.stopped_by == "cancel"


@pytest.mark.parametrize("keep_partial", [True, False])
async def test_the_choice_of_a_cancel_reaches_the_owner(pair: Pair, keep_partial: bool) -> None:
    pair.owner.owned[ID].bytes_kept = 5
    record, _ = await pair.commands.give(ID, "cancel", keep_partial=keep_partial)
    assert (record.keep_partial, record.bytes_kept) == (keep_partial, 5)


class Deaf:
    """A log that can be read for a while, and not be written to."""

    def __init__(self, log: Log, reads: int) -> None:
        self._log = log
        self._reads = reads

    async def append(self, *_: object, **__: object) -> int:
        raise BusUnavailable("no answer")

    async def last(self, subject: str) -> Entry | None:
        self._reads -= 1
        if self._reads < 0:
            raise BusUnavailable("not connected")
        return await self._log.last(subject)


@pytest.mark.parametrize(
    ("reads", "may_be_done", "said"),
    [
        (0, False, "(not connected); nothing was done; try again once NATS is back"),
        (2, True, "(no answer); it was sent, and may have been done or not; see there once NATS is back"),
    ],
)
async def test_without_the_bus_a_command_says_whether_it_may_have_been_done(
    reads: int, may_be_done: bool, said: str
) -> None:
    bus = MemoryBus()
    async with Tracker(bus, "a").running() as tracker:
        await tracker.caught_up.wait()
        _, revision = await tracker.open("staging", "m", "n", cause="asked")
        await tracker.reached(revision)
        bus.log = Deaf(bus.log, reads)  # type: ignore[assignment]
        with pytest.raises(CommandLost) as raised:
            await Commands(tracker).give(ID, "cancel")
    assert (raised.value.status, raised.value.may_be_done) == (503, may_be_done)
    assert raised.value.message == f"cannot cancel {ID}: the bus cannot be reached {said}"


async def test_with_nats_away_every_command_is_answered_at_once(nats_server: NatsServer) -> None:
    async with connect(nats_server.url, "a") as bus, Tracker(bus, "a").running() as tracker:
        await tracker.caught_up.wait()
        _, revision = await tracker.open("staging", "m", "n", cause="asked")
        await tracker.reached(revision)
        nats_server.stop(kill=True)
        await eventually(lambda: tracker.is_degraded)
        commands = Commands(tracker)
        for name in (ID, "nobody"):
            with pytest.raises(CommandLost, match="nothing was done; try again once NATS is back"):
                async with asyncio.timeout(8):
                    await commands.give(name, "cancel")
        nats_server.start()
        await eventually(lambda: not tracker.is_degraded)
        assert (await commands.give(ID, "cancel"))[0].state == "cancelled"
        with pytest.raises(Unknown):
            await commands.give("nobody", "cancel")
