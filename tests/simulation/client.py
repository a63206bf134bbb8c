"""The narrow part of our connection to NATS that `stagecast.bus.nats` uses, for one simulated process.

As with the real client a silent cut is noticed by missing pongs, 4 to 6 s late, and what was sent while there was no
connection goes out with the next one.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from nats.errors import ConnectionClosedError, FlushTimeoutError, NoRespondersError
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js.api import ConsumerConfig, StreamConfig
from nats.js.errors import NoStreamResponseError

from tests.simulation.loop import Process
from tests.simulation.network import Line
from tests.simulation.server import Server

RECONNECT: Final = 0.1
PING_INTERVAL: Final = 2.0
LONGEST_HANDSHAKE: Final = 1.1
"""Seconds after which, at most, an attempt to connect through a network that was cut tries its SYN again."""

Callback = Callable[["Msg"], Awaitable[None]]


class Msg:
    """A message as a subscriber gets it."""

    __slots__ = ("_client", "data", "headers", "reply", "subject")

    def __init__(
        self, client: Client, subject: str, data: bytes, reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        self._client = client
        self.subject = subject
        self.data = data
        self.reply = reply
        self.headers = headers

    async def respond(self, data: bytes) -> None:
        """Publish to whoever asked."""
        await self._client.publish(self.reply, data)


class Subscription:
    """A client's interest in a subject. Its messages are taken one after another, each in a turn of its own."""

    def __init__(self, client: Client, subject: str, callback: Callback) -> None:
        self.subject = subject
        self._client = client
        self._callback = callback
        self._waiting: list[Msg] = []
        self._is_busy = False

    async def unsubscribe(self) -> None:
        """Hear no more. Raises `ConnectionClosedError`."""
        if self._client.is_closed:
            raise ConnectionClosedError
        self._client.forget(self)
        self._waiting.clear()

    def put(self, message: Msg) -> None:
        """Queue a message for the callback."""
        self._waiting.append(message)
        if not self._is_busy:
            self._is_busy = True
            self._client.process.post(self._take)

    def _take(self) -> None:
        if self._waiting:
            self._drive(self._callback(self._waiting.pop(0)))
        else:
            self._is_busy = False

    def _drive(self, taking: Any) -> None:
        """Let the callback go on, as a task of the real client does, and take the next message once it has ended."""
        try:
            waited = taking.send(None)
        except StopIteration:
            if self._waiting:
                self._client.process.post(self._take)
            else:
                self._is_busy = False
            return
        if waited is None:
            self._client.process.post(self._drive, taking)
        else:
            waited._asyncio_future_blocking = False
            waited.add_done_callback(lambda _: self._drive(taking))


class Ear(Subscription):
    """A client's interest in a subject that is called with each message as it arrives, in the turn of the arrival."""

    def __init__(self, client: Client, subject: str, hear: Callable[[Msg], None]) -> None:
        super().__init__(client, subject, _unheard)
        self._hear = hear

    def put(self, message: Msg) -> None:
        """Pass a message on."""
        self._hear(message)


async def _unheard(message: Msg) -> None:
    raise AssertionError(f"{message.subject} was queued")


