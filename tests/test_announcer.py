from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from stagecast import subjects, tracker
from stagecast.announcer import Announcer
from stagecast.bus import Anew, CaughtUp
from stagecast.bus.memory import MemoryBus, MemoryLog
from stagecast.errors import BusUnavailable
from stagecast.messages import NodeRecord
from stagecast.tracker import Tracker
from tests.conftest import eventually

SUBJECT = subjects.node("n")


class UnsureLog(MemoryLog):
    """Refuses as often as told, then writes."""

    refusals = 0

    async def append(self, subject: str, payload: bytes, *, expected: int | None = None) -> int:
        if self.refusals:
            self.refusals -= 1
            raise BusUnavailable("just now")
        return await super().append(subject, payload, expected=expected)


@pytest.fixture
def log() -> UnsureLog:
    return UnsureLog()


@pytest.fixture
async def following(log: UnsureLog) -> AsyncIterator[Tracker]:
    bus = MemoryBus()
    bus.log = log
    async with Tracker(bus, "p").running() as tracker:
        await tracker.caught_up.wait()
        yield tracker


@pytest.fixture
async def announcer(following: Tracker) -> AsyncIterator[Announcer]:
    async with Announcer(following).running() as announcer:
        yield announcer


def a_node(**changes: object) -> NodeRecord:
    return NodeRecord(name="n", kind="worker", process="p", **changes)  # type: ignore[arg-type]


async def standing(log: MemoryLog, subject: str = SUBJECT) -> NodeRecord:
    entry = await log.last(subject)
    assert entry is not None
    return msgspec.json.decode(entry.payload, type=NodeRecord)


async def test_what_was_said_stands_in_the_log_once_it_is_settled(log: UnsureLog, announcer: Announcer) -> None:
    announcer.say(SUBJECT, a_node())
    await announcer.settled()
    assert await standing(log) == a_node()


async def test_the_same_words_are_written_once(log: UnsureLog, announcer: Announcer) -> None:
    announcer.say(SUBJECT, a_node())
    await announcer.settled()
    announcer.say(SUBJECT, a_node())
    await announcer.settled()
    announcer.say(SUBJECT, a_node(draining=True))
    await announcer.settled()
    assert (await standing(log)).draining
    assert log._sequence == 2


async def test_of_what_is_said_at_once_the_last_word_counts(log: UnsureLog, announcer: Announcer) -> None:
    for free in range(100):
        announcer.say(SUBJECT, a_node(disk_free=free))
    await announcer.settled()
    assert (await standing(log)).disk_free == 99
    assert log._sequence == 1


async def test_a_log_that_cannot_be_reached_gets_it_later(
    log: UnsureLog, announcer: Announcer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stagecast.announcer.RETRY_INTERVAL", 0.001)
    log.refusals = 3
    announcer.say(SUBJECT, a_node())
    announcer.say(subjects.node("other"), a_node(draining=True))
    async with asyncio.timeout(60):
        await announcer.settled()
    assert await standing(log) == a_node()
    assert (await standing(log, subjects.node("other"))).draining


@pytest.mark.parametrize("is_another", [True, False])
async def test_a_log_that_came_back_without_our_words_is_told_everything_again(
    log: UnsureLog, following: Tracker, announcer: Announcer, monkeypatch: pytest.MonkeyPatch, is_another: bool
) -> None:
    """Another stream, or the same after its server lost the end of it with the power."""
    monkeypatch.setattr(tracker, "RESTATE_GRACE", 0.0)
    announcer.say(SUBJECT, a_node())
    await announcer.settled()
    await eventually(lambda: following.revision.sequence == 1)
    identity = "another" if is_another else following.identity
    log._last.clear()
    for follower in log._followers:
        follower.put_nowait(Anew(identity))
        follower.put_nowait(CaughtUp(0))
    await eventually(lambda: log._last)
    await eventually(lambda: following.revision.identity == identity and "n" in following.fold.nodes)
    await announcer.settled()
    assert await standing(log) == a_node()


async def test_the_last_word_of_a_block_is_written_still(log: UnsureLog, following: Tracker) -> None:
    async with Announcer(following).running() as announcer:
        announcer.say(SUBJECT, a_node())
        await announcer.settled()
        announcer.say(SUBJECT, a_node(left=True))
    assert (await standing(log)).left


async def test_a_log_that_is_away_does_not_hold_up_the_end(
    log: UnsureLog, following: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stagecast.announcer.LAST_WORDS", 0.01)
    log.refusals = 1_000_000
    async with asyncio.timeout(60), Announcer(following).running() as announcer:
        announcer.say(SUBJECT, a_node())
    assert log._sequence == 0


async def test_what_was_never_said_is_not_settled(announcer: Announcer) -> None:
    waiting = asyncio.create_task(announcer.settled())
    announcer.say(SUBJECT, a_node())
    assert not waiting.done()
    await waiting
