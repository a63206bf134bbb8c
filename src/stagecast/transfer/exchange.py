"""One connection to a `FileServer`, from its first request to its last.

Requests may be sent ahead of their answers (RFC 9112, section 9.3.2): that is how many small files move without a
round trip for each.
"""

from __future__ import annotations

import hmac
import re
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from functools import partial
from http import HTTPStatus
from math import inf
from typing import Final, cast

import msgspec

from stagecast.errors import BadInput
from stagecast.manifest import Manifest, encode
from stagecast.partial import Partial
from stagecast.pieces import Piece, encode_set, parse_range, pieces_between, pieces_of, set_of
from stagecast.store import Store
from stagecast.transfer import congestion, tcp_info, waits
from stagecast.transfer.bundles import Bundles
from stagecast.transfer.outlet import Outlet
from stagecast.transfer.request import Request, parse_request
from stagecast.transfer.sends import Declined, Sending, Sends
from stagecast.transfer.wanted import SHARED

IDLE: Final = 60
"""Seconds without a byte in either direction after which a connection is given up."""

UNSENT: Final = 128 * 1024
"""Bytes that may wait in the kernel, not sent yet. Without this bound a receiver that dies costs up to 4 MiB more per
connection, and `FileServer.bytes_sent` would run that far ahead of what has left."""

_MOST_OF_HEAD: Final = 16 * 1024
_PATH: Final = re.compile(r"/(?:(files|manifests|pieces)/([0-9a-f]{64})|bundles/([0-9a-f]{64})/([0-9,-]+))")


class _Unreadable(Exception):
    """What came is no request that can be answered; ``status`` says how it is refused."""

    def __init__(self, status: int) -> None:
        self.status = status