class Client:
    """What `stagecast.bus.connection.Connection` is to `NatsBus`, for one process."""

    def __init__(self, server: Server, process: Process, changed: Callable[[], None] = lambda: None) -> None:
        self.number = next(server.numbers)
        self.process = process
        self.is_connected = False
        self.is_closed = False
        self.is_cut = False
        self.changed = changed
        """Called when the connection is lost and when it is back."""
        self.connected_since = 0.0
        self.healed_since = 0.0
        self._server = server
        self._line: Line | None = None
        self._abandoned: list[Line] = []
        self._cuts = 0
        self._subscriptions: dict[str, list[Subscription]] = {}
        self._asked: dict[str, asyncio.Future[Any]] = {}
        self._waiting: list[tuple[Any, ...]] = []
        self._numbers = itertools.count(1)
        server.clients.append(self)

    # Its connection.

    async def connect(self, patience: float = 10.0) -> None:
        """Connect for the first time; the process's own loop tries again for ``patience`` seconds."""
        async with asyncio.timeout(patience):
            self._retry()
            while not self.is_connected:
                await asyncio.sleep(0.01)

    def cut(self) -> None:
        """Cut the network between this process and the server; found out by missing pongs."""
        if not self.is_cut:
            self.is_cut = True
            if self._line is not None:
                self._line.cut()
                patience = PING_INTERVAL * (2 + self._server.chance())
                self._cuts += 1
                self.process.post_at(self._server.loop.time() + patience, self._miss_pongs, self._line, self._cuts)

    def heal(self) -> None:
        """Mend the network."""
        if self.is_cut:
            self.is_cut = False
            self.healed_since = self._server.loop.time()
            for line in (self._line, *self._abandoned):
                if line is not None and line.is_cut:
                    line.heal()
                    if line.is_gone and line is self._line:
                        self.process.post_at(self._server.delay(), self.lost, line)
            self._abandoned.clear()

    def give_up_on_silence(self) -> None:
        """Begin to miss the pongs of a server that was stopped just now."""
        if self._line is not None and not self.is_cut:
            patience = PING_INTERVAL * (2 + self._server.chance())
            self.process.post_at(self._server.loop.time() + patience, self._miss_silent, self._line)

    def die(self) -> None:
        """End with the process: the network carries on with what was sent, or not."""
        self.is_closed, self.is_connected = True, False
        if self._line is not None:
            self._leave(self._line)

    def lost(self, line: Line) -> None:
        """Take notice that a connection is no more."""
        if self._line is line and not self.is_closed:
            self._leave(line)
            self._line = None
            self.is_connected = False
            self.changed()
            self._schedule_retry()

    def _leave(self, line: Line) -> None:
        line.is_given_up = True
        if line.is_cut:
            self._abandoned.append(line)
        else:
            line.up("bye")

    def _miss_pongs(self, line: Line, cut: int) -> None:
        if line.is_cut and cut == self._cuts:
            self.lost(line)

    def _miss_silent(self, line: Line) -> None:
        if self._server.process.is_paused and line.generation == self._server.generation:
            self.lost(line)

    def _schedule_retry(self) -> None:
        pause = RECONNECT + (LONGEST_HANDSHAKE - RECONNECT) * self._server.chance() * self.is_cut
        self.process.post_at(self._server.loop.time() + pause, self._retry)

    def _retry(self) -> None:
        if self.is_closed or self._line is not None:
            return
        if not self._server.is_up or self.is_cut or self._server.process.is_paused:
            self._schedule_retry()
            return
        line = self._line = self._server.connect(self)
        for subject in self._subscriptions:
            line.up("sub", subject)
        line.up("ping", "hello")

    # What it hears.

    def hear(self, line: Line, pattern: str, subject: str, data: Any, reply: str, extra: Any) -> None:
        """Take what came on a connection: a message for a subscription, or an answer."""
        if line is not self._line or self.is_closed or line.is_given_up:
            return
        if pattern:
            for subscription in self._subscriptions.get(pattern, ()):
                subscription.put(Msg(self, subject, data, reply, extra))
        elif reply == "hello":
            self._be_connected()
        else:
            future = self._asked.pop(reply, None)
            if future is not None and not future.done():
                self._settle(future, data, extra)

    def _settle(self, future: asyncio.Future[Any], data: Any, extra: Any) -> None:
        error = extra if isinstance(extra, Exception) else data if isinstance(data, Exception) else None
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(data)

    def _be_connected(self) -> None:
        self.is_connected = True
        self.connected_since = self._server.loop.time()
        waiting, self._waiting = self._waiting, []
        for message in waiting:
            self._send(*message)
        self.changed()

    def _send(self, *message: Any) -> None:
        if self.is_closed:
            raise ConnectionClosedError
        if self.is_connected and self._line is not None:
            self._line.up(*message)
        else:
            self._waiting.append(message)

    async def _ask(self, verb: str, *arguments: Any, timeout: float, place: int = 0) -> Any:
        """Send a request with the inbox for its answer at ``place`` of its arguments, and wait for that."""
        inbox = f"_INBOX.{self.number}.{next(self._numbers)}"
        future = self._asked[inbox] = asyncio.get_running_loop().create_future()
        self._send(verb, *arguments[:place], inbox, *arguments[place:])
        try:
            return await asyncio.wait_for(future, timeout)
        except TimeoutError:
            raise NatsTimeoutError from None
        finally:
            self._asked.pop(inbox, None)

    # What `NatsBus` and `NatsLog` call.

    def new_inbox(self) -> str:
        """Return a subject that nobody else has."""
        return f"_BOX.{self.number}.{next(self._numbers)}"

    def jetstream(self, timeout: float = 5.0) -> JetStream:
        """Return what speaks to streams."""
        return JetStream(self, timeout)

    async def publish(self, subject: str, payload: bytes = b"", reply: str = "") -> None:
        """Send, or keep for the next connection."""
        self._send("pub", subject, payload, reply, None)

    async def subscribe(self, subject: str, *, cb: Callback) -> Subscription:
        """Hear a subject, through every loss of the connection."""
        subscription = Subscription(self, subject, cb)
        self._add(subscription)
        return subscription

    @asynccontextmanager
    async def hearing(self, subject: str, hear: Callable[[Msg], None]) -> AsyncIterator[None]:
        """Hear a subject within the block, each message as it arrives."""
        ear = Ear(self, subject, hear)
        self._add(ear)
        try:
            yield
        finally:
            with suppress(ConnectionClosedError):
                await ear.unsubscribe()

    def rest(self, seconds: float) -> None:
        """Let what comes wait in the network for so long, unless somebody waits for an answer."""
        if self._line is not None and not self._asked:
            self._line.hold(seconds)

    def _add(self, subscription: Subscription) -> None:
        self._subscriptions.setdefault(subscription.subject, []).append(subscription)
        if self._line is not None:
            self._line.up("sub", subscription.subject)

    def forget(self, subscription: Subscription) -> None:
        """Hear a subject no more."""
        left = self._subscriptions.get(subscription.subject, [])
        if subscription in left:
            left.remove(subscription)
        if not left:
            self._subscriptions.pop(subscription.subject, None)
            if self._line is not None:
                self._line.up("unsub", subscription.subject)

    async def request(self, subject: str, payload: bytes = b"", timeout: float = 0.5) -> Msg:
        """Ask whoever answers. Raises `NoRespondersError`, `NatsTimeoutError`."""
        answer = await self._ask("pub", subject, payload, None, timeout=timeout, place=2)
        return Msg(self, "", answer)

    async def flush(self, timeout: int = 10) -> None:
        """Return once the server has had everything that was sent. Raises `FlushTimeoutError`."""
        try:
            await self._ask("ping", timeout=timeout)
        except NatsTimeoutError:
            raise FlushTimeoutError from None


