"""The bus of a cluster: NATS with JetStream.

Measured with nats-server 2.15 and nats-py 2.16: the client's own ordered consumer comes back
17 s after the server restarts and never after it came back empty, so a log is followed by a consumer of our own that is
made anew whenever the connection returns, a heartbeat is missed or a delivery has a gap.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import NoRespondersError
from nats.js import JetStreamContext
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DeliverPolicy,
    StreamConfig,
    StreamInfo,
)
from nats.js.errors import APIError, NotFoundError

from stagecast.bus import Anew, Answer, Heard, Lost, streams
from stagecast.bus.connection import Connection
from stagecast.bus.consumer import Consumer
from stagecast.bus.questions import Questions, cancellable
from stagecast.errors import AppendConflict, BusUnavailable, BusUnsuitable, NobodyListens
from stagecast.messages import Entry
from stagecast.revision import STREAMS, first_of, identity_of
from stagecast.settings import Bounds

_logger = logging.getLogger(__name__)

HEARTBEAT: Final = 0.5
"""Seconds between the server's signs of life on a quiet log; after three missed ones the consumer is made anew."""
REQUEST_TIMEOUT: Final = 2.0
STREAMS_PATIENCE: Final = 30.0
"""Seconds for which a server that is there may leave its streams unanswered at the start: its disk may be slow."""
OLDEST_SERVER: Final = (2, 10)
_WRONG_LAST_SEQUENCE: Final = 10071
_MADE_ALREADY: Final = 10058
_EXPECTED: Final = "Nats-Expected-Last-Subject-Sequence"

_Gone = (NatsError, APIError, OSError, TimeoutError, asyncio.TimeoutError)


class NatsLog:
    """One JetStream stream that keeps the last word on every subject."""

    def __init__(
        self,
        client: Connection,
        config: StreamConfig,
        bounds: Bounds | None = None,
        *,
        chance: random.Random | None = None,
    ) -> None:
        self._client = client
        self._bounds = bounds
        self._chance = chance or random.SystemRandom()
        self._stream: JetStreamContext = client.jetstream(timeout=REQUEST_TIMEOUT)
        self._config = config
        self._name = config.name or ""
        self._consumers: set[Consumer] = set()
        self._questions = Questions()

    async def append(self, subject: str, payload: bytes, *, expected: int | None = None) -> int:
        """See `stagecast.bus.Log.append`."""
        if not self._client.is_connected:
            raise BusUnavailable("not connected")
        headers = {_EXPECTED: str(expected)} if expected is not None else None
        try:
            # Each header is stored, delivered and parsed by every follower: the stream's name is checked here instead.
            publishing = self._stream.publish(subject, payload, headers=headers)
            acknowledged = await self._questions.answered(publishing)
        except APIError as error:
            if error.err_code == _WRONG_LAST_SEQUENCE and expected is not None:
                raise AppendConflict(subject, expected) from None
            raise BusUnavailable(str(error)) from error
        except _Gone as error:
            raise BusUnavailable(_describe(error)) from error
        if acknowledged.stream != self._name:
            raise BusUnavailable(
                f"the stream {acknowledged.stream} has taken a message that was meant for {self._name}"
            )
        return acknowledged.seq

    async def last(self, subject: str) -> Entry | None:
        """See `stagecast.bus.Log.last`."""
        if not self._client.is_connected:
            raise BusUnavailable("not connected")
        try:
            message = await self._questions.answered(self._stream.get_last_msg(self._name, subject))
        except NotFoundError:
            return None
        except _Gone as error:
            raise BusUnavailable(_describe(error)) from error
        moment = message.time.timestamp() if message.time else 0.0
        return Entry(subject, message.seq or 0, message.data or b"", moment)

    async def remove(self, subject: str, through: int) -> None:
        """See `stagecast.bus.Log.remove`."""
        if not self._client.is_connected:
            raise BusUnavailable("not connected")
        try:
            purging = self._stream.purge_stream(self._name, seq=through + 1, subject=subject)
            await self._questions.answered(purging)
        except _Gone as error:
            raise BusUnavailable(_describe(error)) from error

    async def follow(self) -> AsyncGenerator[Heard, None]:
        """See `stagecast.bus.Log.follow`."""
        identity, held = "", 0
        while True:
            is_lost = False
            try:
                info = await self.ensure()
                if _identity(info) != identity or info.state.last_seq < held:
                    identity, held = _identity(info), max(0, info.state.first_seq - 1)
                    yield Anew(identity)
                async with self._consuming(held, info.state.last_seq) as consumer:
                    while not consumer.is_spent:
                        heard = consumer.next()
                        if heard is not None:
                            held = heard.sequence
                            yield heard
                        elif consumer.is_torn:
                            consumer.bridge((await self.ensure()).state.last_seq)
                        else:
                            await consumer.come()
            except _Gone as error:
                # A server that hangs is found here, seconds before its connection is given up.
                is_lost = True
                _logger.debug("log %s: %s", self._name, _describe(error))
            if is_lost or not self._client.is_connected:
                yield Lost()
            await self._until_connected()

    async def ensure(self) -> StreamInfo:
        """Return the stream's state, having made the stream if it was not there."""
        try:
            info = await self._questions.answered(self._stream.stream_info(self._name))
        except NotFoundError:
            return await self._create()
        amended = streams.amended(info.config, self._config, self._bounds)
        return await self._stream.update_stream(amended) if amended else info

    async def _create(self) -> StreamInfo:
        """Make the stream, with sequences that no stream of this name had before.

        Else what was written with the last sequence of a stream that was lost could hit the same number in this one.
        """
        first = first_of(self._chance.randrange(1, STREAMS))
        try:
            return await self._stream.add_stream(self._config.evolve(first_seq=first))
        except APIError as error:
            if error.err_code != _MADE_ALREADY:
                raise
            return await self._questions.answered(self._stream.stream_info(self._name))

    def wake(self) -> None:
        """Make every follower look at the stream anew, and nobody wait for an answer; the connection has changed."""
        self._questions.abandon()
        for consumer in self._consumers:
            consumer.end()

    async def _until_connected(self) -> None:
        # Woken by the client's own callbacks through `wake`; polling here only bounds what a lost callback costs.
        while not self._client.is_connected:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.05)

    @asynccontextmanager
    async def _consuming(self, held: int, target: int) -> AsyncIterator[Consumer]:
        """Yield what takes deliveries after ``held``, up to where it cannot be trusted any more."""
        consumer, inbox = Consumer(held, target, self._client.rest), self._client.new_inbox()
        async with self._client.hearing(inbox, consumer.hear):
            self._consumers.add(consumer)
            try:
                await self._questions.answered(self._stream.add_consumer(self._name, _configured(inbox, held)))
                with consumer.watched(3 * HEARTBEAT):
                    yield consumer
            finally:
                self._consumers.discard(consumer)


