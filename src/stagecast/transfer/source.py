"""A source: one connection to one holder, on which ranges of files are received."""

from __future__ import annotations

import errno
import os
import re
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Self
from urllib.parse import SplitResult, urlsplit

from stagecast.errors import BadInput, HolderFailed, Interrupted, InvalidManifest
from stagecast.manifest import Manifest, decode
from stagecast.messages import Hindrance
from stagecast.pieces import parse_content_range
from stagecast.transfer.pace import Pace
from stagecast.transfer.waits import FIELD, Sent, parse_sent

STALL: Final = 10.0
"""Seconds without a byte after which a holder counts as hanging."""

_SLICE: Final = 0.2
"""Seconds that one wait in the kernel lasts at most: so soon a stop is heeded, and what came until then is counted."""

_MOST_OF_HEAD: Final = 16 * 1024
_MOST_OF_MANIFEST: Final = 64 * 1024 * 1024
_STATUS: Final = re.compile(r"HTTP/1\.[01] (\d{3})\b")
_MEANINGS: Final = {
    200: "ignores ranges, and would send the whole file",
    401: "refused the cluster's token",
    404: "does not have it",
    503: "serves too many others just now",
}


@dataclass(frozen=True)
class Holder:
    """A process that can serve a model's pieces; ``url`` is that of its `FileServer`."""

    name: str
    url: str


class Head(NamedTuple):
    """The head of a response. Names of ``fields`` are in lower case; ``rest`` is what came of the body with it."""

    status: int
    fields: dict[str, str]
    rest: bytes


class Source:
    """Use as ``with Source(holder, token, stop) as source``, in one thread.

    The connection is made when it is needed, kept for the next request, and closed by any failure. ``window`` bounds
    the bytes that the kernel receives ahead of us; 0 leaves it to the kernel. ``stop`` is heeded within `_SLICE`
    seconds, except while the system resolves a host's name. ``waiting`` is told what it waits for next: ``network``
    while it connects, then ``source``. Every method that asks or receives raises:

    - `HolderFailed`: the holder cannot be reached, hangs, or answers something else than what was asked;
    - `Interrupted`: ``stop`` was set.
    """

    def __init__(
        self, holder: Holder, token: str, stop: threading.Event, *, window: int = 0, stall: float = STALL,
        waiting: Callable[[Hindrance], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self.holder = holder
        self.sent: Sent | None = None
        """What the holder said of the connection when it began to answer the latest `request`."""
        self._token = token
        self._stop = stop
        self._window = window
        self._stall = stall
        self._waiting = waiting
        self._pace = Pace()
        self._socket: socket.socket | None = None
        self._ahead = b""
        self._left = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. The next request makes a new one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def request(self, digest: str, start: int, stop: int, size: int) -> None:
        """Ask for the bytes from ``start`` to ``stop`` (excluded) of a file of ``size`` bytes; `receive` gets them."""
        with self._guarded():
            head = self._ask(f"/files/{digest}", f"Range: bytes={start}-{stop - 1}\r\n")
            why = _misfit(head, digest, (start, stop, size))
            if why:
                raise HolderFailed(self.holder.name, why)
            self.sent = parse_sent(head.fields.get(FIELD.lower(), ""))
            self._ahead, self._left = head.rest, stop - start

    def receive(self, buffer: memoryview) -> int:
        """Receive into ``buffer`` what comes within a moment; return how many bytes that is, 0 at times."""
        with self._guarded():
            return self._receive_body(buffer)

    def manifest(self, digest: str) -> Manifest:
        """Return the manifest of that digest, checked."""
        with self._guarded():
            head = self._ask(f"/manifests/{digest}", "")
            length = _length(head)
            if head.status != 200 or not 0 < length <= _MOST_OF_MANIFEST:
                meaning = _MEANINGS.get(head.status, f"answered HTTP {head.status}")
                why = "sent a manifest of no usable length" if head.status == 200 else meaning
                raise HolderFailed(self.holder.name, why)
            body = memoryview(bytearray(length))
            self._ahead, self._left = head.rest, length
            while self._left:
                if self._receive_body(body[length - self._left :]):
                    self._waiting("")
                self._waiting("source")
            return self._decoded(bytes(body), digest)

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
            why = error.strerror if isinstance(error, OSError) else None
            raise HolderFailed(self.holder.name, why or str(error)) from error
        except BaseException:
            self.close()
            raise

    def _ask(self, path: str, field: str) -> Head:
        was_open = self._socket is not None
        try:
            return self._exchange(path, field)
        except ConnectionError:
            # A holder may close a connection that rested; that says nothing about how a new one fares.
            self.close()
            if not was_open:
                raise
            return self._exchange(path, field)

    def _exchange(self, path: str, field: str) -> Head:
        url = urlsplit(self.holder.url)
        if self._socket is None:
            self._waiting("network")
            self._socket = self._connect(url)
        self._waiting("source")
        authorization = f"Authorization: Bearer {self._token}\r\n" if self._token else ""
        request = f"GET {url.path.rstrip('/')}{path} HTTP/1.1\r\nHost: {url.netloc}\r\n{authorization}{field}\r\n"
        self._socket.sendall(request.encode())
        return self._receive_head()

    def _connect(self, url: SplitResult) -> socket.socket:
        try:
            host, port = url.hostname, url.port or 80
        except ValueError:
            host, port = None, 0
        if url.scheme != "http" or not host:
            raise HolderFailed(self.holder.name, f"its address {self.holder.url!r} is not like http://host:port")
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        connection = socket.socket(family, kind, protocol)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, int(_SLICE * 1e6)))
            if self._window:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._window)
            self._await_connection(connection, address)
        except BaseException:
            connection.close()
            raise
        return connection

    def _await_connection(self, connection: socket.socket, address: tuple[Any, ...]) -> None:
        connection.settimeout(0)
        code, deadline = connection.connect_ex(address), time.monotonic() + self._stall
        poll = select.poll()
        poll.register(connection, select.POLLOUT)
        while code == errno.EINPROGRESS:
            self._check_stop()
            if poll.poll(_SLICE * 1000):
                code = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            elif time.monotonic() > deadline:
                raise HolderFailed(self.holder.name, f"could not be connected to within {self._stall:g} s")
        if code:
            raise OSError(code, os.strerror(code))
        connection.settimeout(None)

    def _receive_head(self) -> Head:
        buffer, filled, deadline = bytearray(_MOST_OF_HEAD), 0, time.monotonic() + self._stall
        self._pace, self._left = Pace(), 0
        with memoryview(buffer) as view:
            while (end := buffer.find(b"\r\n\r\n", 0, filled)) < 0:
                if filled == len(view) or time.monotonic() > deadline:
                    raise HolderFailed(self.holder.name, "sent no HTTP response that makes sense")
                filled += self._receive(view[filled:], 0)
        lines = buffer[:end].decode("latin-1").split("\r\n")
        status = _STATUS.match(lines[0])
        if status is None:
            raise HolderFailed(self.holder.name, "does not speak HTTP")
        fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        return Head(int(status[1]), fields, bytes(buffer[end + 4 : filled]))

    def _receive_body(self, buffer: memoryview) -> int:
        wanted = buffer[: self._left]
        if self._ahead:
            count = min(len(wanted), len(self._ahead))
            wanted[:count], self._ahead = self._ahead[:count], self._ahead[count:]
        else:
            # The kernel fills the buffer, or returns what has come when the slice is over: few calls, steady counts.
            count = self._receive(wanted, socket.MSG_WAITALL)
        self._left -= count
        return count

    def _receive(self, view: memoryview, flags: int) -> int:
        self._check_stop()
        assert self._socket is not None  # noqa: S101  # requested first
        since = time.monotonic()
        try:
            count = self._socket.recv_into(view, 0, flags)
            if count == 0:
                raise ConnectionResetError("closed the connection too early")
        except BlockingIOError:
            count = 0
        self._pace = self._pace.after(time.monotonic() - since, count, self._stall)
        if (count == 0 or count < self._left) and (why := self._pace.complaint(self._stall)):
            raise HolderFailed(self.holder.name, why)
        return count

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise Interrupted("cancel")


