"""WIRE sections 1 and 2, with a plain NATS client that knows nothing of us in the other role."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from stagecast import mending, rows, subjects
from stagecast.commands import Commands
from stagecast.fold import FOREIGN_LIFETIME
from stagecast.operations import succeeding
from stagecast.presence import Presence
from stagecast.quantities import parse_time
from stagecast.tracker import Tracker
from tests.conftest import NatsServer, eventually
from tests.peers import Peers, agree, gathered, listed

STATUS = {
    "model_id": "m", "node_name": "n", "file_name": "f.gguf", "bytes_sent": 5, "total_bytes": 10, "progress": 50.0,
    "speed": "1 MB/s", "file_index": 1, "total_files": 2, "message": "moving", "started_at": "2026-06-01T10:00:00Z",
}  # fmt: skip


@pytest.fixture(params=["nats"])
async def peers(request: pytest.FixtureRequest) -> AsyncIterator[Peers]:
    async with gathered(request) as found:
        yield found


class Plain:
    """A client of core NATS that keeps what it hears."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.heard: list[Msg] = []

    async def listen(self, subject: str) -> None:
        async def hear(message: Msg) -> None:
            self.heard.append(message)

        await self.client.subscribe(subject, cb=hear)
        await self.client.flush()

    async def say(self, subject: str, event: object) -> None:
        await self.client.publish(subject, event if isinstance(event, bytes) else json.dumps(event).encode())
        await self.client.flush()

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(message.data) for message in self.heard]


@pytest.fixture
async def plain(nats_server: NatsServer) -> AsyncIterator[Plain]:
    client = await nats.connect(nats_server.url)
    yield Plain(client)
    await client.close()


def foreign(model: str = "m", *, done: bool = False, **status: object) -> dict[str, object]:
    return {"model_id": model, "status": STATUS | {"model_id": model} | status, "done": done}


def shown(tracker: Tracker) -> list[str]:
    return [row.id for row in rows.listed(tracker.fold)]


async def test_a_follower_hears_start_ticks_file_completes_and_done(peers: Peers, plain: Plain) -> None:
    await plain.listen("staging.*.progress")
    owner = await peers.tracker("owner", interval=0.05)
    record, _ = await owner.open("staging", "org/m.v1", "n", cause="asked", bytes_total=100)
    async with owner.own(record) as ownership:
        assert ownership is not None
        await ownership.change(phase="transferring", total_files=2)
        for index in (1, 2):
            ownership.enter(index, f"file{index}")
            for _ in range(5):
                count = len(plain.heard)
                ownership.advance(10)
                await eventually(lambda count=count: len(plain.heard) > count)
            await ownership.change()
    await eventually(lambda: plain.events[-1]["done"])
    events = plain.events
    assert len({message.subject for message in plain.heard}) == 1
    assert plain.heard[0].subject.startswith("staging.org/m-v1-")
    for event in events:
        assert event["model_id"] == event["status"]["model_id"] == "org/m.v1"
        assert isinstance(event["done"], bool)
        status = event["status"]
        assert status.keys() == STATUS.keys()
        assert {name: type(value) for name, value in status.items()} == {
            name: type(value) for name, value in STATUS.items()
        }
        assert 0.0 <= status["progress"] <= 100.0
        assert parse_time(status["started_at"]) > 1.7e9
    assert [event["done"] for event in events].count(True) == 1
    sent = [event["status"]["bytes_sent"] for event in events]
    assert sent == sorted(sent)
    assert sent[-1] == 100
    assert {1, 2} <= {event["status"]["file_index"] for event in events}


async def test_a_peer_shows_what_it_did_not_originate_until_the_owner_completes(peers: Peers, plain: Plain) -> None:
    owner, peer = await peers.tracker("owner"), await peers.tracker("peer")
    before = peer.revision.sequence
    await plain.listen("staging.*.progress")
    record, _ = await owner.open("staging", "m", "n", cause="asked", bytes_total=10)
    async with owner.own(record) as ownership:
        assert ownership is not None
        ownership.advance(5)
        await eventually(lambda: (found := peer.fold.record("staging:m@n")) is not None and found.bytes_done == 5)
        assert shown(peer) == ["staging:m@n"]
    await eventually(lambda: shown(peer) == [])
    await eventually(lambda: plain.events[-1]["done"])
    heard = len(plain.heard)
    await agree(owner, peer)
    assert len(plain.heard) == heard == peer.revision.sequence - before  # nobody but the owner has published


