"""The shorter ways of our connection are really taken, and lead where nats-py's own ways lead."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import random
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport
from nats.errors import NoRespondersError
from nats.errors import TimeoutError as NatsTimeoutError
from nats.protocol.parser import Parser

from stagecast.bus import CaughtUp
from stagecast.bus.connection import DELIVERY, Connection
from stagecast.bus.consumer import Consumer
from stagecast.bus.nats import connect
from stagecast.messages import Entry
from tests.conftest import NatsServer, eventually

SUBJECT = "plain.subject"
RELIED_ON = {
    "_read_loop": "b44b9401f436dd0e",
    "_process_msg": "6cff75947e97717a",
    "_process_headers": "fe656f61147df989",
    "_flush_pending": "317c8d7ef54b90b7",
    "_flusher": "43957ffb357d6d94",
    "_init_request_sub": "14571cd9117edb1c",
    "_request_new_style": "78cc35ce5ad4f811",
    "_request_sub_callback": "7ad5daaddfac2668",
}


@asynccontextmanager
async def connected(server: NatsServer, errors: list[Exception] | None = None) -> AsyncIterator[Connection]:
    connection = Connection()

    async def complain(error: Exception) -> None:
        assert errors is not None, error
        errors.append(error)

    await connection.connect(server.url, error_cb=complain)
    try:
        yield connection
    finally:
        await connection.close()


def wire(connection: Connection) -> asyncio.Transport:
    found = connection._wire()
    assert found is not None
    return found


@pytest.mark.parametrize("name", sorted(RELIED_ON))
def test_what_our_ways_replace_in_nats_py_is_what_they_were_written_against(name: str) -> None:
    """Another version of the library: compare these methods with those of 2.16, mend `Connection`, note them here."""
    source = inspect.getsource(getattr(Client, name))
    assert hashlib.sha256(source.encode()).hexdigest()[:16] == RELIED_ON[name]
    assert {"_io_reader", "_io_writer"} <= TcpTransport().__dict__.keys()


def test_the_parser_is_what_our_reading_was_written_against() -> None:
    source = inspect.getsource(Parser)
    assert hashlib.sha256(source.encode()).hexdigest()[:16] == "0fb65d992f6f0614"


def frames(count: int) -> tuple[bytes, list[tuple[int, bytes, bool]]]:
    """Return what a server sends: deliveries with and without headers, heartbeats, others' messages, pings between."""
    sent, expected = b"", []
    for number in range(count):
        data = (b"MSG 9 9 $JS.ACK. 3\r\n" * (number % 3)) + str(number).encode()
        reply = f"$JS.ACK.S.c.1.{number}.{number}.1764000000500000000.0".encode()
        if number % 7 == 3:
            data, head = b"", b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 1\r\n\r\n"
            sent += b"HMSG inbox 1 %d %d\r\n%s\r\n" % (len(head), len(head), head)
        elif number % 7 == 5:
            sent += b"PING\r\nMSG other 2 $JS.ACK.x 5\r\nother\r\n"
            sent += b"MSG subject.%d 1 %s %d\r\n%s\r\n" % (number, reply, len(data), data)
        elif number % 2:
            head = b"NATS/1.0\r\nNats-Expected-Last-Subject-Sequence: 7\r\n\r\n"
            size = len(head) + len(data)
            sent += b"HMSG subject.%d 1 %s %d %d\r\n%s%s\r\n" % (number, reply, len(head), size, head, data)
        else:
            sent += b"MSG subject.%d 1 %s %d\r\n%s\r\n" % (number, reply, len(data), data)
        expected.append((number, data, number % 7 == 3))
    return sent, expected


