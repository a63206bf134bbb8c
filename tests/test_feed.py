from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, nullcontext
from typing import Any
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagecast import feed as feed_module
from stagecast import rows
from stagecast.bus.memory import MemoryBus
from stagecast.event_stream import EventParser
from stagecast.feed import Feed
from stagecast.revision import Revision
from stagecast.tracker import Tracker
from stagecast.view import View
from tests.peers import Peers, a_record
from tests.test_fold import SCRIPTS, Scene
from tests.test_view import Stand

LIMITS = st.sampled_from([0, 2000, feed_module.KEPT])


class Client:
    """What somebody shows who hears the stream: the rows of the last snapshot, and each word since."""

    def __init__(self) -> None:
        self.shown: dict[str, Any] = {}
        self.position = ""
        self._parser = EventParser()

    def hear(self, frames: bytes) -> None:
        for event in self._parser.feed(frames):
            self.position = event.id
            if event.event == "snapshot":
                self.shown = {row["id"]: row for row in json.loads(event.data)["operations"]}
                continue
            row = json.loads(event.data)
            self.shown[row["id"]] = row
            if row["state"] in {"succeeded", "cancelled"} or row.get("dismissed"):
                del self.shown[row["id"]]


def feed_of(stand: Stand) -> Feed:
    with patch("asyncio.get_running_loop"):
        return Feed(stand, View(stand))  # type: ignore[arg-type]


def frames(fold_rows: list[tuple[int, rows.Row]], identity: str) -> bytes:
    return b"".join(
        b"id: %s-%d\nevent: operation\ndata: %s\n\n" % (identity.encode(), at, msgspec.json.encode(row))
        for at, row in fold_rows
    )


@settings(max_examples=200)
@given(SCRIPTS, LIMITS)
def test_wherever_a_client_stands_it_is_told_what_changed_since(script: list[tuple[str, str, int]], kept: int) -> None:
    scene = Scene()
    feed = feed_of(Stand(scene.full))
    with patch.object(feed_module, "KEPT", kept):
        for action, node, size in script:
            scene.act(action, node, size)
            for after in (*range(scene.full.revision.sequence + 1), 0):
                assert feed.since(after) == frames(rows.changed(scene.full, after), "s")
            assert feed._size <= kept


@settings(max_examples=200)
@given(SCRIPTS, st.lists(st.booleans(), max_size=25))
def test_a_slow_client_ends_with_the_picture_that_everybody_has(
    script: list[tuple[str, str, int]], looks: list[bool]
) -> None:
    scene = Scene()
    feed = feed_of(Stand(scene.full))
    slow, quick = Client(), Client()
    at = {slow: 0, quick: 0}
    for client in at:
        client.hear(feed.snapshot())
    for number, (action, node, size) in enumerate(script):
        scene.act(action, node, size)
        for client in (quick, slow) if number < len(looks) and looks[number] else (quick,):
            client.hear(feed.since(at[client]))
            at[client] = scene.full.revision.sequence
    slow.hear(feed.since(at[slow]))
    listed = {row["id"]: row for row in json.loads(msgspec.json.encode(rows.listed(scene.full)))}
    assert slow.shown == quick.shown == listed


@pytest.fixture
async def tracker() -> AsyncIterator[Tracker]:
    bus = MemoryBus()
    async with AsyncExitStack() as stack:
        yield await Peers(stack, lambda _: nullcontext(bus)).tracker("one")


async def test_all_clients_at_one_place_get_the_very_same_bytes(tracker: Tracker) -> None:
    feed = Feed(tracker, View(tracker))
    with feed.listening(), feed.listening():
        place = feed.place
        waiting = [asyncio.create_task(feed.moved(place)) for _ in range(3)]
        await asyncio.sleep(0)
        await tracker.reached(await tracker.write(a_record(), 0))
        assert await asyncio.gather(*waiting) == [True] * 3
        assert feed.since(place[0].sequence) is feed.since(place[0].sequence) != b""
        assert feed.snapshot() is feed.snapshot()


async def test_without_clients_it_hears_nothing_and_keeps_nothing(tracker: Tracker) -> None:
    feed = Feed(tracker, View(tracker))
    with feed.listening():
        feed.snapshot()
        assert len(tracker._changes._listeners["any"]) == 1
    assert tracker._changes._listeners["any"] == []
    assert (feed._snapshot, feed._frames, feed._size) == (b"", {}, 0)


async def test_a_client_that_leaves_is_not_waited_for(tracker: Tracker) -> None:
    feed = Feed(tracker, View(tracker))
    with feed.listening():
        waiting = asyncio.create_task(feed.moved(feed.place))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert feed._waiters == {}


async def test_a_later_place_is_told_apart_by_the_stream_too(tracker: Tracker) -> None:
    feed = Feed(tracker, View(tracker))
    elsewhere = (Revision("another", tracker.revision.sequence), False)
    assert await feed.moved(elsewhere)
    assert await feed.moved((tracker.revision, True))
