"""The connection to NATS: nats-py's client, with shorter ways for what a log sends most of.

The only file that knows the inside of nats-py, which is pinned for it. By its public methods each message of the log
wakes the task that reads, has its headers parsed (nobody here reads those of a delivery), passes through a queue and
wakes a second task; each publish wakes a third. That is half of what following a busy log costs, and a tenth of the
time that a word takes from its owner to whoever waits. All else is the client's own. See
docs/decisions/2026-11-25-short-ways.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import TimeoutError as NatsTimeoutError
from nats.protocol.parser import AWAITING_CONTROL_LINE

_logger = logging.getLogger(__name__)

Hear = Callable[[Msg], None]

DELIVERY: Final = "$JS.ACK."
"""How the reply subject of what a consumer delivers begins; of all that a server says of itself, it does not."""
_DELIVERY: Final = DELIVERY.encode()


class Connection(Client):
    """nats-py's client."""

    def __init__(self) -> None:
        super().__init__()
        self._hearers: dict[int, Hear] = {}
        self._numbers = itertools.count(1)
        self._resting: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def hearing(self, subject: str, hear: Hear) -> AsyncIterator[None]:
        """Call ``hear`` with each message on ``subject`` as it is read, in order, within the block.

        A delivery comes without its headers, anything else with them. Nothing is bounded: ``hear`` keeps what it wants.
        """

        async def later(message: Msg) -> None:
            hear(message)

        subscription = await self.subscribe(subject, cb=later, pending_msgs_limit=-1, pending_bytes_limit=-1)
        number = subscription._id  # noqa: SLF001 - nats-py has no other word for it
        self._hearers[number] = hear
        try:
            yield
        finally:
            del self._hearers[number]
            with contextlib.suppress(NatsError, OSError):
                await subscription.unsubscribe()

    def rest(self, seconds: float) -> None:
        """Leave what comes in the kernel for so long, to be read in one go; not while somebody waits for an answer."""
        wire = self._wire()
        if wire is not None and not wire.is_closing() and self._resting is None and not self._resp_map:
            wire.pause_reading()
            self._resting = asyncio.get_running_loop().call_later(seconds, self._go_on, wire)

    async def _request_new_style(
        self, subject: str, payload: bytes, timeout: float = 1, headers: dict[str, Any] | None = None
    ) -> Msg:
        """Ask under a number, where the client draws a random name for each question, and read on for the answer."""
        if self._resting is not None:
            self._resting.cancel()
            self._go_on(self._wire())
        if not self._resp_sub_prefix:
            await self._init_request_sub()
        assert self._resp_sub_prefix  # noqa: S101 - just made
        token, inbox = str(next(self._numbers)), self._resp_sub_prefix.decode()
        answer: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        self._resp_map[token] = answer
        try:
            await self.publish(subject, payload, reply=inbox + token, headers=headers)
            async with asyncio.timeout(timeout):
                return await answer
        except TimeoutError:
            raise NatsTimeoutError from None
        finally:
            self._resp_map.pop(token, None)

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        hear = self._hearers.get(sid)
        if hear is None:
            await super()._process_msg(sid, subject, reply, data, headers)
        else:
            parsed = None if reply.startswith(_DELIVERY) else await self._process_headers(headers)
            _pass_on(hear, Msg(self, subject.decode(), reply.decode(), data, parsed))

    async def _read_loop(self) -> None:
        """Read as the client does, what `_deliver` leaves."""
        reader = getattr(self._transport, "_io_reader", None)
        if reader is not None:
            reader.feed_data = partial(self._feed, reader, reader.feed_data)
        await super()._read_loop()

    def _feed(self, reader: Any, feed: Callable[[bytes], None], data: bytes) -> None:
        """Take what the socket had: deliveries at once, anything else, and all behind it, by the client's own loop."""
        is_next = not reader._buffer and not self._ps.buf and self._ps.state == AWAITING_CONTROL_LINE  # noqa: SLF001
        rest = data[self._deliver(data) :] if is_next else data
        if rest:
            feed(rest)

    def _deliver(self, data: bytes) -> int:
        """Pass on the whole deliveries that ``data`` begins with, and return where they end."""
        at = 0
        while (end := data.find(b"\r\n", at)) > 0:
            # (H)MSG <subject> <sid> <reply> [<bytes of headers>] <bytes of all>
            words = data[at:end].split()
            if len(words) not in {5, 6} or not words[3].startswith(_DELIVERY) or not words[0].endswith(b"MSG"):
                break
            hear, begin = self._hearers.get(int(words[2])), end + 2
            after = begin + int(words[-1])
            if hear is None or after + 2 > len(data):
                break
            begin += int(words[4]) if len(words) == 6 else 0
            at = after + 2
            _pass_on(hear, Msg(self, words[1].decode(), words[3].decode(), data[begin:after]))
        return at

    async def _flush_pending(self, force_flush: bool = False) -> None:  # noqa: FBT001, FBT002 - nats-py's own
        """Write at once what is to be sent, unless something waits before it: then the flusher takes it on."""
        wire = self._wire()
        is_free = wire is not None and not wire.is_closing() and not wire.get_write_buffer_size()
        if wire is None or not is_free or force_flush or not self.is_connected:
            await super()._flush_pending(force_flush)
        else:
            pending, self._pending, self._pending_data_size = self._pending, [], 0
            wire.writelines(pending)

    def _wire(self) -> asyncio.Transport | None:
        """Return what the loop reads from and writes to; over a WebSocket there is none that could be shortened."""
        writer = getattr(self._transport, "_io_writer", None)
        return writer.transport if writer is not None else None

    def _go_on(self, wire: asyncio.Transport | None) -> None:
        self._resting = None
        if wire is not None and not wire.is_closing():
            wire.resume_reading()


def _pass_on(hear: Hear, message: Msg) -> None:
    try:
        hear(message)
    except Exception:
        # It would end the reading of everything.
        _logger.exception("hearing %s", message.subject)