class NatsBus:
    """A connection to NATS. Made by `connect`."""

    def __init__(
        self, client: Connection, bounds: Bounds | None = None, *, chance: random.Random | None = None
    ) -> None:
        self._client = client
        self.log = NatsLog(client, streams.LOG, chance=chance)
        self.history = NatsLog(client, streams.bounded(streams.HISTORY, bounds or Bounds()), bounds, chance=chance)

    @property
    def is_connected(self) -> bool:
        """See `stagecast.bus.Bus.is_connected`."""
        return bool(self._client.is_connected)

    async def publish(self, subject: str, payload: bytes) -> None:
        """See `stagecast.bus.Bus.publish`."""
        if self._client.is_connected:
            with contextlib.suppress(*_Gone):
                await self._client.publish(subject, payload)

    async def subscribe(self, subject: str, hear: Callable[[str, bytes], None]) -> None:
        """See `stagecast.bus.Bus.subscribe`."""

        async def callback(message: Msg) -> None:
            hear(message.subject, message.data)

        await self._listen(subject, callback)

    async def answer(self, subject: str, answer: Answer) -> None:
        """See `stagecast.bus.Bus.answer`."""
        tasks: set[asyncio.Task[None]] = set()

        async def respond(message: Msg) -> None:
            with contextlib.suppress(*_Gone):
                await message.respond(await answer(message.data))

        async def callback(message: Msg) -> None:
            task = asyncio.create_task(respond(message))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        await self._listen(subject, callback)

    async def request(self, subject: str, payload: bytes, timeout: float) -> bytes:
        """See `stagecast.bus.Bus.request`."""
        if not self._client.is_connected:
            # The client would keep it and send it later, when whoever asked was told long ago that it failed.
            raise BusUnavailable("not connected")
        try:
            reply = await cancellable(self._client.request(subject, payload, timeout=timeout))
        except NoRespondersError:
            raise NobodyListens(subject) from None
        except _Gone as error:
            raise BusUnavailable(f"no answer on {subject} within {timeout:g} s") from error
        return reply.data

    async def _listen(self, subject: str, callback: Callable[[Msg], Awaitable[None]]) -> None:
        await self._client.subscribe(subject, cb=callback)
        # The server knows of it once this returns: what is said from then on is heard.
        with contextlib.suppress(*_Gone):
            await self._client.flush(timeout=int(REQUEST_TIMEOUT))

    def wake(self) -> None:
        """Tell both logs that the connection has changed."""
        self.log.wake()
        self.history.wake()