@pytest.mark.parametrize("seed", range(40))
async def test_however_the_bytes_are_cut_all_is_heard_in_order(seed: int) -> None:
    """Our reading and the client's take turns over one stream of bytes; no message is lost, doubled or early."""
    chance, heard, others, pings = random.Random(seed), [], [], []
    sent, expected = frames(60)
    connection, reader = Connection(), asyncio.StreamReader()

    async def other(message: Msg) -> None:
        others.append(message.data)

    async def pinged() -> None:
        pings.append(1)

    def hear(message: Msg) -> None:
        is_beat = not message.reply
        heard.append((-1 if is_beat else int(message.subject.partition(".")[2]), message.data, is_beat))

    connection._hearers[1] = hear
    connection._subs[2] = subscription = Subscription(connection, 2, "other", cb=other)
    subscription._start(None)
    connection._process_ping = pinged  # type: ignore[method-assign]
    connection._transport = transport = TcpTransport()
    connection._status = Client.CONNECTED
    transport._io_reader = reader
    reading = asyncio.create_task(connection._read_loop())
    await asyncio.sleep(0)
    longest = chance.choice((3, 40, 400, 4000))
    while sent:
        size = chance.randint(1, longest)
        reader.feed_data(sent[:size])
        sent = sent[size:]
        if chance.random() < 0.5:
            await asyncio.sleep(0)
    await eventually(lambda: len(heard) == len(expected) and len(others) == len(pings))
    reading.cancel()
    subscription._stop_processing()
    await asyncio.wait([reading])
    assert heard == [(-1 if is_beat else number, data, is_beat) for number, data, is_beat in expected]
    assert others == [b"other"] * sum(number % 7 == 5 for number in range(60))


