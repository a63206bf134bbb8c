"""A stream of the simulated server, the last message of each subject, and what it pushes to its consumers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from nats.js.api import ConsumerConfig, DeliverPolicy, StreamConfig

if TYPE_CHECKING:
    from tests.simulation.network import Line
    from tests.simulation.server import Server


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

    def purge(self, subject: str, before: int) -> None:
        """Delete a subject's message if it stands before a sequence."""
        held = self.messages.get(subject)
        if held is not None and held.sequence < before:
            del self.messages[subject]

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