@asynccontextmanager
async def connect(
    url: str, name: str, *, bounds: Bounds | None = None, patience: float = 10.0
) -> AsyncIterator[NatsBus]:
    """Yield a bus on the NATS server at ``url``; ``name`` is what the server's own reports call this process.

    ``bounds`` are the history's from now on, for everybody; None leaves them as they are.

    Raises:
        BusUnavailable: no server answered within ``patience`` seconds, or its streams not within `STREAMS_PATIENCE`.
        BusUnsuitable: JetStream is off, the server is too old, or another stream has our subjects.
    """
    bus: NatsBus | None = None

    async def changed() -> None:
        if bus is not None:
            bus.wake()

    async def complain(error: Exception) -> None:
        _logger.debug("nats: %s", _describe(error))

    client = await _dial(url, patience, name=name, disconnected_cb=changed, reconnected_cb=changed, error_cb=complain)
    try:
        bus = NatsBus(client, bounds)
        await _prepare(client, bus, url)
        yield bus
    finally:
        with contextlib.suppress(*_Gone):
            async with asyncio.timeout(1.0):
                await client.flush()
        with contextlib.suppress(*_Gone):
            await client.close()


async def _dial(url: str, patience: float, **options: object) -> Connection:
    client = Connection()
    try:
        async with asyncio.timeout(patience):
            await client.connect(
                url,
                connect_timeout=2,
                allow_reconnect=True,
                max_reconnect_attempts=-1,
                reconnect_time_wait=0.1,  # type: ignore[arg-type]  # typed int, but only ever slept
                # A silent connection is given up after 3 s: a new one is made within a second of the network's
                # return, where TCP would try again only after as long as the silence had lasted.
                ping_interval=1,
                max_outstanding_pings=2,
                **options,  # type: ignore[arg-type]  # the callbacks above
            )
    except _Gone as error:
        with contextlib.suppress(*_Gone):
            await client.close()
        why = f"no NATS server at {url}: {_describe(client.last_error or error)}"
        raise BusUnavailable(why, "check the address (--nats), or start a server there") from error
    return client


async def _prepare(client: Connection, bus: NatsBus, url: str) -> None:
    """Have the server's streams ready, however slow its disk is; what asks too early is asked again."""
    deadline, is_ready = asyncio.get_running_loop().time() + STREAMS_PATIENCE, False
    while not is_ready:
        try:
            await _check(client, url)
            await _make_streams(bus, url)
            is_ready = True
        except _Gone as error:
            if asyncio.get_running_loop().time() > deadline:
                why = f"NATS at {url} has not answered for its streams in {STREAMS_PATIENCE:g} s"
                raise BusUnavailable(f"{why}: {_describe(error)}") from error
            await asyncio.sleep(0.1)


async def _check(client: Connection, url: str) -> None:
    version = client.connected_server_version
    if (version.major, version.minor) < OLDEST_SERVER:
        raise BusUnsuitable(url, f"it is version {version}; 2.10 or newer is needed")
    try:
        await client.jetstream(timeout=REQUEST_TIMEOUT).account_info()
    except (APIError, NoRespondersError) as error:
        raise BusUnsuitable(url, f"JetStream is not on ({_describe(error)}); start nats-server with -js") from error


async def _make_streams(bus: NatsBus, url: str) -> None:
    try:
        await bus.log.ensure()
        await bus.history.ensure()
    except APIError as error:
        raise BusUnsuitable(url, f"its streams cannot be made: {error.description}") from error


def _configured(inbox: str, held: int) -> ConsumerConfig:
    return ConsumerConfig(
        deliver_subject=inbox,
        deliver_policy=DeliverPolicy.BY_START_SEQUENCE if held else DeliverPolicy.LAST_PER_SUBJECT,
        opt_start_seq=held + 1 if held else None,
        filter_subject=None if held else ">",
        ack_policy=AckPolicy.NONE,
        max_deliver=1,
        flow_control=True,
        idle_heartbeat=HEARTBEAT,
        inactive_threshold=10.0,
        mem_storage=True,
        num_replicas=1,
    )


def _identity(info: StreamInfo) -> str:
    return identity_of(info.created.timestamp() if info.created else 0.0)


def _describe(error: BaseException) -> str:
    return str(error) or type(error).__name__