async def test_two_nodes_staging_one_model_are_two_rows_and_end_apart(peers: Peers) -> None:
    owner, peer = await peers.tracker("owner"), await peers.tracker("peer")
    one, _ = await owner.open("staging", "m", "one", cause="asked")
    two, _ = await owner.open("staging", "m", "two", cause="asked")
    async with owner.own(one):
        async with owner.own(two):
            await eventually(lambda: shown(peer) == ["staging:m@one", "staging:m@two"])
        await eventually(lambda: shown(peer) == ["staging:m@one"])
    await eventually(lambda: shown(peer) == [])


@pytest.mark.parametrize("where", ["a foreign subject", "our own subject"])
@pytest.mark.parametrize("what", ["stray", "done", "older", "echo", "malformed"])
async def test_what_others_say_neither_changes_nor_removes_what_one_of_us_owns(
    peers: Peers, plain: Plain, where: str, what: str
) -> None:
    owner, peer = await peers.tracker("owner"), await peers.tracker("peer")
    await plain.listen("staging.*.progress")
    record, _ = await owner.open("staging", "m", "n", cause="asked", bytes_total=10)
    own = subjects.operation(record)
    subject = own if where == "our own subject" else "staging.m.progress"
    async with owner.own(record) as ownership:
        assert ownership is not None
        await ownership.change(phase="transferring", bytes_done=4)
        await eventually(lambda: peer.fold.record("staging:m@n") == ownership.record)
        await agree(owner, peer)
        await eventually(lambda: plain.events and plain.events[-1]["status"]["bytes_sent"] == 4)
        older = next(event for event in plain.events if event["status"]["bytes_sent"] == 0)
        before, sequence = listed(peer), peer.revision.sequence
        await plain.say(
            subject,
            {
                "stray": foreign(bytes_sent=9),
                "done": foreign(done=True),
                "older": older,
                "echo": plain.events[-1],
                "malformed": b"{",
            }[what],
        )
        await eventually(lambda: peer.revision.sequence > sequence and owner.revision.sequence > sequence)
        await agree(owner, peer)
        assert listed(peer) == before

        async def is_mended() -> bool:
            late = await peers.tracker(f"late{peer.revision.sequence}")
            await agree(owner, late)
            return listed(late) == before

        async with asyncio.timeout(60):
            while not await is_mended():
                await peer.changed(peer.revision, 0.05)
        ownership.advance(3)
        await eventually(lambda: (found := peer.fold.record("staging:m@n")) is not None and found.bytes_done == 7)
        assert ownership.stopped_by is None
    await eventually(lambda: shown(peer) == shown(owner) == [])
    found = peer.fold.record("staging:m@n")
    assert found is not None
    assert (found.state, found.attempt, found.owner) == ("succeeded", 1, "owner")


async def test_an_old_tick_does_not_revive_what_has_ended(peers: Peers, plain: Plain) -> None:
    owner, peer = await peers.tracker("owner"), await peers.tracker("peer")
    await plain.listen("staging.*.progress")
    record, _ = await owner.open("staging", "m", "n", cause="asked")
    async with owner.own(record) as ownership:
        assert ownership is not None
        await ownership.change(phase="transferring")
    await eventually(lambda: plain.events[-1]["done"])
    tick, sequence = plain.events[-2], peer.revision.sequence
    await plain.say(subjects.operation(record), tick)
    await eventually(lambda: peer.revision.sequence >= sequence + 2)
    await agree(owner, peer)
    assert shown(peer) == []
    late = await peers.tracker("late")
    await agree(owner, late)


