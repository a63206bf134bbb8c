"""One connection to a `FileServer`, from its first request to its last."""

from __future__ import annotations

import hmac
import os
import re
import socket
import struct
from collections.abc import Callable
from email.message import Message
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from io import FileIO
from socketserver import BaseServer
from typing import Final, cast

import msgspec

from stagecast.errors import BadInput
from stagecast.manifest import encode
from stagecast.pieces import parse_range
from stagecast.store import Store
from stagecast.transfer import tcp_info, waits

IDLE: Final = 60
"""Seconds without a byte in either direction after which a connection is given up."""

UNSENT: Final = 128 * 1024
"""Bytes that may wait in the kernel, not sent yet. Without this bound a receiver that dies costs up to 4 MiB more per
connection, and `FileServer.bytes_sent` would run that far ahead of what has left."""

_STEP: Final = 1024 * 1024
_PATH: Final = re.compile(r"/(files|manifests)/([0-9a-f]{64})")


class Exchange(BaseHTTPRequestHandler):
    """Making one serves the connection until it ends. Without a ``store``, each request is told to come back later.

    Raises:
        OSError: the client went away.
    """

    protocol_version = "HTTP/1.1"
    server_version = "stagecast"
    sys_version = ""
    timeout = IDLE
    disable_nagle_algorithm = True

    def __init__(
        self, connection: socket.socket, store: Store | None, token: str, count: Callable[[int], None]
    ) -> None:
        self._store = store
        self._token = token
        self._count = count
        # The base class only hands the server on to code that is not used here.
        super().__init__(connection, None, cast("BaseServer", None))

    def setup(self) -> None:
        """Prepare the socket."""
        super().setup()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", IDLE, 0))
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)

    def do_GET(self) -> None:
        """Answer one request."""
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # a body that nobody reads must not be taken for the next request
        if self._store is None:
            self.close_connection = True
            self._refuse(503, "busy", "too many connections; ask again in a second", {"Retry-After": "1"})
        elif not _is_allowed(self.headers, self._token):
            self._refuse(401, "unauthorized", "unauthorized", {"WWW-Authenticate": "Bearer"})
        elif (match := _PATH.fullmatch(self.path)) is None:
            self._refuse(404, "not_found", f"nothing is served at {self.path}")
        elif match[1] == "manifests":
            self._send_manifest(self._store, match[2])
        else:
            self._send_file(self._store, match[2])

    def do_HEAD(self) -> None:
        """Answer one request without the body."""
        self.do_GET()

    def _send_manifest(self, store: Store, digest: str) -> None:
        manifest = store.manifest_by_digest(digest)
        if manifest is None:
            self._refuse(404, "not_found", f"no manifest {digest} is here")
        else:
            self._send(200, encode(manifest), {"ETag": f'"{digest}"'})

    def _send_file(self, store: Store, digest: str) -> None:
        found = store.locate(digest)
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
            self._send_range(file, digest, size)

    def _send_range(self, file: FileIO, digest: str, size: int) -> None:
        etag = f'"{digest}"'
        asked = self.headers.get("Range") if self.command == "GET" else None
        if asked is None or self.headers.get("If-Range", etag) != etag:
            bounds = None
        else:
            try:
                bounds = parse_range(asked, size)
            except BadInput as error:
                self._refuse(416, error.code, error.message, {"Content-Range": f"bytes */{size}"})
                return
        start, stop = bounds or (0, size)
        self.send_response(206 if bounds else 200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", etag)
        if sent := tcp_info.said(self.connection):
            self.send_header(waits.FIELD, sent)
        if bounds:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.end_headers()
        if self.command == "GET":
            self._send_bytes(file, start, stop)

    def _send_bytes(self, file: FileIO, start: int, stop: int) -> None:
        # Blocking, so that the kernel waits for room and not a loop in Python; SO_SNDTIMEO ends a wait too long.
        self.connection.settimeout(None)
        while start < stop:
            sent = os.sendfile(self.connection.fileno(), file.fileno(), start, min(_STEP, stop - start))
            if sent == 0:
                raise OSError("the file became shorter while it was sent")
            self._count(sent)
            start += sent
        self.connection.settimeout(IDLE)

    def _refuse(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        self._send(status, msgspec.json.encode({"error": {"code": code, "message": message}}), headers or {})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse what the base class cannot read, as JSON like everything else."""
        self.close_connection = True
        # What could not be read counts as HTTP/0.9 there, which has neither status nor fields.
        self.request_version = self.protocol_version
        self._refuse(code, "bad_input", message or explain or HTTPStatus(code).phrase)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class's name for it
        """Log nothing: whoever asks tells what went wrong."""


def _is_allowed(headers: Message, token: str) -> bool:
    given = headers.get("Authorization", "")
    return not token or hmac.compare_digest(given.encode(), f"Bearer {token}".encode())
