from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, nullcontext
from typing import NamedTuple

import msgspec
import pytest

from stagecast import feed, subjects
from stagecast import tracker as tracker_module
from stagecast.bus import Anew, CaughtUp
from stagecast.bus.memory import MemoryBus
from stagecast.errors import ReplicaBehind
from stagecast.event_stream import EventParser, StreamEvent
from stagecast.feed import Feed
from stagecast.frontend import events, gate
from stagecast.messages import Horizon
from stagecast.revision import Revision, parse
from stagecast.tracker import Tracker
from stagecast.view import View
from tests.alone import find_again, lose
from tests.peers import Peers, a_record


class Listener:
    """A client of one replica's stream."""

    def __init__(self, frames: AsyncGenerator[bytes, None]) -> None:
        self._frames = frames
        self._parser = EventParser()
        self._events: list[StreamEvent] = []

    async def frame(self) -> bytes:
        async with asyncio.timeout(60):
            return await anext(self._frames)

    async def event(self) -> StreamEvent:
        while not self._events:
            self._events += self._parser.feed(await self.frame())
        return self._events.pop(0)

    async def greeting(self) -> None:
        assert (await self.frame()) == b": replica replica-1\nretry: 500\n\n"


class Told(NamedTuple):
    """A frame in short: its name, the ids of its rows with their states, its own id."""

    name: str
    rows: dict[str, str]
    id: str


def told(event: StreamEvent) -> Told:
    data = json.loads(event.data)
    rows = data["operations"] if event.event == "snapshot" else [data]
    return Told(event.event, {row["id"]: row["state"] for row in rows}, event.id)


@pytest.fixture
def bus() -> MemoryBus:
    return MemoryBus()


@pytest.fixture
async def peers(bus: MemoryBus) -> AsyncIterator[Peers]:
    async with AsyncExitStack() as stack:
        yield Peers(stack, lambda _: nullcontext(bus))


@pytest.fixture
async def tracker(peers: Peers) -> Tracker:
    return await peers.tracker("one")


def listen(tracker: Tracker, after: Revision | None = None) -> Listener:
    return Listener(events.stream(Feed(tracker, View(tracker)), "replica-1", after))


async def write(tracker: Tracker, node: str, expected: int = 0, **changes: object) -> Revision:
    revision = await tracker.write(a_record(node=node, **changes), expected)
    await tracker.reached(revision)
    return revision


async def test_it_begins_with_who_speaks_and_a_snapshot_and_goes_on_with_each_change(tracker: Tracker) -> None:
    first = await write(tracker, "a")
    stream = listen(tracker)
    await stream.greeting()
    snapshot = await stream.event()
    assert told(snapshot) == ("snapshot", {"staging:m@a": "running"}, str(first))
    assert snapshot.data.encode() + b"\n" == View(tracker).body
    second = await write(tracker, "b")
    assert told(await stream.event()) == ("operation", {"staging:m@b": "running"}, str(second))
    third = await write(tracker, "a", first.sequence, seq=1, state="succeeded")
    assert told(await stream.event()) == ("operation", {"staging:m@a": "succeeded"}, str(third)), "ends are told"


async def test_changes_that_came_together_are_told_in_order(tracker: Tracker) -> None:
    stream = listen(tracker)
    await stream.greeting()
    await stream.event()
    revisions = [await write(tracker, node) for node in "cab"]
    found = [told(await stream.event()) for _ in revisions]
    assert [each.id for each in found] == [str(revision) for revision in revisions]
    assert [list(each.rows) for each in found] == [["staging:m@c"], ["staging:m@a"], ["staging:m@b"]]


async def test_resumed_after_an_id_only_what_changed_is_told_on_any_replica(peers: Peers, tracker: Tracker) -> None:
    await write(tracker, "a")
    seen = await write(tracker, "b")
    await write(tracker, "c")
    other = await peers.tracker("two")
    after = await events.begin(other, str(seen))
    assert after == seen
    stream = listen(other, after)
    await stream.greeting()
    assert told(await stream.event()).rows == {"staging:m@c": "running"}
    last = await write(tracker, "d")
    assert told(await stream.event()) == ("operation", {"staging:m@d": "running"}, str(last))