async def test_a_foreign_event_is_a_row_on_every_tracker_and_its_done_removes_it(peers: Peers, plain: Plain) -> None:
    one, two = await peers.tracker("one"), await peers.tracker("two")
    await plain.say("staging.m.progress", foreign())
    await eventually(lambda: shown(one) == shown(two) == ["staging:m"])
    await agree(one, two)
    late = await peers.tracker("late")
    await agree(one, two, late)
    (row,) = json.loads(listed(late))
    assert row["currentBytes"] == 5
    assert row["totalBytes"] == 10
    assert row["progress"] == 50
    assert row["fileName"] == "f.gguf"
    assert row["nodeName"] == "n"
    assert row["message"] == "moving"
    assert row["startedAt"] == "2026-06-01T10:00:00Z"
    await plain.say("staging.m.progress", {"model_id": "m", "done": True})
    await eventually(lambda: shown(one) == shown(two) == shown(late) == [])


async def test_a_foreign_row_expires_a_minute_after_its_last_event_for_all_by_one_done(
    peers: Peers, plain: Plain
) -> None:
    one, two = await peers.tracker("one"), await peers.tracker("two")
    before = one.revision.sequence
    judges = [Presence(each, judges=True, clock=lambda: 0.0) for each in (one, two)]
    await plain.listen("staging.*.progress")
    await plain.say("staging.m.progress", foreign())
    await eventually(lambda: shown(one) == shown(two) == ["staging:m"])
    last = one.fold.mirrors["staging:m"].time
    for judge in judges:
        await judge.sweep(0.0, last + FOREIGN_LIFETIME - 0.01)
    assert one.revision.sequence == before + 1
    await asyncio.gather(*(judge.sweep(0.0, last + FOREIGN_LIFETIME) for judge in judges))
    await eventually(lambda: shown(one) == shown(two) == [])
    for judge in judges:
        await judge.sweep(0.0, last + 10 * FOREIGN_LIFETIME)
    assert one.revision.sequence == two.revision.sequence == before + 2
    await eventually(lambda: len(plain.heard) >= 2)
    assert {(event["model_id"], event["done"]) for event in plain.events[1:]} == {("m", True)}
    await plain.say("staging.m.progress", foreign(bytes_sent=6))
    await eventually(lambda: shown(one) == shown(two) == ["staging:m"])


async def test_malformed_events_are_dropped_and_counted(peers: Peers, plain: Plain) -> None:
    tracker = await peers.tracker("one")
    bad: list[object] = [b"nonsense", [], {"done": True}, foreign(bytes_sent="many"), {"model_id": 5}]
    for count, event in enumerate(bad, 1):  # one by one: the log keeps only the last of what comes at once
        await plain.say("staging.m.progress", event)
        await eventually(lambda count=count: tracker.malformed == count)
    assert shown(tracker) == []
    await plain.say("staging.m.progress", foreign(newer={"deep": True}))
    await eventually(lambda: shown(tracker) == ["staging:m"])
    assert tracker.malformed == len(bad)


async def test_an_installation_is_broadcast_and_cancelled_as_the_gallery_does(peers: Peers, plain: Plain) -> None:
    owner, peer = await peers.tracker("owner"), await peers.tracker("peer")
    await plain.listen("gallery.*.progress")
    record, _ = await owner.open("installation", "m", cause="asked", bytes_total=10, claim=True)

    async def install() -> None:
        async with owner.own(record):
            await asyncio.Event().wait()

    async with Commands(owner).running(), Commands(peer).running():
        work = asyncio.create_task(install())
        await eventually(lambda: owner.owned)
        await eventually(lambda: shown(peer) == ["installation:m"])
        await plain.say("gallery.any.cancel", b"nonsense")
        await plain.say("gallery.any.cancel", {"id": "another"})
        await plain.say("gallery.any.cancel", {"id": record.job})
        await work
    await eventually(lambda: shown(peer) == [])
    await eventually(lambda: plain.events[-1]["status"]["processed"])
    last = plain.events[-1]
    assert last["job_id"] == record.job
    assert (last["status"]["cancelled"], last["status"]["gallery_element_name"]) == (True, "m")


async def test_a_foreign_installation_is_a_row_until_it_is_processed(peers: Peers, plain: Plain) -> None:
    one, two = await peers.tracker("one"), await peers.tracker("two")
    status = {
        "deletion": False, "file_name": "f", "processed": False, "message": "m", "progress": 10.0,
        "gallery_element_name": "m", "cancelled": False, "cancellable": True,
    }  # fmt: skip
    await plain.say("gallery.x.progress", {"job_id": "j", "status": status})
    await eventually(lambda: shown(one) == shown(two) == ["installation:m"])
    await plain.say("gallery.x.progress", {"job_id": "j", "status": status | {"processed": True}})
    await eventually(lambda: shown(one) == shown(two) == [])
    await agree(one, two)