def fetch_manifest(
    holder: Holder, digest: str, token: str = "", stop: threading.Event | None = None, *, stall: float = STALL,
    waiting: Callable[[Hindrance], None] = lambda _: None,
) -> Manifest:  # fmt: skip
    """Return the manifest of that digest from a holder, checked. Blocks.

    ``waiting`` is told what it waits for next, and nothing when bytes have come.

    Raises:
        HolderFailed: it does not have it, cannot be reached, hangs, or sends something else.
        Interrupted: ``stop`` was set.
    """
    with Source(holder, token, stop or threading.Event(), stall=stall, waiting=waiting) as source:
        return source.manifest(digest)


def _length(head: Head) -> int:
    """Return the bytes of the body, or -1 where that cannot be told from the head or they are encoded."""
    text = head.fields.get("content-length", "")
    is_plain = head.fields.get("content-encoding", "identity") == "identity" and "transfer-encoding" not in head.fields
    return int(text) if is_plain and re.fullmatch(r"[0-9]{1,19}", text) else -1


def _misfit(head: Head, digest: str, asked: tuple[int, int, int]) -> str:
    """Return in what a response is not the range that was asked for, (start, stop, size); empty if it is."""
    if "html" in head.fields.get("content-type", ""):
        return f"answered HTTP {head.status} with a page for people, as a proxy does that stands in between"
    if head.status != 206:
        return _MEANINGS.get(head.status, f"answered HTTP {head.status}")
    if head.fields.get("etag", f'"{digest}"') != f'"{digest}"':
        return f"has another file there, with the ETag {head.fields['etag']}"
    try:
        found = parse_content_range(head.fields.get("content-range", ""))
    except BadInput as error:
        return error.message
    if found != asked:
        return (
            f"sent bytes {found[0]}-{found[1]} of {found[2]} where {asked[0]}-{asked[1]} of {asked[2]} were asked for"
        )
    if not len(head.rest) <= _length(head) == asked[1] - asked[0]:
        return "sent a body that is not as long as its own range"
    return ""