async def test_resumed_before_what_is_forgotten_it_begins_with_a_snapshot_and_after_it_goes_on(
    tracker: Tracker,
) -> None:
    """Else nobody would tell the client how what it shows as running has ended."""
    seen = await write(tracker, "a")
    ended = await write(tracker, "a", expected=seen.sequence, state="succeeded", seq=1)
    await write(tracker, "b")
    horizon = msgspec.json.encode(Horizon(number=1, through=ended.sequence))
    await tracker.reached(await tracker.say(subjects.HORIZON, horizon))
    for after, first in ((seen, "snapshot"), (ended, "operation")):
        stream = listen(tracker, await events.begin(tracker, str(after)))
        await stream.greeting()
        event = told(await stream.event())
        assert (event.name, event.rows) == (first, {"staging:m@b": "running"})


async def test_a_client_that_was_slow_for_so_long_gets_a_snapshot_too(tracker: Tracker) -> None:
    seen = await write(tracker, "a")
    stream = listen(tracker)
    await stream.greeting()
    assert told(await stream.event()).rows == {"staging:m@a": "running"}
    ended = await write(tracker, "a", expected=seen.sequence, state="succeeded", seq=1)
    horizon = msgspec.json.encode(Horizon(number=1, through=ended.sequence))
    await tracker.reached(await tracker.say(subjects.HORIZON, horizon))
    event = told(await stream.event())
    assert (event.name, event.rows) == ("snapshot", {})


async def test_resumed_where_nothing_changed_nothing_is_told_but_a_beat(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "BEAT", 0.01)
    seen = await write(tracker, "a")
    stream = listen(tracker, await events.begin(tracker, str(seen)))
    await stream.greeting()
    assert [await stream.frame() for _ in range(3)] == [b": beat\n\n"] * 3
    await write(tracker, "b")
    while (frame := await stream.frame()) == b": beat\n\n":
        pass
    assert frame.startswith(b"id: ")


async def test_a_message_that_changes_no_row_sends_nothing(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "BEAT", 0.01)
    stream = listen(tracker)
    await stream.greeting()
    await stream.event()
    await tracker.reached(await tracker.say("stagecast.node.n", b"nonsense"))
    assert await stream.frame() == b": beat\n\n"


@pytest.mark.parametrize("given", ["", "garbage", "another-5", "a-b-"])
async def test_an_id_that_is_not_ours_begins_anew(tracker: Tracker, given: str) -> None:
    await write(tracker, "a")
    assert await events.begin(tracker, given) is None


async def test_an_id_from_ahead_is_waited_for_and_then_refused(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = tracker.revision._replace(sequence=tracker.revision.sequence + 1)
    waiting = asyncio.create_task(events.begin(tracker, str(ahead)))
    await write(tracker, "a")
    assert await waiting == ahead
    monkeypatch.setattr(gate, "MIN_REVISION_WAIT", 0.01)
    with pytest.raises(ReplicaBehind):
        await events.begin(tracker, str(ahead._replace(sequence=10**6)))


async def test_a_log_that_came_back_as_another_one_is_told_by_a_snapshot(
    tracker: Tracker, bus: MemoryBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker_module, "RESTATE_GRACE", 0.0)
    await write(tracker, "a")
    stream = listen(tracker)
    await stream.greeting()
    await stream.event()
    bus.log._last.clear()
    for follower in bus.log._followers:
        follower.put_nowait(Anew("another"))
        follower.put_nowait(CaughtUp(0))
    while (event := await stream.event()).event != "snapshot" or not event.id.startswith("another-"):
        pass
    revision = parse(event.id)
    assert revision is not None
    assert revision.identity == "another"


async def test_a_log_that_is_lost_and_found_is_told_by_snapshots(tracker: Tracker, bus: MemoryBus) -> None:
    await write(tracker, "a")
    stream = listen(tracker)
    await stream.greeting()
    first = await stream.event()
    lose(bus)
    lost = await stream.event()
    find_again(bus)
    found = await stream.event()
    assert [told(each) for each in (first, lost, found)] == [told(first)] * 3
    assert [json.loads(each.data)["degraded"] for each in (first, lost, found)] == [False, True, False]


async def test_it_ends_when_its_replica_does(tracker: Tracker) -> None:
    stream = listen(tracker)
    await stream.greeting()
    await stream.event()
    ending = asyncio.create_task(rest(stream))
    tracker.close()
    assert await ending == []


async def rest(stream: Listener) -> list[bytes]:
    return [frame async for frame in stream._frames]
