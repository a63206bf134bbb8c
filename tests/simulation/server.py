"""A nats-server in virtual time.

It keeps streams with one message per subject, refuses by `Nats-Expected-Last-Subject-Sequence` with error 10071, pushes
through consumers with acknowledgement subjects, idle heartbeats and flow control, and answers "no responders". It can
be killed, started on its disk or on an empty one, and stopped for a while. Deliveries and answers can be dropped, and
deliveries sent twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

from nats.errors import NoRespondersError
from nats.js.api import StreamConfig
from nats.js.errors import BadRequestError, NotFoundError

from tests.simulation.loop import Loop, Process
from tests.simulation.network import Line, Noise
from tests.simulation.stream import Consumer, Stored, Stream

if TYPE_CHECKING:
    from tests.simulation.client import Client

EPOCH: Final = 1_790_000_000.0


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

    def _make(self, name: str, config: StreamConfig) -> object:
        stream = self.streams.setdefault(name, Stream(config, self.wall()))
        if stream.config == config:
            return stream.info()
        description = "stream name already in use with a different configuration"
        return BadRequestError(code=400, err_code=10058, description=description)

    def _serve(self, line: Line, reply: str, call: str, name: str, argument: Any) -> None:
        stream = self.streams.get(name)
        if call == "add_stream":
            self._answer(line, reply, self._make(name, argument))
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
        elif call == "purge_stream":
            stream.purge(*argument)
            self._answer(line, reply, SimpleNamespace(success=True))
        elif call == "add_consumer":
            consumer = Consumer(self, stream, argument, line)
            # The pushes and the answer come from different places of the server: either may be first.
            if self.chance() < 0.5:
                consumer.deliver()
                self._answer(line, reply, SimpleNamespace(name=consumer.name))
            else:
                self._answer(line, reply, SimpleNamespace(name=consumer.name))
                consumer.deliver()


@lru_cache(maxsize=4096)
def _matches(pattern: str, subject: str) -> bool:
    ours, theirs = pattern.split("."), subject.split(".")
    return len(ours) == len(theirs) and all(a in ("*", b) for a, b in zip(ours, theirs, strict=True))
