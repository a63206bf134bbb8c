"""A connection to one holder: made, sent to, received from; watched for silence and for a stop. No word of HTTP."""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
import struct
import threading
import time
from typing import Any, Final, NamedTuple, Self
from urllib.parse import urlsplit

from stagecast.errors import HolderFailed, Interrupted
from stagecast.transfer.pace import Pace

SLICE: Final = 0.2
"""Seconds that one wait in the kernel lasts at most: so soon a stop is heeded, and what came until then is counted."""

_PORTS: Final = {"http": 80, "https": 443}


class Address(NamedTuple):
    """Where a holder is: ``https`` is spoken over TLS; ``prefix`` stands before every path, without a slash behind."""

    scheme: str
    host: str
    port: int
    netloc: str
    prefix: str


def parse_address(name: str, url: str) -> Address:
    """Return the parts of a holder's URL. Raises `HolderFailed`, which names the holder."""
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS.get(parts.scheme, 0)
    except ValueError:
        port = 0
    if not port or parts.scheme not in _PORTS or not parts.hostname:
        raise HolderFailed(name, f"its address {url!r} is not like http://host:port")
    return Address(parts.scheme, parts.hostname, port, parts.netloc, parts.path.rstrip("/"))


class Connection:
    """Use in one thread; making one connects. ``stall`` and ``window`` are as in `Source`, ``name`` is the holder's.

    ``tls`` says whom to believe when ``address`` is ``https``; None takes the system's authorities.

    Raises:
        HolderFailed: nobody answers within ``stall`` seconds.
        Interrupted: ``stop`` was set.
        OSError: the network, or TLS, refuses.
    """

    def __init__(
        self, name: str, address: Address, stop: threading.Event, stall: float, window: int,
        tls: ssl.SSLContext | None,
    ) -> None:  # fmt: skip
        self._name = name
        self._stop = stop
        self.stall = stall
        """Seconds as above; may be changed at any time."""
        self._pace = Pace()
        family, kind, protocol, _, found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
        self._socket = socket.socket(family, kind, protocol)
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if window:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
            self._connect(found)
            if address.scheme == "https":
                self._socket.settimeout(stall)
                self._socket = (tls or ssl.create_default_context()).wrap_socket(
                    self._socket, server_hostname=address.host
                )
                self._socket.settimeout(SLICE)
            else:
                # The kernel keeps the time of a wait: that saves a call for each one.
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, int(SLICE * 1e6)))
                self._socket.settimeout(None)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up. Fine when that was done before."""
        self._socket.close()

    def send(self, data: bytes) -> None:
        """Send all of it; little enough for the kernel to take at once."""
        self._pace = Pace()
        self._socket.sendall(data)

    def receive(self, view: memoryview, *, fill: bool = False) -> int:
        """Receive into ``view`` what comes within a moment; return how many bytes that is, 0 at times.

        With ``fill`` it returns when the view is full or the moment is over. Raises like the class, and
        ConnectionResetError at the end of the stream.
        """
        if self._stop.is_set():
            raise Interrupted("cancel")
        since = time.monotonic()
        if isinstance(self._socket, ssl.SSLSocket):
            count = self._receive_records(self._socket, view, since + SLICE if fill else since)
        else:
            count = self._receive_plain(view, socket.MSG_WAITALL if fill else 0)
        self._pace = self._pace.after(time.monotonic() - since, count, self.stall)
        if count < len(view) and (why := self._pace.complaint(self.stall)) and (fill or not count):
            raise HolderFailed(self._name, why)
        return count

    def _receive_plain(self, view: memoryview, flags: int) -> int:
        try:
            count = self._socket.recv_into(view, 0, flags)
        except BlockingIOError:
            return 0
        if count == 0:
            raise ConnectionResetError("closed the connection too early")
        return count

    def _receive_records(self, connection: ssl.SSLSocket, view: memoryview, until: float) -> int:
        # A record has 16 KiB at most, and each call returns one.
        done = 0
        try:
            while done < len(view):
                count = connection.recv_into(view[done:])
                if count == 0 and not done:
                    raise ConnectionResetError("closed the connection too early")
                done += count
                if count == 0 or time.monotonic() >= until:
                    break
        except TimeoutError:
            pass
        return done

    def _connect(self, found: tuple[Any, ...]) -> None:
        self._socket.settimeout(0)
        code, deadline = self._socket.connect_ex(found), time.monotonic() + self.stall
        poll = select.poll()
        poll.register(self._socket, select.POLLOUT)
        while code == errno.EINPROGRESS:
            if self._stop.is_set():
                raise Interrupted("cancel")
            if poll.poll(SLICE * 1000):
                code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            elif time.monotonic() > deadline:
                raise HolderFailed(self._name, f"could not be connected to within {self.stall:g} s")
        if code:
            raise OSError(code, os.strerror(code))