@pytest.mark.parametrize("stray", [foreign("a-b"), b"not json", {"no": "model"}])
async def test_a_foreign_row_survives_what_is_written_over_it_for_late_ones_too(
    peers: Peers, plain: Plain, stray: object
) -> None:
    one = await peers.tracker("one")
    await plain.say("staging.a-b.progress", foreign("a.b"))
    await eventually(lambda: shown(one) == ["staging:a.b"])
    await plain.say("staging.a-b.progress", stray)
    await eventually(lambda: one.fold.mirrors["staging:a.b"].sequence > 2)
    late = await peers.tracker("late")
    await agree(one, late)
    assert "staging:a.b" in shown(late)
    judge = Presence(one, judges=True, clock=lambda: 0.0)
    await judge.sweep(0.0, one.server_clock.now() + FOREIGN_LIFETIME)
    await eventually(lambda: shown(one) == shown(late) == [])


async def test_the_events_of_a_staging_always_say_which_of_how_many_files(peers: Peers, plain: Plain) -> None:
    await plain.listen("staging.*.progress")
    tracker = await peers.tracker("one")
    await tracker.open("staging", "m", "n", cause="asked", total_files=3)
    await eventually(lambda: plain.events)
    assert (plain.events[0]["status"]["file_index"], plain.events[0]["status"]["total_files"]) == (1, 3)


async def test_what_has_ended_beside_another_of_the_same_token_is_not_revived_for_late_ones(
    peers: Peers, plain: Plain
) -> None:
    one = await peers.tracker("one")
    await plain.say("staging.a-b.progress", foreign("a.b"))
    await eventually(lambda: shown(one) == ["staging:a.b"])
    await plain.say("staging.a-b.progress", foreign("a b"))
    # Each that was written over gets a subject of its own, on which nobody would ever say that it is done.
    await eventually(lambda: one.fold.mirrors["staging:a.b"].subject != "staging.a-b.progress")
    await plain.say("staging.a-b.progress", foreign("a.b", done=True))
    await eventually(lambda: shown(one) == ["staging:a b"])
    await plain.say("staging.a-b.progress", foreign("a b", done=True))
    await eventually(lambda: shown(one) == [])
    home = subjects.mirror("staging", "staging:a.b")

    async def is_done_there() -> bool:
        entry = await one.bus.log.last(home)
        return entry is not None and json.loads(entry.payload)["done"]

    async with asyncio.timeout(60):
        while not await is_done_there():
            await one.changed(one.revision, 0.05)
    late = await peers.tracker("late")
    await agree(one, late)
    assert shown(late) == []


@pytest.mark.parametrize("stray", [foreign("m"), b"{"])
async def test_who_starts_while_our_word_is_written_over_waits_for_it(
    peers: Peers, plain: Plain, monkeypatch: pytest.MonkeyPatch, stray: object
) -> None:
    monkeypatch.setattr(mending, "MEND_DELAY", (0.2, 0.2))
    monkeypatch.setattr(mending, "MEND_PATIENCE", 10.0)
    one = await peers.tracker("one")
    record, at = await one.open("staging", "m", "n", cause="asked", claim=True)
    await one.reached(await one.write(succeeding(record, 1.0, owner="gone"), at.sequence))
    before = listed(one)
    sequence = one.revision.sequence
    await plain.say(subjects.operation(record), stray)
    late = await peers.tracker("late")
    assert late.fold.record(record.id) is not None, "it did not call itself ready before"
    assert late.revision.sequence == sequence + 2
    await agree(one, late)
    assert listed(late) == before


async def test_it_does_not_wait_for_long_where_nobody_can_put_it_back(
    peers: Peers, plain: Plain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mending, "MEND_PATIENCE", 0.05)
    await peers.bus("makes the stream")
    await plain.say("staging.m-0123456789.progress", foreign("m"))
    late = await peers.tracker("late")
    assert shown(late) == ["staging:m"]
