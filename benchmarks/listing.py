"""Requests per second of the list of operations, against a constant body of the same size on the same server."""

from __future__ import annotations

import asyncio
import json
import socket
import statistics
import sys
import time
from dataclasses import dataclass

from processes import Child, child

COUNT = 1000
CONNECTIONS = 4
SLICE = 0.5
"""Seconds of one slice; ours and the peer take turns."""
SLICES = 8
LIST, CONSTANT, UNCHANGED = "/api/operations", "/api/constant", "/api/constant304"


@dataclass(frozen=True)
class Rates:
    """Requests per second of ours and of the peer, over all slices of each."""

    ours: float
    peer: float
    size: int
    known: bool
    ticking: bool

    @property
    def ratio(self) -> float:
        """Ours to the peer's."""
        return self.ours / self.peer


async def measure(url: str) -> list[Rates]:
    """Return the rates at rest, of 304s, and both again while every operation ticks once a second."""
    with (
        child("load.py", url) as load,
        child("served.py", url) as served,
        child("listing.py", served_at(served)) as asker,
    ):
        await asyncio.to_thread(load.ask, "begin", count=COUNT)
        while await asyncio.to_thread(served.ask, "held") < COUNT:
            await asyncio.sleep(0.05)
        size = await asyncio.to_thread(served.ask, "freeze")
        found = []
        for ticking in (False, True):
            if ticking:
                await asyncio.to_thread(load.ask, "tick")
            for peer, known in ((CONSTANT, False), (UNCHANGED, True)):
                rates = await asyncio.to_thread(_compare, asker, peer, size, known=known, ticking=ticking)
                found.append(rates)
        return found


def served_at(served: Child) -> str:
    """Return where a child serves."""
    return str(served.said).removeprefix("http://")


def _compare(asker: Child, peer: str, size: int, *, known: bool, ticking: bool) -> Rates:
    ours, theirs = [], []
    for number in range(SLICES):
        # Who goes first changes, so that neither has the warmer half.
        for path in (LIST, peer) if number % 2 else (peer, LIST):
            rate = asker.ask("rate", path=path, known=known)
            (ours if path == LIST else theirs).append(rate)
    return Rates(statistics.mean(ours), statistics.mean(theirs), size, known, ticking)


class Asker:
    """Some connections, each with one request under way at a time, so that the server always has something to do."""

    def __init__(self, address: str) -> None:
        host, _, port = address.partition(":")
        self._host = host
        self._connections = [socket.create_connection((host, int(port))) for _ in range(CONNECTIONS)]
        self._buffer = bytearray(2**22)

    def rate(self, path: str, *, known: bool) -> float:
        """Return the requests per second over one slice. ``known``: ask for what has changed since the last answer."""
        etags = dict.fromkeys(self._connections, b"")
        for connection in self._connections:
            self._send(connection, path, b"")
        count, began = 0, time.monotonic()
        while (took := time.monotonic() - began) < SLICE:
            for connection in self._connections:
                etags[connection] = self._receive(connection) or etags[connection]
                count += 1
                self._send(connection, path, etags[connection] if known else b"")
        for connection in self._connections:
            self._receive(connection)
        return count / took

    def _send(self, connection: socket.socket, path: str, etag: bytes) -> None:
        condition = b"If-None-Match: %s\r\n" % etag if etag else b""
        connection.sendall(b"GET %s HTTP/1.1\r\nHost: %s\r\n%s\r\n" % (path.encode(), self._host.encode(), condition))

    def _receive(self, connection: socket.socket) -> bytes:
        """Read one response; return its entity tag."""
        view, held = memoryview(self._buffer), 0
        while (end := self._buffer.find(b"\r\n\r\n", 0, held)) < 0:
            held += connection.recv_into(view[held:])
        head = bytes(view[:end])
        wanted = end + 4 + int(_header(head, b"content-length") or 0)
        while held < wanted:
            held += connection.recv_into(view[held:])
        assert head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 304")), head
        return _header(head, b"etag")


def _header(head: bytes, name: bytes) -> bytes:
    for line in head.split(b"\r\n"):
        key, _, value = line.partition(b":")
        if key.strip().lower() == name:
            return value.strip()
    return b""


def _main(address: str) -> None:
    asker = Asker(address)
    print(json.dumps("up"), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        print(json.dumps(asker.rate(command["path"], known=command["known"])), flush=True)


if __name__ == "__main__":
    _main(sys.argv[1])