class Exchange:
    """`run` serves the connection until it ends. Without a ``store``, each request is told to come back later.

    ``sends`` is told of what is sent.
    """

    def __init__(self, connection: socket.socket, store: Store | None, token: str, sends: Sends) -> None:
        self._connection = connection
        self._store = store
        self._bundles = Bundles(store) if store is not None else None
        self._token = token
        self._sends = sends
        self._outlet = Outlet(connection, sends)
        self._inbox = b""
        self.idle_since = inf
        """Since when nothing was asked on it, by the monotonic clock; `inf` while a request comes or is answered."""
        self._request = Request("", "", {}, is_last=True)

    def run(self) -> None:
        """Answer one request after the other. Raises `OSError` when the client goes away."""
        self._prepare()
        try:
            while (head := self._read_head()) is not None:
                self._request = parse_request(head)
                self._answer()
                if self._request.is_last:
                    break
        except ValueError:
            self._refuse_unread(400)
        except _Unreadable as error:
            self._refuse_unread(error.status)
        # What else has come is taken in, or the answer would be lost to a reset.
        self._connection.shutdown(socket.SHUT_WR)

    def _prepare(self) -> None:
        connection, limit = self._connection, struct.pack("ll", IDLE, 0)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)
        congestion.settle(connection)
        if isinstance(connection, ssl.SSLSocket):
            connection.settimeout(IDLE)
            connection.do_handshake()
            return
        # Blocking, so that the kernel waits for room and not a loop in Python; it ends a wait too long.
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)

    def _read_head(self) -> bytes | None:
        """Return the next request's head; None when the client has no more."""
        while (end := self._inbox.find(b"\r\n\r\n")) < 0:
            if len(self._inbox) > _MOST_OF_HEAD:
                raise _Unreadable(431)
            self.idle_since = inf if self._inbox else time.monotonic()
            came = self._connection.recv(_MOST_OF_HEAD)
            self.idle_since = inf
            if not came:
                return None
            self._inbox = (self._inbox + came).lstrip(b"\r\n") if not self._inbox else self._inbox + came
        head, self._inbox = self._inbox[:end], self._inbox[end + 4 :]
        return head

    def _answer(self) -> None:
        if self._store is None:
            self._request = self._request._replace(is_last=True)
            self._refuse(503, "busy", "too many connections; ask again in a second", {"Retry-After": "1"})
        elif self._request.method not in {"GET", "HEAD"}:
            raise _Unreadable(501)
        elif not _is_allowed(self._request.fields, self._token):
            self._refuse(401, "unauthorized", "unauthorized", {"WWW-Authenticate": "Bearer"})
        elif (match := _PATH.fullmatch(self._request.path)) is None:
            self._refuse(404, "not_found", f"nothing is served at {self._request.path}")
        elif match[1] == "manifests":
            self._send_manifest(self._store, match[2])
        elif match[1] == "pieces":
            self._send_pieces(self._store, match[2])
        elif match[1] == "files":
            self._send_file(self._store, match[2])
        else:
            self._send_bundle(match[3], match[4])

    def _send_manifest(self, store: Store, digest: str) -> None:
        manifest = store.manifest_by_digest(digest)
        if manifest is None:
            self._refuse(404, "not_found", f"no manifest {digest} is here")
        else:
            self._send(200, encode(manifest), {"ETag": f'"{digest}"'})

    def _send_pieces(self, store: Store, digest: str) -> None:
        """Answer which pieces of a manifest are here, and which somebody got from here lately: two sets of bits."""
        manifest, arrival = store.manifest_by_digest(digest), store.arriving_manifest(digest)
        if manifest is None and arrival is None:
            self._refuse(404, "not_found", f"no manifest {digest} is here")
            return
        manifest = manifest or cast("Partial", arrival).manifest
        pieces = list(pieces_of(manifest))
        have = (1 << len(pieces)) - 1 if arrival is None else set_of(map(arrival.is_verified, pieces))
        sent = set_of(self._is_sent(manifest, pieces))
        body = encode_set(have, len(pieces)) + encode_set(sent, len(pieces))
        self._send(200, body, {"Content-Type": "application/octet-stream"})

    def _is_sent(self, manifest: Manifest, pieces: list[Piece]) -> Iterator[bool]:
        begun = [{start for start, _ in self._sends.lately(file.digest)} for file in manifest.files]
        return (piece.offset in begun[piece.file] for piece in pieces)

    def _send_file(self, store: Store, digest: str) -> None:
        found = store.locate(digest)
        arriving = store.arriving(digest) if found is None else None
        is_here: Callable[[int, int], bool] = _always
        if arriving is not None:
            arrival, number = arriving
            found = arrival.files.place(number), arrival.manifest.files[number].size
            is_here = partial(_holds, arrival, number)
        if found is None:
            self._refuse(404, "not_found", f"no file {digest} is here")
            return
        path, size = found
        try:
            file = path.open("rb", buffering=0)
        except OSError as error:
            self._refuse(404, "not_found", f"file {digest} cannot be read: {error.strerror}")
            return
        with file:
            self._send_range(file.fileno(), digest, size, is_here)

    def _send_range(self, file: int, digest: str, size: int, is_here: Callable[[int, int], bool]) -> None:
        etag, is_get = f'"{digest}"', self._request.method == "GET"
        asked, bounds = self._request.fields.get("range") if is_get else None, None
        if asked is not None and self._request.fields.get("if-range", etag) == etag:
            try:
                bounds = parse_range(asked, size)
            except BadInput as error:
                self._refuse(416, error.code, error.message, {"Content-Range": f"bytes */{size}"})
                return
        start, stop = bounds or (0, size)
        if not is_here(start, stop):
            self._refuse(404, "not_found", f"bytes {start}-{stop} of file {digest} are not here yet")
            return
        try:
            sending = self._sends.begin(digest, start, stop, self._wish)
        except Declined as no:
            self._decline(no)
            return
        try:
            self._send_all(file, digest, size, bounds, is_here, sending)
        finally:
            self._sends.end(sending)

    def _send_all(
        self, file: int, digest: str, size: int, bounds: tuple[int, int] | None, is_here: Callable[[int, int], bool],
        sending: Sending,
    ) -> None:  # fmt: skip
        start, stop = bounds or (0, size)
        fields = {"Accept-Ranges": "bytes"}
        if bounds:
            fields["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        if self._begin_bytes(206 if bounds else 200, digest, stop - start, fields):
            self._outlet.send(file, start, stop, is_here, sending)

    def _begin_bytes(self, status: int, digest: str, length: int, fields: dict[str, str]) -> bool:
        """Send the head of a response that is bytes of files; tell whether they are to follow."""
        fields |= {"Content-Type": "application/octet-stream", "ETag": f'"{digest}"'}
        if sent := tcp_info.said(self._connection):
            fields[waits.FIELD] = sent
        are_to_follow = self._request.method == "GET" and length > 0
        self._outlet.say(self._head(status, length, fields), more=are_to_follow)
        return are_to_follow

    def _send_bundle(self, digest: str, numbers: str) -> None:
        """Send whole pieces one behind the other, as the answer to one request; all of them or none."""
        try:
            parts = self._bundles.find(digest, numbers) if self._bundles else None
        except BadInput as error:
            self._refuse(400, error.code, error.message)
            return
        if parts is None:
            self._refuse(404, "not_found", f"not all of these pieces of {digest} are here")
            return
        begun: list[Sending] = []
        try:
            begun.extend(self._sends.begin(part.digest, part.start, part.stop, self._wish) for part in parts)
            if self._begin_bytes(200, digest, sum(part.stop - part.start for part in parts), {}):
                self._outlet.send_parts(parts, begun)
        except Declined as no:
            self._decline(no)
        finally:
            for sending in begun:
                self._sends.end(sending)

    @property
    def _wish(self) -> str:
        return self._request.fields.get(SHARED.lower(), "")

    def _decline(self, no: Declined) -> None:
        self._refuse(no.status, no.code, no.message, {"Retry-After": "1"})

    def _refuse(self, status: int, code: str, message: str, fields: dict[str, str] | None = None) -> None:
        self._send(status, msgspec.json.encode({"error": {"code": code, "message": message}}), fields or {})

    def _refuse_unread(self, status: int) -> None:
        self._request = self._request._replace(method="GET", is_last=True)
        self._refuse(status, "bad_input", HTTPStatus(status).phrase)

    def _send(self, status: int, body: bytes, fields: dict[str, str]) -> None:
        head = self._head(status, len(body), {"Content-Type": "application/json", **fields})
        self._connection.sendall(head + (b"" if self._request.method == "HEAD" else body))

    def _head(self, status: int, length: int, fields: dict[str, str]) -> bytes:
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", "Server: stagecast", f"Content-Length: {length}"]
        lines += [f"{name}: {value}" for name, value in fields.items()]
        if self._request.is_last:
            lines.append("Connection: close")
        return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _always(start: int, stop: int) -> bool:  # noqa: ARG001  # where all of the file is here
    return True


def _holds(arrival: Partial, file: int, start: int, stop: int) -> bool:
    return all(map(arrival.is_verified, pieces_between(arrival.manifest, file, start, stop)))


def _is_allowed(fields: dict[str, str], token: str) -> bool:
    given = fields.get("authorization", "")
    # As the bytes came, whatever they mean.
    return not token or hmac.compare_digest(given.encode("latin-1"), f"Bearer {token}".encode())
