"""A nats-server in virtual time, and the narrow part of nats-py's client that `stagecast.bus.nats` uses.

The server keeps streams with one message per subject, refuses by `Nats-Expected-Last-Subject-Sequence` with error 10071,
pushes through consumers with acknowledgement subjects, idle heartbeats and flow control, and answers "no responders".
Between it and each client lies a connection that keeps the order, as TCP does: messages take a random time, stay in
the network while it is cut, and may still arrive after whoever sent them has given up or died. On top of that,
deliveries and answers can be dropped, and deliveries sent twice. As with the real client a silent cut is noticed by
missing pongs, 4 to 6 s late, and what was sent while there was no connection goes out with the next one.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, Final

from nats.errors import ConnectionClosedError, FlushTimeoutError, NoRespondersError
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js.api import ConsumerConfig, DeliverPolicy, StreamConfig
from nats.js.errors import BadRequestError, NoStreamResponseError, NotFoundError

from tests.simulation.loop import Loop, Process

EPOCH: Final = 1_790_000_000.0
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


@dataclass
class Noise:
    """What the network does to messages, as chances from 0 to 1."""

    slow: float = 0.02
    drop_delivery: float = 0.0
    repeat_delivery: float = 0.0
    drop_answer: float = 0.0
    lag: float = 0.05
    """A consumer that lags: what is overwritten meanwhile is never delivered."""


@dataclass
class Stored:
    """One message of a stream."""

    subject: str
    sequence: int
    data: bytes
    moment: float


class Stream:
    """Messages in order, the last one of each subject; its consumers."""

    def __init__(self, config: StreamConfig, created: float) -> None:
        self.config = config
        self.created = datetime.fromtimestamp(created, UTC)
        self.last_sequence = (config.first_seq or 1) - 1
        self.messages: dict[str, Stored] = {}
        self.consumers: dict[str, Consumer] = {}

    def info(self) -> Any:
        """Return what `stream_info` tells."""
        first = next((stored.sequence for stored in self.messages.values()), self.last_sequence + 1)
        state = SimpleNamespace(first_seq=first, last_seq=self.last_sequence, messages=len(self.messages))
        return SimpleNamespace(config=self.config, created=self.created, state=state)

    def after(self, sequence: int) -> list[Stored]:
        """Return what is kept after a sequence, in order."""
        found = []
        for stored in reversed(self.messages.values()):
            if stored.sequence <= sequence:
                break
            found.append(stored)
        return found[::-1]


class Consumer:
    """Pushes a stream to one inbox."""

    def __init__(self, server: Server, stream: Stream, config: ConsumerConfig, line: Line) -> None:
        self.name = f"c{next(server.numbers)}"
        self.inbox = config.deliver_subject or ""
        self.line = line
        self.delivered = 0
        self.stalled = ""
        self._server = server
        self._stream = stream
        self._heartbeat = config.idle_heartbeat or 0.0
        self._has_flow_control = bool(config.flow_control)
        is_live_only = config.deliver_policy == DeliverPolicy.NEW
        self._cursor = stream.last_sequence if is_live_only else (config.opt_start_seq or 1) - 1
        self._is_due = False
        self._quiet_since = server.loop.time()
        stream.consumers[self.name] = self
        server.process.post_at(self._quiet_since + self._heartbeat, self._beat)

    @property
    def is_gone(self) -> bool:
        """Tell whether nobody can hear it any more."""
        return self._stream.consumers.get(self.name) is not self or self.line.is_gone

    def wake(self) -> None:
        """Deliver what there is, now or after a lag."""
        if self._is_due:
            return
        if self._server.chance() < self._server.noise.lag:
            self._is_due = True
            later = self._server.loop.time() + self._server.chance() * 0.03
            self._server.process.post_at(later, self._deliver_late)
        else:
            self.deliver()

    def _deliver_late(self) -> None:
        self._is_due = False
        self.deliver()

    def deliver(self) -> None:
        """Push everything after what was pushed."""
        server, noise = self._server, self._server.noise
        if self.stalled or self.is_gone:
            return
        found = self._stream.after(self._cursor)
        for position, stored in enumerate(found, 1):
            self.delivered += 1
            self._cursor = stored.sequence
            tokens = (
                f"{self._stream.config.name}.{self.name}.1.{stored.sequence}.{self.delivered}."
                f"{int(stored.moment * 1e9)}.{len(found) - position}"
            )
            message = (self.inbox, stored.subject, stored.data, f"$JS.ACK.{tokens}", None)
            if server.chance() < noise.drop_delivery:
                server.count("delivery dropped")
                continue
            self.line.down(*message)
            if server.chance() < noise.repeat_delivery:
                server.count("delivery repeated")
                self.line.down(*message)
        if found:
            self._quiet_since = server.loop.time()
            if self._has_flow_control and server.chance() < 0.02:
                self.stalled = f"$JS.FC.{self._stream.config.name}.{self.name}.{next(server.numbers)}"
                server.stalls[self.stalled] = self
                self.line.down(self.inbox, self.inbox, b"", self.stalled, {"Status": "100"})

    def _beat(self) -> None:
        if self.is_gone:
            self._stream.consumers.pop(self.name, None)
            return
        now = self._server.loop.time()
        if now - self._quiet_since >= self._heartbeat - 1e-9:
            headers = {"Status": "100", "Nats-Last-Consumer": str(self.delivered)}
            self.line.down(self.inbox, self.inbox, b"", "", headers)
            self._quiet_since = now
        self._server.process.post_at(self._quiet_since + self._heartbeat, self._beat)


class Line:
    """One connection between a client and the server; each direction keeps its order."""

    def __init__(self, server: Server, client: Client) -> None:
        self.server = server
        self.client = client
        self.generation = server.generation
        self.is_cut = client.is_cut
        self.is_gone = False
        """The server does not have it any more."""
        self.is_given_up = False
        """The client does not have it any more."""
        self.subscriptions: dict[str, bool] = {}
        self._up_until = self._down_until = 0.0
        self._held_up: list[tuple[Any, ...]] = []
        self._held_down: list[tuple[Any, ...]] = []

    def up(self, *message: Any) -> None:
        """Send something to the server."""
        if self.is_cut:
            self._held_up.append(message)
            return
        self._up_until = max(self._up_until, self.server.delay())
        self.server.process.post_at(self._up_until, self.server.hear, self, *message)

    def down(self, *message: Any) -> None:
        """Send something to the client."""
        if self.is_gone or self.is_given_up:
            return
        if self.is_cut:
            self._held_down.append(message)
            return
        self._down_until = max(self._down_until, self.server.delay())
        self.client.process.post_at(self._down_until, self.client.hear, self, *message)

    def cut(self) -> None:
        """Let nothing through; what is sent stays in the network."""
        self.is_cut = True

    def heal(self) -> None:
        """Let everything through again that waited."""
        self.is_cut = False
        up, down, self._held_up, self._held_down = self._held_up, self._held_down, [], []
        if self.is_given_up and up:
            # Its sender is gone; how much of it the network still carries is anybody's guess.
            up = up[: self.server.loop.random.randrange(len(up) + 1)]
            self.server.count("publish after its sender had given up", len(up))
        for message in up:
            self.up(*message)
        if self.is_given_up:
            self.up("bye")
        for message in down:
            self.down(*message)


class Server:
    """The nats-server."""

    def __init__(self, loop: Loop, skew: float = 0.0, noise: Noise | None = None) -> None:
        self.loop = loop
        self.noise = noise or Noise()
        self.skew = skew
        self.process: Process = loop.process("nats-server")
        self.chance = loop.random.random
        self.numbers = itertools.count(1)
        self.generation = 0
        self.is_up = True
        self.is_quiet = False
        """Set when the faults are over: nothing is dropped, delayed long or repeated any more."""
        self.streams: dict[str, Stream] = {}
        self.stalls: dict[str, Consumer] = {}
        self.on_append: Callable[[Stream, Stored], None] = lambda _stream, _stored: None
        self.faults: dict[str, int] = {}
        self._lines: dict[int, Line] = {}
        self.clients: list[Client] = []

    def count(self, fault: str, times: int = 1) -> None:
        """Note that a fault was injected."""
        if times:
            self.faults[fault] = self.faults.get(fault, 0) + times

    def wall(self) -> float:
        """Return the server's own clock."""
        return EPOCH + self.skew + self.loop.time()

    def delay(self) -> float:
        """Return when a message that is sent now arrives."""
        chance = self.chance()
        if chance < self.noise.slow:
            return self.loop.time() + 0.2 * self.chance()
        return self.loop.time() + 0.0001 + 0.001 * chance

    # Its life.

    def kill(self) -> None:
        """End it. Connections break; what it had sent may be lost with them."""
        self.is_up = False
        self.generation += 1
        self.process.kill()
        self.stalls.clear()
        for line in list(self._lines.values()):
            line.is_gone = True
            if self.chance() < 0.5:
                line.is_given_up = True
            if not line.is_cut:
                line.client.process.post_at(self.delay() + 0.001, line.client.lost, line)
        self._lines.clear()
        for stream in self.streams.values():
            stream.consumers.clear()

    def start(self, *, empty: bool = False) -> None:
        """Start it on its disk, or on an empty one."""
        if not self.is_up:
            self.is_up = True
            self.process = self.loop.process("nats-server")
            if empty:
                self.streams.clear()

    # What it hears.

    def connect(self, client: Client) -> Line:
        """Take a connection."""
        line = self._lines[client.number] = Line(self, client)
        return line

    def hear(self, line: Line, verb: str, *arguments: Any) -> None:
        """Take what came on a connection."""
        if line.generation != self.generation or line.is_gone:
            return
        if verb == "pub":
            self._take(line, *arguments)
        elif verb == "sub":
            line.subscriptions[arguments[0]] = "*" in arguments[0]
        elif verb == "unsub":
            line.subscriptions.pop(arguments[0], None)
            self._end_consumers(arguments[0])
        elif verb == "ping":
            line.down("", "", b"", arguments[0], None)
        elif verb == "api":
            self._serve(line, *arguments)
        elif verb == "bye":
            line.is_gone = True
            if self._lines.get(line.client.number) is line:
                del self._lines[line.client.number]

    def _take(self, line: Line, subject: str, data: bytes, reply: str, headers: dict[str, str] | None) -> None:
        if subject.startswith("_INBOX."):
            asker = self._lines.get(int(subject.split(".")[1]))
            if asker is not None:
                asker.down("", "", data, subject, None)
            return
        if subject.startswith("$JS.FC."):
            consumer = self.stalls.pop(subject, None)
            if consumer is not None:
                consumer.stalled = ""
                consumer.deliver()
            return
        stream = self._stream_of(subject)
        if stream is not None:
            self._store(line, stream, subject, data, reply, headers or {})
        heard = self._pass_on(subject, data, reply)
        if reply and not heard and stream is None:
            line.down("", "", b"", reply, NoRespondersError())

    def _end_consumers(self, inbox: str) -> None:
        for stream in self.streams.values():
            for consumer in [each for each in stream.consumers.values() if each.inbox == inbox]:
                del stream.consumers[consumer.name]

    def _pass_on(self, subject: str, data: bytes, reply: str) -> bool:
        heard = False
        for each in list(self._lines.values()):
            for pattern, is_wild in each.subscriptions.items():
                if pattern == subject or (is_wild and _matches(pattern, subject)):
                    each.down(pattern, subject, data, reply, None)
                    heard = True
        return heard

    def _stream_of(self, subject: str) -> Stream | None:
        for stream in self.streams.values():
            if any(_matches(pattern, subject) for pattern in stream.config.subjects or ()):
                return stream
        return None

    def _store(
        self, line: Line, stream: Stream, subject: str, data: bytes, reply: str, headers: dict[str, str]
    ) -> None:
        held = stream.messages.get(subject)
        expected = headers.get("Nats-Expected-Last-Subject-Sequence")
        standing = held.sequence if held else 0
        if expected is not None and int(expected) != standing:
            description = f"wrong last sequence: {standing}"
            self._answer(line, reply, BadRequestError(code=400, err_code=10071, description=description))
            return
        stream.last_sequence += 1
        stored = Stored(subject, stream.last_sequence, data, self.wall())
        stream.messages.pop(subject, None)
        stream.messages[subject] = stored
        self.on_append(stream, stored)
        self._answer(line, reply, SimpleNamespace(seq=stored.sequence, stream=stream.config.name))
        for consumer in list(stream.consumers.values()):
            if consumer.line.is_gone:
                del stream.consumers[consumer.name]
            else:
                consumer.wake()

    def _answer(self, line: Line, reply: str, answer: object) -> None:
        if not reply:
            return
        if self.chance() < self.noise.drop_answer:
            self.count("answer lost")
            return
        line.down("", "", answer, reply, None)

    def _serve(self, line: Line, reply: str, call: str, name: str, argument: Any) -> None:
        stream = self.streams.get(name)
        if call == "add_stream":
            if stream is None:
                stream = self.streams[name] = Stream(argument, self.wall())
            if stream.config == argument:
                self._answer(line, reply, stream.info())
            else:
                description = "stream name already in use with a different configuration"
                self._answer(line, reply, BadRequestError(code=400, err_code=10058, description=description))
        elif stream is None:
            self._answer(line, reply, NotFoundError(code=404, err_code=10059, description="stream not found"))
        elif call == "update_stream":
            stream.config = argument
            self._answer(line, reply, stream.info())
        elif call == "stream_info":
            self._answer(line, reply, stream.info())
        elif call == "get_last_msg":
            stored = stream.messages.get(argument)
            if stored is None:
                self._answer(line, reply, NotFoundError(code=404, err_code=10037, description="no message found"))
            else:
                moment = datetime.fromtimestamp(stored.moment, UTC)
                raw = SimpleNamespace(subject=stored.subject, seq=stored.sequence, data=stored.data, time=moment)
                self._answer(line, reply, raw)
        elif call == "add_consumer":
            consumer = Consumer(self, stream, argument, line)
            # The pushes and the answer come from different places of the server: either may be first.
            if self.chance() < 0.5:
                consumer.deliver()
                self._answer(line, reply, SimpleNamespace(name=consumer.name))
            else:
                self._answer(line, reply, SimpleNamespace(name=consumer.name))
                consumer.deliver()


