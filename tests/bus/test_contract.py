"""The contract of the bus: one suite for the one in memory, the one in a file and the one on a real nats-server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path

import pytest

from stagecast.bus import Anew, Bus, CaughtUp, Heard, sqlite
from stagecast.bus.memory import MemoryBus
from stagecast.bus.nats import connect
from stagecast.errors import AppendConflict, BusUnavailable, NobodyListens
from stagecast.messages import Entry
from tests.conftest import NatsServer

ONE, TWO = "staging.one.progress", "staging.two.progress"


@pytest.fixture(params=["memory", "sqlite", "nats"])
async def bus(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bus]:
    if request.param == "memory":
        yield MemoryBus()
        return
    if request.param == "sqlite":
        async with sqlite.opened(tmp_path / "log") as alone:
            yield alone
        return
    server: NatsServer = request.getfixturevalue("nats_server")
    async with connect(server.url, "contract") as connected:
        yield connected


@asynccontextmanager
async def following(bus: Bus) -> AsyncIterator[asyncio.Queue[Heard]]:
    queue: asyncio.Queue[Heard] = asyncio.Queue()

    async def follow() -> None:
        async with aclosing(bus.log.follow()) as heard:
            async for each in heard:
                queue.put_nowait(each)

    task = asyncio.create_task(follow())
    try:
        yield queue
    finally:
        task.cancel()
        await asyncio.wait([task])


async def until_caught_up(queue: asyncio.Queue[Heard]) -> list[Heard]:
    found: list[Heard] = []
    async with asyncio.timeout(60):
        while not found or not isinstance(found[-1], CaughtUp):
            found.append(await queue.get())
    return found


async def test_an_empty_log_is_caught_up_at_once(bus: Bus) -> None:
    async with following(bus) as queue:
        first, second = await until_caught_up(queue)
    assert isinstance(first, Anew)
    assert first.identity
    assert isinstance(second, CaughtUp)
    assert second.sequence + 1 == await bus.log.append(ONE, b"1", expected=0)


async def test_a_late_follower_gets_the_last_word_of_each_subject_in_order(bus: Bus) -> None:
    for payload in (b"1", b"2", b"3"):
        await bus.log.append(ONE, payload)
    await bus.log.append(TWO, b"4")
    last = await bus.log.append(ONE, b"5")
    async with following(bus) as queue:
        heard = await until_caught_up(queue)
    entries = [each for each in heard if isinstance(each, Entry)]
    assert [(entry.subject, entry.payload) for entry in entries] == [(TWO, b"4"), (ONE, b"5")]
    assert heard[-1] == CaughtUp(last)


async def test_live_messages_follow_in_order_with_rising_sequences_and_times(bus: Bus) -> None:
    # Each on a subject of its own: of many on one, a follower may hear the last word only.
    async with following(bus) as queue:
        await until_caught_up(queue)
        sequences = [await bus.log.append(f"staging.{number}.progress", str(number).encode()) for number in range(200)]
        async with asyncio.timeout(60):
            heard = [await queue.get() for _ in range(200)]
    entries = [each for each in heard if isinstance(each, Entry)]
    assert [entry.payload for entry in entries] == [str(number).encode() for number in range(200)]
    assert [entry.sequence for entry in entries] == sequences == sorted(set(sequences))
    times = [entry.time for entry in entries]
    assert times == sorted(times)
    assert times[0] > 1.7e9


async def test_two_followers_hear_the_same(bus: Bus) -> None:
    async with AsyncExitStack() as stack:
        queues = [await stack.enter_async_context(following(bus)) for _ in range(2)]
        for queue in queues:
            await until_caught_up(queue)
        for number in range(50):
            await bus.log.append(f"staging.{number}.progress", str(number).encode())
        async with asyncio.timeout(60):
            first, second = [[await queue.get() for _ in range(50)] for queue in queues]
    assert first == second


async def test_compare_and_set_lets_exactly_one_win(bus: Bus) -> None:
    start = await bus.log.append(ONE, b"start", expected=0)
    results = await asyncio.gather(
        *(bus.log.append(ONE, str(number).encode(), expected=start) for number in range(10)), return_exceptions=True
    )
    winners = [result for result in results if isinstance(result, int)]
    losers = [result for result in results if isinstance(result, AppendConflict)]
    assert (len(winners), len(losers)) == (1, 9)
    last = await bus.log.last(ONE)
    assert last is not None
    assert last.sequence == winners[0]


async def test_compare_and_set_is_per_subject(bus: Bus) -> None:
    start = await bus.log.append(ONE, b"1", expected=0)
    await bus.log.append(TWO, b"2", expected=0)
    await bus.log.append(ONE, b"3", expected=start)
    with pytest.raises(AppendConflict):
        await bus.log.append(ONE, b"4", expected=0)


async def test_what_is_removed_is_not_there_for_a_compare_and_set_nor_for_who_follows_later(bus: Bus) -> None:
    one = await bus.log.append(ONE, b"1", expected=0)
    two = await bus.log.append(TWO, b"2", expected=0)
    await bus.log.remove(ONE, one)
    assert await bus.log.last(ONE) is None
    with pytest.raises(AppendConflict):
        await bus.log.append(ONE, b"3", expected=one)
    async with following(bus) as queue:
        heard = await until_caught_up(queue)
    assert [each.payload for each in heard if isinstance(each, Entry)] == [b"2"]
    assert heard[-1] == CaughtUp(two)
    assert await bus.log.append(ONE, b"4", expected=0) == two + 1


async def test_only_the_word_that_is_meant_is_removed(bus: Bus) -> None:
    one = await bus.log.append(ONE, b"1", expected=0)
    later = await bus.log.append(ONE, b"2", expected=one)
    await bus.log.remove(ONE, one)
    await bus.log.remove(TWO, later)
    standing = await bus.log.last(ONE)
    assert standing is not None
    assert (standing.sequence, standing.payload) == (later, b"2")
    await bus.log.remove(ONE, later)
    await bus.log.remove(ONE, later)
    assert await bus.log.last(ONE) is None


async def test_also_the_last_word_of_all_is_removed_and_numbers_go_on(bus: Bus) -> None:
    async with following(bus) as queue:
        await until_caught_up(queue)
        one = await bus.log.append(ONE, b"1", expected=0)
        await bus.log.remove(ONE, one)
        async with following(bus) as other:
            assert (await until_caught_up(other))[-1] == CaughtUp(one)
            assert await bus.log.append(TWO, b"2", expected=0) == one + 1
            async with asyncio.timeout(60):
                while not isinstance(heard := await queue.get(), Entry) or heard.payload != b"2":
                    pass
                assert await other.get() == heard


async def test_last_of_an_unknown_subject_is_none(bus: Bus) -> None:
    assert await bus.log.last("staging.nothing.progress") is None


async def test_history_is_a_log_of_its_own(bus: Bus) -> None:
    await bus.history.append("stagecast.history.a", b"1", expected=0)
    with pytest.raises(AppendConflict):
        await bus.history.append("stagecast.history.a", b"2", expected=0)
    assert await bus.log.last("stagecast.history.a") is None


async def test_published_messages_reach_wildcard_subscribers(bus: Bus) -> None:
    heard: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
    await bus.subscribe("gallery.*.cancel", lambda subject, payload: heard.put_nowait((subject, payload)))
    await bus.publish("gallery.x.cancel", b"hello")
    async with asyncio.timeout(60):
        assert await heard.get() == ("gallery.x.cancel", b"hello")


async def test_requests_are_answered(bus: Bus) -> None:
    async def answer(payload: bytes) -> bytes:
        return payload.upper()

    await bus.answer("stagecast.command.a", answer)
    assert await bus.request("stagecast.command.a", b"hello", 2.0) == b"HELLO"


async def test_a_request_that_nobody_answers_says_so_at_once(bus: Bus) -> None:
    with pytest.raises(NobodyListens):
        await bus.request("stagecast.command.nobody", b"", 30.0)


async def test_a_slow_answer_is_given_up(bus: Bus) -> None:
    never = asyncio.Event()

    async def answer(payload: bytes) -> bytes:
        await never.wait()
        return payload

    await bus.answer("stagecast.command.slow", answer)
    with pytest.raises(BusUnavailable):
        await bus.request("stagecast.command.slow", b"", 0.1)
    never.set()


def test_the_seam_is_a_protocol_both_fit() -> None:
    def accepts(bus: Bus) -> Iterator[Bus]:
        yield bus

    assert next(accepts(MemoryBus()))