class JetStream:
    """What `JetStreamContext` is to `NatsLog`."""

    def __init__(self, client: Client, timeout: float) -> None:
        self._client = client
        self._timeout = timeout

    async def publish(
        self,
        subject: str,
        payload: bytes,
        stream: str = "",  # noqa: ARG002  # the real one's
        headers: dict[str, str] | None = None,
    ) -> Any:
        """Have a stream store a message; return its acknowledgement."""
        try:
            return await self._client._ask("pub", subject, payload, headers, timeout=self._timeout, place=2)
        except NoRespondersError:
            raise NoStreamResponseError from None

    async def get_last_msg(self, name: str, subject: str) -> Any:
        """Return the last message on a subject. Raises `NotFoundError`."""
        return await self._call("get_last_msg", name, subject)

    async def stream_info(self, name: str) -> Any:
        """Return a stream's state. Raises `NotFoundError`."""
        return await self._call("stream_info", name, None)

    async def add_stream(self, config: StreamConfig) -> Any:
        """Make a stream, or find it made."""
        return await self._call("add_stream", config.name or "", config)

    async def update_stream(self, config: StreamConfig) -> Any:
        """Change a stream."""
        return await self._call("update_stream", config.name or "", config)

    async def add_consumer(self, name: str, config: ConsumerConfig) -> Any:
        """Make a consumer that pushes from now on."""
        return await self._call("add_consumer", name, config)

    async def purge_stream(self, name: str, seq: int, subject: str) -> Any:
        """Delete a subject's message if it stands before ``seq``."""
        return await self._call("purge_stream", name, (subject, seq))

    async def _call(self, call: str, name: str, argument: Any) -> Any:
        return await self._client._ask("api", call, name, argument, timeout=self._timeout)
