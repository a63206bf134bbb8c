"""What a consumer makes of what the server sends, and of what it does not send."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest
from nats.aio.msg import Msg

from stagecast.bus import CaughtUp
from stagecast.bus.consumer import GULP, Consumer, position
from stagecast.messages import Entry


class Asked(Msg):
    """A question of flow control, and what was answered."""

    answers: list[bytes]

    async def respond(self, data: bytes) -> None:
        self.answers.append(data)


def delivery(sequence: int, in_consumer: int, pending: int = 0) -> Msg:
    reply = f"$JS.ACK.STAGECAST.name.1.{sequence}.{in_consumer}.1764000000500000000.{pending}"
    return Msg(_client=None, subject=f"staging.{sequence}.progress", reply=reply, data=b"x")  # type: ignore[arg-type]


def status(reply: str = "", **headers: str) -> Msg:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Msg(_client=None, subject="inbox", reply=reply, data=b"", headers=named)  # type: ignore[arg-type]


def question() -> Asked:
    asked = Asked(_client=None, subject="inbox", reply="$JS.FC.x", data=b"")  # type: ignore[arg-type]
    asked.answers = []
    return asked


def taken(consumer: Consumer) -> list[int | CaughtUp]:
    """Take all that is there without giving way."""
    found: list[int | CaughtUp] = []
    while (heard := consumer.next()) is not None:
        found.append(heard.sequence if isinstance(heard, Entry) else heard)
    return found


async def test_a_burst_is_taken_in_order_in_one_go_and_its_end_is_told() -> None:
    consumer = Consumer(0, 3)
    for sequence in (1, 2, 3, 4):
        consumer.hear(delivery(sequence, sequence))
    assert taken(consumer) == [1, 2, 3, CaughtUp(3), 4]
    assert not consumer.is_spent


async def test_what_was_overwritten_on_the_way_is_waited_for_before_anything_is_passed_on() -> None:
    consumer = Consumer(0, 7)
    for in_consumer, sequence in enumerate((3, 5, 7, 8), 1):
        consumer.hear(delivery(sequence, in_consumer))
    assert taken(consumer) == []
    assert consumer.is_torn
    consumer.bridge(8)
    assert not consumer.is_torn
    assert taken(consumer) == [3, 5, 7, 8, CaughtUp(8)]


async def test_who_has_everything_is_caught_up_before_anything_comes() -> None:
    assert taken(Consumer(5, 5)) == [CaughtUp(5)]


async def test_the_last_word_of_a_subject_may_have_moved_beyond_where_the_log_stood() -> None:
    consumer = Consumer(0, 7)
    consumer.hear(delivery(3, 1))
    assert taken(consumer) == [], "what stood up to 7 may be on its way with a higher number"
    consumer.hear(status(Status="100", Nats_Last_Consumer="1"))
    assert taken(consumer) == [3, CaughtUp(7)], "the server has nothing more"


@pytest.mark.parametrize(
    "breach",
    [
        lambda: delivery(5, 3),
        lambda: status(Status="100", Nats_Last_Consumer="2"),
        lambda: status(Status="409", Description="Consumer Deleted"),
    ],
)
async def test_what_is_missing_ends_it(breach: Callable[[], Msg]) -> None:
    consumer = Consumer(0, 0)
    consumer.hear(delivery(1, 1))
    consumer.hear(status(Status="100", Nats_Last_Consumer="1"))
    consumer.hear(breach())
    consumer.hear(delivery(9, 2))
    assert taken(consumer) == [CaughtUp(0), 1]
    assert consumer.is_spent
    await consumer.come()


async def test_flow_control_is_answered_once_what_came_before_it_is_taken() -> None:
    consumer, asked = Consumer(0, 0), question()
    consumer.hear(delivery(1, 1))
    consumer.hear(asked)
    consumer.hear(delivery(2, 2))
    assert asked.answers == []
    assert taken(consumer) == [CaughtUp(0), 1, 2]
    consumer.end()
    await consumer.come()
    assert asked.answers == [b""]


async def test_a_changed_connection_ends_it_after_what_has_come() -> None:
    consumer = Consumer(0, 0)
    taken(consumer)
    waiting = asyncio.create_task(consumer.come())
    await asyncio.sleep(0)
    consumer.hear(delivery(1, 1))
    consumer.end()
    await waiting
    assert not consumer.is_spent
    assert taken(consumer) == [1]
    assert consumer.is_spent


async def test_silence_is_noticed() -> None:
    consumer = Consumer(0, 0)
    taken(consumer)
    with consumer.watched(0.01), pytest.raises(TimeoutError):
        await consumer.come()


async def test_who_hears_something_waits_on() -> None:
    consumer = Consumer(0, 0)
    taken(consumer)
    with consumer.watched(3600.0):
        waiting = asyncio.create_task(consumer.come())
        await asyncio.sleep(0)
        consumer.hear(status(Status="100", Nats_Last_Consumer="0"))
        await waiting
        assert taken(consumer) == []
    assert not consumer.is_spent


def test_a_place_is_read_from_both_forms_of_a_delivery() -> None:
    short = "$JS.ACK.STAGECAST.name.1.12.3.1764000000500000000.4"
    long = "$JS.ACK.domain.account.STAGECAST.name.1.12.3.1764000000500000000.4.token"
    assert position(short) == position(long) == (12, 3, 1764000000.5)


class Loop:
    """Time that a test moves by hand, and what is to be called then."""

    def __init__(self) -> None:
        self.now = 0.0
        self.later: list[tuple[float, Callable[[], None]]] = []
        self.create_future = asyncio.get_running_loop().create_future

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, call: Callable[[], None]) -> None:
        self.later.append((self.now + delay, call))

    def pass_by(self, seconds: float) -> None:
        self.now += seconds
        due = [call for at, call in self.later if at <= self.now]
        self.later = [each for each in self.later if each[0] > self.now]
        for call in due:
            call()


class Fed:
    """A consumer in a time of its own, how long it let its connection rest, and what was taken at each waking."""

    def __init__(self, target: int = 0) -> None:
        self.loop, self.rests = Loop(), list[float]()
        self.consumer = Consumer(0, target, self.rests.append)
        self.consumer._loop = self.loop  # type: ignore[assignment]
        self.consumer._heard = 0.0
        self.gulps: list[list[int | CaughtUp]] = [taken(self.consumer)]

    async def take(self) -> None:
        while True:
            await self.consumer.come()
            self.gulps.append(taken(self.consumer))

    async def hear(self, message: Msg, after: float) -> None:
        """Let a message come, and whoever is woken by it run."""
        self.loop.pass_by(after)
        self.consumer.hear(message)
        for _ in range(3):
            await asyncio.sleep(0)

    @contextlib.asynccontextmanager
    async def taking(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.take())
        await asyncio.sleep(0)
        yield
        task.cancel()
        await asyncio.wait([task])


async def test_messages_on_each_others_heels_are_taken_in_gulps_and_single_ones_are_not() -> None:
    fed = Fed()
    async with fed.taking():
        for number in range(1, 201):
            await fed.hear(delivery(number, number), 0.001)
        assert fed.gulps[1:3] == [[1], [2]], "a burst is none yet at its beginning"
        assert [len(gulp) for gulp in fed.gulps[-5:]] == [10] * 5
        assert fed.rests == [GULP] * len(fed.rests)
        assert len(fed.rests) >= 10
        for number in range(201, 211):
            await fed.hear(delivery(number, number), 1.0)
        assert fed.gulps[-5:] == [[number] for number in range(206, 211)]
        rests = len(fed.rests)
        await fed.hear(delivery(211, 211), 1.0)
        assert len(fed.rests) == rests
    assert [each for gulp in fed.gulps for each in gulp] == [CaughtUp(0), *range(1, 212)]


async def test_nothing_waits_for_others_where_the_server_has_more() -> None:
    fed = Fed(200)
    async with fed.taking():
        for number in range(1, 150):
            await fed.hear(delivery(number, number, pending=1), 0.0001)
    assert fed.rests == []
    assert fed.loop.later == []


async def test_what_was_heard_in_one_turn_is_taken_in_one_go() -> None:
    fed = Fed()
    async with fed.taking():
        for number in (1, 2):
            fed.consumer.hear(delivery(number, number))
        await fed.hear(delivery(3, 3), 0.0)
    assert fed.gulps == [[CaughtUp(0)], [1, 2, 3]]


async def test_an_end_is_told_also_while_a_gulp_is_collected() -> None:
    fed = Fed()
    for number in range(1, 100):
        fed.loop.pass_by(0.0001)
        fed.consumer.hear(delivery(number, number))
    assert taken(fed.consumer) == list(range(1, 100))
    waiting = asyncio.create_task(fed.consumer.come())
    await asyncio.sleep(0)
    fed.consumer.hear(delivery(100, 100))
    await asyncio.sleep(0)
    assert not waiting.done()
    fed.consumer.end()
    await waiting
    assert taken(fed.consumer) == [100]
    assert fed.consumer.is_spent
