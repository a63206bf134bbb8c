"""A source: one connection to one holder, on which ranges of files are received."""

from __future__ import annotations

import re
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Self, cast

from stagecast.errors import HolderBusy, HolderFailed, Interrupted, InvalidManifest, PieceGiven
from stagecast.manifest import Manifest, decode
from stagecast.messages import Hindrance
from stagecast.pieces import Holder, decode_set
from stagecast.transfer.connection import Connection, parse_address
from stagecast.transfer.head import MEANINGS, Head, length_of
from stagecast.transfer.tls import refusal
from stagecast.transfer.waits import FIELD, Sent, parse_sent
from stagecast.transfer.wanted import Range, Wanted

STALL: Final = 10.0
"""Seconds without a byte after which a holder counts as hanging."""

_MOST_OF_HEAD: Final = 16 * 1024
_INBOX: Final = 64 * 1024
"""Bytes that are received at once where a head is expected: several small responses fit in."""
_MOST_OF_REFUSAL: Final = 4096
_MOST_OF_MANIFEST: Final = 64 * 1024 * 1024
_STATUS: Final = re.compile(r"HTTP/1\.[01] (\d{3})\b")


class Source:
    """Use as ``with Source(holder, token, stop) as source``, in one thread.

    The connection is made when it is needed, kept for the next request, and closed by any failure. ``window`` bounds
    the bytes that the kernel receives ahead of us; 0 leaves it to the kernel. ``stop`` is heeded within `SLICE`
    seconds, except while the system resolves a host's name. ``waiting`` is told what it waits for next: ``network``
    while it connects, then ``source``. ``tls`` as in `Connection`. Every method that asks or receives raises:

    - `HolderFailed`: the holder cannot be reached, hangs, or answers something else than what was asked;
    - `Interrupted`: ``stop`` was set.
    """

    def __init__(
        self, holder: Holder, token: str, stop: threading.Event, *, window: int = 0, stall: float = STALL,
        waiting: Callable[[Hindrance], None] = lambda _: None, tls: ssl.SSLContext | None = None,
    ) -> None:  # fmt: skip
        self.holder = holder
        self.sent: Sent | None = None
        """What the holder said of the connection when it began to answer the latest request."""
        self._authorization = f"Authorization: Bearer {token}\r\n" if token else ""
        self._stop = stop
        self._window = window
        self.stall = stall
        """Seconds without a byte after which the holder counts as hanging, from the next request on."""
        self._waiting = waiting
        self._tls = tls
        self._connection: Connection | None = None
        self._has_answered = False
        self._asked: deque[Wanted] = deque()
        self._inbox = memoryview(bytearray(_INBOX))
        self._ahead = self._inbox[:0]
        self._left = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up. Fine when there is no connection."""
        if self._connection is not None:
            self._connection.close()
        self._connection, self._has_answered = None, False
        self._ahead, self._left = self._inbox[:0], 0
        self._asked.clear()

    def ask(self, wanted: Sequence[Wanted]) -> None:
        """Ask for several things at once, without waiting for any; `begin` each in turn, and receive all of it."""
        with self._guarded():
            self._asked.extend(wanted)
            self._send("".join(map(self._request, wanted)))

    def begin(self) -> bool:
        """Wait for the head of the next response; `receive` gets its bytes.

        False where the holder does not have it, or not all of a bundle; the next answer can be waited for all the same.
        """
        with self._guarded():
            wanted = self._asked[0]
            head = self._head(lambda: "".join(map(self._request, self._asked)))
            is_busy = head.status in {409, 503} and self._skip(head)
            why = wanted.misfit(head)
            is_lacking = why == MEANINGS[404] and self._skip(head)
            if why and not is_busy and not is_lacking:
                raise HolderFailed(self.holder.name, why)
            self.sent = parse_sent(head.fields.get(FIELD.lower(), ""))
            self._asked.popleft()
            self._left = 0 if is_busy or is_lacking else wanted.length
        if is_busy:
            # Answers to what was asked for beyond it would be taken for those to the next request.
            if self._asked:
                self.close()
            raise (PieceGiven if head.status == 409 else HolderBusy)(self.holder.name, why)
        return not is_lacking

    def request(self, digest: str, start: int, stop: int, size: int) -> None:
        """Ask for one range, and wait for the head of the response."""
        self.ask([Range(digest, start, stop, size)])
        if not self.begin():
            raise HolderFailed(self.holder.name, MEANINGS[404])

    def receive(self, buffer: memoryview) -> int:
        """Receive into ``buffer`` what comes within a moment; return how many bytes that is, 0 at times."""
        with self._guarded():
            if self._stop.is_set():
                raise Interrupted("cancel")
            return self._receive_body(buffer)

    def manifest(self, digest: str) -> Manifest:
        """Return the manifest of that digest, checked."""
        with self._guarded():
            request = self._get(f"/manifests/{digest}", "")
            self._send(request)
            head = self._head(lambda: request)
            length = length_of(head)
            if head.status != 200 or not 0 < length <= _MOST_OF_MANIFEST:
                meaning = MEANINGS.get(head.status, f"answered HTTP {head.status}")
                why = "sent a manifest of no usable length" if head.status == 200 else meaning
                raise HolderFailed(self.holder.name, why)
            return self._decoded(self._body(length), digest)

    def pieces(self, digest: str, count: int) -> tuple[int, int]:
        """Return which of a manifest's ``count`` pieces the holder has, and which it gave to others just now."""
        with self._guarded():
            request = self._get(f"/pieces/{digest}", "")
            self._send(request)
            head = self._head(lambda: request)
            if head.status == 404 and self._skip(head):
                return 0, 0
            size = -(-count // 8)
            if head.status != 200 or length_of(head) != 2 * size:
                raise HolderFailed(self.holder.name, MEANINGS.get(head.status, "does not tell which pieces it has"))
            body = self._body(2 * size)
            return decode_set(body[:size], count), decode_set(body[size:], count)

    def _skip(self, head: Head) -> bool:
        """Receive a refusal, so that the next response is what follows; tell whether that went well."""
        length = length_of(head)
        if not 0 <= length <= _MOST_OF_REFUSAL or head.fields.get("connection") == "close":
            return False
        self._body(length)
        return True

    def _body(self, length: int) -> bytes:
        body = memoryview(bytearray(length))
        self._left = length
        while self._left:
            if self._receive_body(body[length - self._left :]):
                self._waiting("")
            self._waiting("source")
        return bytes(body)

    def _decoded(self, body: bytes, digest: str) -> Manifest:
        try:
            manifest = decode(body)
        except InvalidManifest as error:
            raise HolderFailed(self.holder.name, error.message) from None
        if manifest.digest != digest:
            raise HolderFailed(self.holder.name, f"sent manifest {manifest.digest} where {digest} was asked for")
        return manifest

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        # After anything unexpected nobody knows what the next byte on this connection would mean.
        try:
            yield
        except (OSError, UnicodeError) as error:
            self.close()
            if isinstance(error, ssl.SSLCertVerificationError):
                raise HolderFailed(self.holder.name, refusal(error)) from error
            raise HolderFailed(self.holder.name, getattr(error, "strerror", None) or str(error)) from error
        except BaseException:
            self.close()
            raise

    def _request(self, wanted: Wanted) -> str:
        return self._get(wanted.path, wanted.fields)

    def _get(self, path: str, field: str) -> str:
        address = parse_address(self.holder.name, self.holder.url)
        return f"GET {address.prefix}{path} HTTP/1.1\r\nHost: {address.netloc}\r\n{self._authorization}{field}\r\n"

    def _send(self, requests: str) -> None:
        try:
            self._connected().send(requests.encode())
        except ConnectionError:
            if not self._has_answered:
                raise
            self._again(requests)

    def _again(self, requests: str) -> None:
        """Ask anew on a new connection, where the old one had answered before.

        A holder may close a connection that rested; that says nothing about how a new one fares.
        """
        asked = list(self._asked)
        self.close()
        self._asked.extend(asked)
        self._connected().send(requests.encode())

    def _connected(self) -> Connection:
        if self._connection is None:
            address = parse_address(self.holder.name, self.holder.url)
            self._waiting("network")
            self._connection = Connection(self.holder.name, address, self._stop, self.stall, self._window, self._tls)
        self._connection.stall = self.stall
        self._waiting("source")
        return self._connection

    def _head(self, requests: Callable[[], str]) -> Head:
        """Return the next response's head; ``requests`` are asked for again where the connection had been closed."""
        try:
            head = self._receive_head()
        except ConnectionError:
            if not self._has_answered:
                raise
            self._again(requests())
            head = self._receive_head()
        self._has_answered = True
        return head

    def _receive_head(self) -> Head:
        connection, deadline = self._connected(), time.monotonic() + self.stall
        filled = len(self._ahead)
        self._inbox[:filled] = self._ahead
        buffer = cast("bytearray", self._inbox.obj)
        while (end := buffer.find(b"\r\n\r\n", 0, filled)) < 0:
            if filled > _MOST_OF_HEAD or time.monotonic() > deadline:
                raise HolderFailed(self.holder.name, "sent no HTTP response that makes sense")
            filled += connection.receive(self._inbox[filled:])
        self._ahead = self._inbox[end + 4 : filled]
        status, *lines = bytes(self._inbox[:end]).decode("latin-1").split("\r\n")
        found = _STATUS.match(status)
        if found is None:
            raise HolderFailed(self.holder.name, "does not speak HTTP")
        fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return Head(int(found[1]), fields)

    def _receive_body(self, buffer: memoryview) -> int:
        wanted = buffer[: self._left]
        count = min(len(wanted), len(self._ahead))
        if count:
            wanted[:count], self._ahead = self._ahead[:count], self._ahead[count:]
        if count < len(wanted):
            try:
                # The kernel fills the buffer, or returns what has come when the slice is over: few calls.
                count += self._connected().receive(wanted[count:], fill=True)
            except (OSError, HolderFailed):
                if not count:  # the next call meets the same
                    raise
        self._left -= count
        return count


def fetch_manifest(
    holder: Holder, digest: str, token: str = "", stop: threading.Event | None = None, *, stall: float = STALL,
    waiting: Callable[[Hindrance], None] = lambda _: None, tls: ssl.SSLContext | None = None,
) -> Manifest:  # fmt: skip
    """Return the manifest of that digest from a holder, checked. Blocks.

    ``waiting`` is told what it waits for next, and nothing when bytes have come.

    Raises:
        HolderFailed: it does not have it, cannot be reached, hangs, or sends something else.
        Interrupted: ``stop`` was set.
    """
    with Source(holder, token, stop or threading.Event(), stall=stall, waiting=waiting, tls=tls) as source:
        return source.manifest(digest)