async def test_a_log_is_heard_where_it_is_read_and_without_its_headers(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[tuple[Msg, asyncio.Task[object] | None]] = []
    hear = Consumer.hear

    def noted(self: Consumer, message: Msg) -> None:
        heard.append((message, asyncio.current_task()))
        hear(self, message)

    monkeypatch.setattr(Consumer, "hear", noted)
    async with (
        connect(nats_server.url, "one") as bus,
        connect(nats_server.url, "two") as other,
        aclosing(bus.log.follow()) as follower,
    ):
        while not isinstance(await anext(follower), CaughtUp):
            pass
        asking = asyncio.create_task(anext(follower))
        await eventually(lambda: heard)
        sequence = await other.log.append("staging.one.progress", b"1", expected=0)
        assert await asking == Entry("staging.one.progress", sequence, b"1", asking.result().time)
        reading = bus._client._reading_task
    (beat, in_reading), (delivery, in_none) = heard[0], heard[-1]
    assert in_reading is reading
    assert in_none is None, "it came from the socket by way of no task"
    assert (delivery.reply.startswith(DELIVERY), delivery.headers) == (True, None)
    assert beat.headers is not None
    assert (beat.headers["Status"], beat.headers["Nats-Last-Consumer"]) == ("100", "0")


async def test_what_cannot_be_taken_is_complained_of_and_the_next_is_heard(
    nats_server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[bytes] = []

    def hear(message: Msg) -> None:
        heard.append(message.data)
        if message.data == b"bad":
            raise ValueError(message.data)

    async with connected(nats_server) as connection, connection.hearing(SUBJECT, hear):
        for data in (b"bad", b"good"):
            await connection.publish(SUBJECT, data)
        await eventually(lambda: len(heard) == 2)
    assert heard == [b"bad", b"good"]
    assert [each.message for each in caplog.records] == [f"hearing {SUBJECT}"]


async def test_after_the_block_nothing_is_heard(nats_server: NatsServer) -> None:
    heard: list[bytes] = []
    async with connected(nats_server) as connection:
        async with connection.hearing(SUBJECT, lambda message: heard.append(message.data)):
            await connection.publish(SUBJECT, b"1")
            await eventually(lambda: heard)
        with pytest.raises(NoRespondersError):
            await connection.request(SUBJECT, b"2", timeout=60)
        assert connection._hearers == {}
    assert heard == [b"1"]


async def test_a_message_leaves_in_the_turn_in_which_it_is_published(nats_server: NatsServer) -> None:
    async with connected(nats_server) as connection:
        publishing = connection.publish(SUBJECT, b"1")
        with pytest.raises(StopIteration):
            publishing.send(None)
        assert connection._pending == []
        assert connection._flush_queue is not None
        assert connection._flush_queue.empty()


async def test_where_something_waits_to_be_written_the_client_s_flusher_takes_over(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[bytes] = []
    async with (
        connected(nats_server) as other,
        other.hearing(SUBJECT, lambda message: heard.append(message.data)),
        connected(nats_server) as connection,
    ):
        await other.flush()
        with monkeypatch.context() as patch:
            patch.setattr(wire(connection), "get_write_buffer_size", lambda: 1, raising=False)
            await connection.publish(SUBJECT, b"1")
            await connection.publish(SUBJECT, b"2")
            assert len(connection._pending) == 2
        await connection.publish(SUBJECT, b"3")
        await eventually(lambda: len(heard) == 3)
    assert heard == [b"1", b"2", b"3"], "in order, whichever way they went"


async def test_who_rests_reads_nothing_until_then_and_loses_nothing(nats_server: NatsServer) -> None:
    heard: list[bytes] = []
    async with (
        connected(nats_server) as other,
        connected(nats_server) as connection,
        connection.hearing(SUBJECT, lambda message: heard.append(message.data)),
    ):
        await connection.flush()
        connection.rest(0.05)
        assert not wire(connection).is_reading()
        for number in range(10):
            await other.publish(SUBJECT, str(number).encode())
        await other.flush()
        connection.rest(3600.0)
        await eventually(lambda: len(heard) == 10)
        assert wire(connection).is_reading()
    assert heard == [str(number).encode() for number in range(10)]


async def test_an_answer_waits_for_no_rest(nats_server: NatsServer) -> None:
    asked = asyncio.Event()
    async with connected(nats_server) as other, connected(nats_server) as connection:

        async def answer(message: Msg) -> None:
            asked.set()
            connection.rest(3600.0)
            await message.respond(b"yes")

        await other.subscribe(SUBJECT, cb=answer)
        await other.flush()
        connection.rest(3600.0)
        assert not wire(connection).is_reading()
        reply = await connection.request(SUBJECT, b"?", timeout=30)
        assert reply.data == b"yes"
        assert asked.is_set()
        assert wire(connection).is_reading()


async def test_a_rest_ends_with_the_connection_that_it_was_on(nats_server: NatsServer) -> None:
    errors: list[Exception] = []
    async with connected(nats_server, errors) as connection:
        connection.options["reconnect_time_wait"] = 0.01
        before = wire(connection)
        connection.rest(0.05)
        nats_server.stop(kill=True)
        nats_server.start()
        await eventually(lambda: connection._wire() is not before and connection.is_connected)
        await connection.flush()
        connection.rest(0.01)
        assert not wire(connection).is_reading()
        await eventually(lambda: wire(connection).is_reading())
        wire(connection).close()
        connection.rest(0.01)
        assert connection._resting is None


async def test_a_question_ends_without_an_answer_as_with_the_client_s_own(nats_server: NatsServer) -> None:
    async with connected(nats_server) as connection:

        async def be_silent(_: Msg) -> None:
            pass

        await connection.subscribe(SUBJECT, cb=be_silent)
        with pytest.raises(NatsTimeoutError):
            await connection.request(SUBJECT, b"?", timeout=0.01)
        asking = asyncio.create_task(connection.request(SUBJECT, b"?", timeout=3600))
        await eventually(lambda: connection._resp_map)
        asking.cancel()
        await asyncio.wait([asking])
        assert asking.cancelled()
        assert connection._resp_map == {}


async def test_answers_find_their_questions_also_over_a_new_connection(nats_server: NatsServer) -> None:
    errors: list[Exception] = []
    async with connected(nats_server, errors) as connection:

        async def echo(message: Msg) -> None:
            await message.respond(message.data)

        async def ask(number: int) -> bytes:
            return (await connection.request(SUBJECT, str(number).encode(), timeout=30)).data

        connection.options["reconnect_time_wait"] = 0.01
        await connection.subscribe(SUBJECT, cb=echo)
        assert await asyncio.gather(*map(ask, range(50))) == [str(number).encode() for number in range(50)]
        before = wire(connection)
        nats_server.stop()
        nats_server.start()
        await eventually(lambda: connection._wire() is not before and connection.is_connected)
        assert await ask(50) == b"50"
