"""What a consumer makes of what the server sends, and of what it does not send."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from nats.aio.msg import Msg

from stagecast.bus import CaughtUp
from stagecast.bus.consumer import Consumer, position
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
        await consumer.hear(delivery(sequence, sequence))
    assert taken(consumer) == [1, 2, 3, CaughtUp(3), 4]
    assert not consumer.is_spent


async def test_what_was_overwritten_on_the_way_is_waited_for_before_anything_is_passed_on() -> None:
    consumer = Consumer(0, 7)
    for in_consumer, sequence in enumerate((3, 5, 7, 8), 1):
        await consumer.hear(delivery(sequence, in_consumer))
    assert taken(consumer) == []
    assert consumer.is_torn
    consumer.bridge(8)
    assert not consumer.is_torn
    assert taken(consumer) == [3, 5, 7, 8, CaughtUp(8)]


async def test_who_has_everything_is_caught_up_before_anything_comes() -> None:
    assert taken(Consumer(5, 5)) == [CaughtUp(5)]


async def test_the_last_word_of_a_subject_may_have_moved_beyond_where_the_log_stood() -> None:
    consumer = Consumer(0, 7)
    await consumer.hear(delivery(3, 1))
    assert taken(consumer) == [], "what stood up to 7 may be on its way with a higher number"
    await consumer.hear(status(Status="100", Nats_Last_Consumer="1"))
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
    await consumer.hear(delivery(1, 1))
    await consumer.hear(status(Status="100", Nats_Last_Consumer="1"))
    await consumer.hear(breach())
    await consumer.hear(delivery(9, 2))
    assert taken(consumer) == [CaughtUp(0), 1]
    assert consumer.is_spent
    await consumer.come()


async def test_flow_control_is_answered_once_what_came_before_it_is_taken() -> None:
    consumer, asked = Consumer(0, 0), question()
    await consumer.hear(delivery(1, 1))
    await consumer.hear(asked)
    await consumer.hear(delivery(2, 2))
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
    await consumer.hear(delivery(1, 1))
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
        await consumer.hear(status(Status="100", Nats_Last_Consumer="0"))
        await waiting
        assert taken(consumer) == []
    assert not consumer.is_spent


def test_a_place_is_read_from_both_forms_of_a_delivery() -> None:
    short = "$JS.ACK.STAGECAST.name.1.12.3.1764000000500000000.4"
    long = "$JS.ACK.domain.account.STAGECAST.name.1.12.3.1764000000500000000.4.token"
    assert position(short) == position(long) == (12, 3, 1764000000.5)


class Clock:
    """Time that a test moves by hand."""

    now = 0.0

    def time(self) -> float:
        return self.now


def heard_at_once(consumer: Consumer, message: Msg) -> bool:
    """Let the client call with a message; tell whether it could go on without waiting."""
    calling = consumer.hear(message)
    try:
        calling.send(None)
    except StopIteration:
        return True
    calling.close()
    return False


async def test_messages_on_each_others_heels_are_collected_and_single_ones_are_not() -> None:
    consumer, clock, at_once = Consumer(0, 0), Clock(), []
    consumer._loop = clock  # type: ignore[assignment]
    consumer._heard = 0.0
    for number in range(1, 100):
        clock.now += 0.0001
        at_once.append(heard_at_once(consumer, delivery(number, number)))
    assert at_once == sorted(at_once, reverse=True), "a burst is none yet at its beginning"
    assert (at_once[0], at_once[-1]) == (True, False)
    assert taken(consumer) == [CaughtUp(0), *range(1, 100)]
    for number in range(100, 110):
        clock.now += 10.0
        at_once.append(heard_at_once(consumer, delivery(number, number)))
    assert at_once[-1]


async def test_nothing_waits_for_others_where_the_server_has_more() -> None:
    consumer = Consumer(0, 200)
    assert all(heard_at_once(consumer, delivery(number, number, pending=1)) for number in range(1, 150))


async def test_who_takes_is_woken_at_the_end_of_what_the_client_has() -> None:
    consumer, left = Consumer(0, 0), 2
    consumer.pending = lambda: left
    taken(consumer)
    waiting = asyncio.create_task(consumer.come())
    await asyncio.sleep(0)
    for left in (2, 1):
        await consumer.hear(delivery(3 - left, 3 - left))
    await asyncio.sleep(0)
    assert not waiting.done()
    left = 0
    await consumer.hear(delivery(3, 3))
    await waiting
    assert taken(consumer) == [1, 2, 3]
