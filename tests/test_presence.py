from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import msgspec
import pytest

from stagecast import rows, subjects, turns
from stagecast.bus.memory import MemoryBus
from stagecast.fold import FOREIGN_LIFETIME, Fold
from stagecast.history import History
from stagecast.leases import LIFETIME, MEMORY, PATIENCE
from stagecast.messages import Entry, GalleryEvent, GalleryStatus, NodeRecord, StagingEvent, StagingStatus
from stagecast.mirror import Mirror
from stagecast.presence import Presence, goodbye
from stagecast.settings import Bounds
from stagecast.tracker import Tracker
from tests.conftest import eventually
from tests.peers import Peers, agree, gathered

ID = "staging:m@n"


@pytest.fixture(params=["memory", "nats"])
async def peers(request: pytest.FixtureRequest) -> AsyncIterator[Peers]:
    async with gathered(request) as found:
        yield found


class Clock:
    """Local monotonic time that only moves when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def judging(tracker: Tracker, clock: Clock, *, judges: bool = True) -> Presence:
    return Presence(tracker, judges=judges, monotonic=clock)


async def abandoned(peers: Peers, *watchers: Tracker) -> None:
    """Leave a running operation behind whose owner is gone without a goodbye."""
    async with peers.passing("owner") as owner:
        await owner.open("staging", "m", "n", cause="asked", claim=True)
    await eventually(lambda: all(each.fold.record(ID) is not None for each in watchers))


async def test_a_dead_owners_operation_stalls_exactly_once_though_two_judge(peers: Peers) -> None:
    one, two = await peers.tracker("one"), await peers.tracker("two")
    await abandoned(peers, one, two)
    clock = Clock()
    judges = [judging(each, clock) for each in (one, two)]
    before = one.revision.sequence
    for judge in judges:
        judge.leases.renew("owner", clock.now)
    await asyncio.gather(*(judge.sweep(clock.now + LIFETIME - 0.01, 0.0) for judge in judges))
    assert (await one.bus.log.last(_subject(one))).sequence == before  # type: ignore[union-attr]
    await asyncio.gather(*(judge.sweep(clock.now + LIFETIME, 0.0) for judge in judges))
    await eventually(lambda: all(each.fold.record(ID).state == "stalled" for each in (one, two)))  # type: ignore[union-attr]
    await agree(one, two)
    await asyncio.gather(*(judge.sweep(clock.now + LIFETIME + 1, 0.0) for judge in judges))
    assert one.revision.sequence == two.revision.sequence == before + 1
    assert (await one.bus.log.last(_subject(one))).sequence == before + 1  # type: ignore[union-attr]


async def test_a_node_that_stays_away_ends_its_operations_once(peers: Peers) -> None:
    one, two = await peers.tracker("one"), await peers.tracker("two")
    await abandoned(peers, one, two)
    clock = Clock()
    judges = [judging(each, clock) for each in (one, two)]
    for judge in judges:
        judge.leases.renew("owner", clock.now)
    await asyncio.gather(*(judge.sweep(clock.now + PATIENCE, 0.0) for judge in judges))
    await eventually(lambda: all(each.fold.record(ID).state == "failed" for each in (one, two)))  # type: ignore[union-attr]
    await agree(one, two)
    assert one.fold.record(ID).error == "node n stayed away for 120 s"  # type: ignore[union-attr]


async def test_an_operation_that_was_mended_can_still_be_judged(peers: Peers) -> None:
    one, two = await peers.tracker("one"), await peers.tracker("two")
    await abandoned(peers, one, two)
    subject, before = _subject(one), one.revision.sequence
    await one.bus.log.append(subject, b'{"model_id":"m","done":true}')
    await eventually(lambda: one.revision.sequence == two.revision.sequence == before + 2)
    clock = Clock()
    judge = judging(one, clock)
    judge.leases.leave("owner")
    await judge.sweep(clock.now, 0.0)
    await eventually(lambda: two.fold.record(ID).state == "stalled")  # type: ignore[union-attr]


async def test_a_foreign_row_of_either_kind_expires_for_all_by_one_word(peers: Peers) -> None:
    one, two = await peers.tracker("one"), await peers.tracker("two")
    before = one.revision.sequence
    staging = StagingEvent(model_id="m", status=StagingStatus(model_id="m"))
    gallery = GalleryEvent(job_id="j", status=GalleryStatus(gallery_element_name="g"))
    await one.bus.log.append("staging.m.progress", msgspec.json.encode(staging))
    await one.bus.log.append("gallery.g.progress", msgspec.json.encode(gallery))
    await eventually(lambda: all(len(rows.listed(each.fold)) == 2 for each in (one, two)))
    judges = [judging(each, Clock()) for each in (one, two)]
    last = max(mirror.time for mirror in one.fold.mirrors.values())
    await asyncio.gather(*(judge.sweep(0.0, last + FOREIGN_LIFETIME) for judge in judges))
    await eventually(lambda: all(rows.listed(each.fold) == [] for each in (one, two)))
    await agree(one, two)
    await asyncio.gather(*(judge.sweep(0.0, last + 9 * FOREIGN_LIFETIME) for judge in judges))
    assert one.revision.sequence == before + 4


async def test_processes_hear_of_each_other_and_of_their_goodbyes(peers: Peers) -> None:
    one, two = await peers.tracker("one"), await peers.tracker("two")
    clock = Clock()
    here, there = judging(one, clock), judging(two, clock)
    async with here.running():
        async with there.running():
            await eventually(lambda: "two" in here.leases.heard)
            assert here.is_alive("two")
        await eventually(lambda: not here.is_alive("two"))
    assert here.is_alive("one")


async def test_a_node_is_alive_while_its_process_is_and_it_has_not_left(peers: Peers) -> None:
    one = await peers.tracker("one")
    clock = Clock()
    here = judging(one, clock)
    node = NodeRecord(name="n", kind="worker", process="p")
    await one.say(subjects.node("n"), msgspec.json.encode(node))
    await eventually(lambda: "n" in one.fold.nodes)
    here.leases.renew("p", clock.now)
    assert here.is_node_alive("n")
    clock.now += LIFETIME
    assert not here.is_node_alive("n")
    here.leases.renew("p", clock.now)
    await one.say(subjects.node("n"), msgspec.json.encode(msgspec.structs.replace(node, left=True)))
    await eventually(lambda: one.fold.nodes["n"].left)
    assert not here.is_node_alive("n")
    assert not here.is_node_alive("nobody")


async def test_leases_stand_still_while_the_log_cannot_be_heard(peers: Peers) -> None:
    one = await peers.tracker("one")
    clock = Clock()
    here = judging(one, clock)
    here.leases.renew("p", clock.now)
    clock.now += LIFETIME - 1
    one.is_degraded = True
    assert here.is_alive("p")
    clock.now += 100 * LIFETIME
    assert here.is_alive("p"), "nobody can say who was silent"
    assert here.now() == 1000.0 + LIFETIME - 1


async def test_everybody_gets_a_fresh_lease_when_the_log_is_back(peers: Peers) -> None:
    one = await peers.tracker("one")
    clock = Clock()
    here = judging(one, clock)
    here.leases.renew("p", clock.now)
    here.leases.renew("gone", clock.now)
    here.leases.leave("gone")
    one.is_degraded = True
    assert here.is_alive("p")
    clock.now += 100 * LIFETIME
    one.is_degraded = False
    assert here.is_alive("p")
    assert not here.is_alive("gone"), "who said goodbye stays dead"
    clock.now += LIFETIME - 0.01
    assert here.is_alive("p")
    clock.now += 0.01
    assert not here.is_alive("p"), "its fresh lease is no longer than any other"


async def test_a_lease_that_ran_out_before_the_loss_stays_so_during_it(peers: Peers) -> None:
    one = await peers.tracker("one")
    clock = Clock()
    here = judging(one, clock)
    here.leases.renew("p", clock.now)
    clock.now += LIFETIME
    one.is_degraded = True
    clock.now += LIFETIME
    assert not here.is_alive("p")


async def test_nothing_is_judged_while_the_log_cannot_be_heard(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stagecast.presence.SWEEP", 0.001)
    one = await peers.tracker("one")
    await abandoned(peers, one)
    clock = Clock()
    here = judging(one, clock)
    here.leases.renew("owner", clock.now)
    before = one.revision
    async with here.running():
        one.is_degraded = True
        here.now()
        clock.now += 100 * PATIENCE
        looked = here.leases.looked
        assert not await one.changed(before, 0.05)
        assert here.leases.looked == looked
        one.is_degraded = False
        await eventually(lambda: here.leases.looked == clock.now)
        assert here.is_alive("owner")
        clock.now += LIFETIME
        here.leases.looked = clock.now
        await eventually(lambda: one.fold.record(ID).state == "stalled")  # type: ignore[union-attr]


async def test_a_rubbish_beat_is_ignored(peers: Peers) -> None:
    one = await peers.tracker("one")
    here = judging(one, Clock())
    async with here.running():
        await one.bus.publish(subjects.BEAT, b"nonsense")
        await one.bus.publish(subjects.BEAT, b'{"process":"p"}')
        await eventually(lambda: "p" in here.leases.heard)


async def test_the_servers_clock_is_what_its_messages_said_plus_what_passed_here(peers: Peers) -> None:
    clock = Clock()
    one = await peers.tracker("one", monotonic=clock)
    assert one.server_clock.now() == 0.0, "nothing has told it"
    await one.bus.log.append("staging.m.progress", b'{"model_id":"m"}')
    await eventually(lambda: "staging:m" in one.fold.mirrors)
    began = one.server_clock.now()
    assert began == pytest.approx(one.fold.mirrors["staging:m"].time)
    clock.now += 60.0
    assert one.server_clock.now() == pytest.approx(began + 60.0)


async def test_a_servers_clock_that_fell_back_ends_no_foreign_row_early() -> None:
    wall, clock = Clock(), Clock()
    bus = MemoryBus()
    bus.log._clock = wall
    async with Tracker(bus, "one", monotonic=clock).running() as one:
        history, judge = History(one, Bounds(age=3600.0)), judging(one, clock)

        async def heard(model: str) -> None:
            await bus.log.append(f"staging.{model}.progress", b'{"model_id":"%s"}' % model.encode())
            await eventually(lambda: f"staging:{model}" in one.fold.mirrors)

        async def shown() -> list[str]:
            await judge.sweep(clock.now, one.server_clock.now())
            await one.bus.log.append("stagecast.mark", b"")
            await eventually(lambda: one.revision.sequence == bus.log._sequence)
            return [row.name for row in rows.listed(one.fold)]

        wall.now = 1.7e9 + 7200.0
        await heard("before")
        assert await shown() == ["before"]
        wall.now -= 7200.0
        await heard("after")
        assert await shown() == ["after"], "how old what came before is nobody can tell, but not two hours ahead"
        assert history._now() == pytest.approx(wall.now)
        clock.now += FOREIGN_LIFETIME - 1.0
        wall.now += FOREIGN_LIFETIME - 1.0
        assert await shown() == ["after"]
        clock.now += 1.0
        wall.now += 1.0
        assert await shown() == []


def test_goodbyes_are_events_of_the_wire() -> None:
    sent = StagingStatus(model_id="m", bytes_sent=5)
    staging = Mirror("staging:m", "m", "m", "s", 1, 5.0, done=False, status=sent)
    event = json.loads(goodbye(staging))
    assert (event["model_id"], event["done"], event["status"]["bytes_sent"]) == ("m", True, 5)
    element = GalleryStatus(gallery_element_name="g")
    gallery = Mirror("installation:g", "job-g", "g", "s", 1, 5.0, done=False, status=element)
    event = json.loads(goodbye(gallery))
    assert (event["job_id"], event["status"]["processed"]) == ("job-g", True)


@pytest.mark.parametrize(
    "status", [StagingStatus(model_id="m"), GalleryStatus(gallery_element_name="m", cancellable=True)]
)
def test_what_only_fell_silent_is_not_said_to_have_succeeded(status: StagingStatus | GalleryStatus) -> None:
    is_staging = isinstance(status, StagingStatus)
    subject = "staging.m.progress" if is_staging else "gallery.m.progress"
    said = StagingEvent(model_id="m", status=status) if is_staging else GalleryEvent(job_id="m", status=status)  # type: ignore[arg-type]
    fold = Fold()
    fold.apply(Entry(subject, 1, msgspec.json.encode(said), 5.0))
    fold.apply(Entry(subject, 2, goodbye(next(fold.expired(5.0 + FOREIGN_LIFETIME))), 65.0))
    ((_, row),) = rows.changed(fold, 1)
    assert (row.state, row.error, row.dismissed) == ("failed", "its publisher has said nothing for 60 s", True)
    assert not row.cancellable
    assert rows.listed(fold) == []


def _subject(tracker: Tracker) -> str:
    record = tracker.fold.record(ID)
    assert record is not None
    return subjects.operation(record)


async def test_work_that_no_living_process_performs_says_so_once_though_two_judge(peers: Peers) -> None:
    one, two = await peers.tracker("one"), await peers.tracker("two")
    clock = Clock()
    judges = [judging(each, clock) for each in (one, two)]
    for judge in judges:
        judge.leases.look(clock.now)
    _, at = await one.open("render", "film", cause="asked")
    await two.reached(at)
    before = one.revision.sequence
    await asyncio.gather(*(judge.sweep(clock.now + LIFETIME - 0.01, 0.0) for judge in judges))
    assert one.revision.sequence == before, "not everybody can have been heard yet"
    await asyncio.gather(*(judge.sweep(clock.now + LIFETIME, 0.0) for judge in judges))
    await agree(one, two)
    [row] = rows.listed(two.fold)
    assert row.message == "Render film: queued (no living process performs render; it waits for one)"
    assert one.revision.sequence == before + 1
    performer = Presence(one, judges=True, performs=("render",), monotonic=clock)
    performer.leases.look(clock.now)
    await performer.sweep(clock.now + LIFETIME, 0.0)
    await eventually(lambda: rows.listed(two.fold)[0].message == "Render film: queued")


async def test_which_kinds_a_process_performs_is_heard_with_its_lease(peers: Peers) -> None:
    one, two = await peers.tracker("one"), await peers.tracker("two")
    clock = Clock()
    watching = judging(two, clock)
    async with watching.running(), Presence(one, judges=False, performs=("render",)).running():
        watching.leases.look(clock.now)
        await eventually(lambda: watching.leases.performs.get("one") == ("render",))
    assert watching.leases.performed(clock.now + LIFETIME) == frozenset()


async def test_whoever_was_silent_for_long_is_forgotten(peers: Peers) -> None:
    clock = Clock()
    async with judging(await peers.tracker("one"), clock, judges=False).running() as presence:
        await eventually(lambda: presence.leases.looked == clock.now)
        presence.leases.renew("gone", clock.now - MEMORY)
        presence.leases.renew("here", clock.now)
        await eventually(lambda: "gone" not in presence.leases.heard)
        assert "here" in presence.leases.heard


async def test_a_judge_that_performs_a_kind_says_that_it_is_taken_over(peers: Peers) -> None:
    one = await peers.tracker("one")
    async with peers.passing("owner") as owner:
        record, at = await owner.open("render", "film", cause="submit", claim=True)
    await one.reached(at)
    clock = Clock()
    judge = Presence(one, judges=True, performs=("render",), monotonic=clock)
    judge.leases.leave("owner")
    await judge.sweep(clock.now, 0.0)
    await eventually(lambda: (held := one.fold.record(record.id)) is not None and held.state == "stalled")
    assert one.fold.record(record.id).note == "its owner owner does not answer; another process takes it over"  # type: ignore[union-attr]


async def test_what_is_queued_for_the_living_gets_a_sign_of_life_once_though_two_judge(peers: Peers) -> None:
    one, two = await peers.tracker("one"), await peers.tracker("two")
    clock = Clock()
    judges = [judging(each, clock) for each in (one, two)]
    for judge in judges:
        judge.leases.look(clock.now)
        judge.leases.renew("n/1", clock.now)
    node = NodeRecord(name="n", kind="worker", process="n/1")
    await one.say(subjects.node("n"), msgspec.json.encode(node))
    _, revision = await one.open("staging", "m", "n", cause="asked")
    await asyncio.gather(one.reached(revision), two.reached(revision))
    queued_at = one.fold.slots[ID].time
    clock.now += LIFETIME
    for judge in judges:
        judge.leases.renew("n/1", clock.now)
        await judge.sweep(clock.now, queued_at + turns.SILENCE - 0.1)
    assert one.revision == revision, "it has not been silent for long"
    await asyncio.gather(*(judge.sweep(clock.now, queued_at + turns.SILENCE) for judge in judges))
    await one.until(lambda: one.revision != revision)
    await agree(one, two)
    assert one.revision.sequence == revision.sequence + 1
    [row] = rows.listed(two.fold)
    assert (row.state, row.message) == ("queued", "Staging m on n: queued (waits for n; the next)")