class Subscription:
    """A client's interest in a subject. Its messages are taken one after another, each in a turn of its own."""

    def __init__(self, client: Client, subject: str, callback: Callback) -> None:
        self.subject = subject
        self._client = client
        self._callback = callback
        self._waiting: list[Msg] = []

    async def unsubscribe(self) -> None:
        """Hear no more. Raises `ConnectionClosedError`."""
        if self._client.is_closed:
            raise ConnectionClosedError
        self._client.forget(self)
        self._waiting.clear()

    def put(self, message: Msg) -> None:
        """Queue a message for the callback."""
        self._waiting.append(message)
        if len(self._waiting) == 1:
            self._client.process.post(self._take)

    def _take(self) -> None:
        if not self._waiting:
            return
        message = self._waiting.pop(0)
        if self._waiting:
            self._client.process.post(self._take)
        taking = self._callback(message)
        try:
            taking.send(None)  # type: ignore[attr-defined]
        except StopIteration:
            return
        raise AssertionError("a callback of the bus waits; the client would hear nothing meanwhile")


class Client:
    """What `nats.aio.client.Client` is to `NatsBus`, for one process."""

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

    async def subscribe(self, subject: str, *, cb: Callback, **_limits: int) -> Subscription:
        """Hear a subject, through every loss of the connection."""
        subscription = Subscription(self, subject, cb)
        self._subscriptions.setdefault(subject, []).append(subscription)
        if self._line is not None:
            self._line.up("sub", subject)
        return subscription

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
        self, subject: str, payload: bytes, stream: str = "", headers: dict[str, str] | None = None
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

    async def _call(self, call: str, name: str, argument: Any) -> Any:
        return await self._client._ask("api", call, name, argument, timeout=self._timeout)


def _matches(pattern: str, subject: str) -> bool:
    ours, theirs = pattern.split("."), subject.split(".")
    return len(ours) == len(theirs) and all(a in ("*", b) for a, b in zip(ours, theirs, strict=True))
