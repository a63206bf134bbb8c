"""A real HTTP server for what can be had upstream, with a switch for each thing that upstreams get wrong."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_STEP = 64 * 1024


class UpstreamServer:
    """Serves ``contents`` by their request target, exactly as it crosses the wire. Switches may be set at any time.

    ``sent`` counts the body bytes that were handed to the kernel, by target; ``requests`` what was asked. ``rate`` is
    in bytes per second and connection, 0 for no limit.
    """

    def __init__(self, contents: Mapping[str, bytes], host: str = "127.0.0.1") -> None:
        self.contents = dict(contents)
        self.sent: Counter[str] = Counter()
        self.requests: list[tuple[str, str, str | None]] = []
        self.etag: str | None = '"one"'
        self.has_ranges = True
        self.heeds_if_range = True
        self.tells_length = True
        self.status = 200
        self.statuses: list[int] = []
        self.media_type = "application/octet-stream"
        self.redirects: dict[str, str] = {}
        self.cut_after: list[int] = []
        self.hang_after: int | None = None
        self.head_status = 200
        self.rate = 0
        self.hanging = threading.Event()
        self.release = threading.Event()
        self._http = _Http(self, host)
        self.url = f"http://{host}:{self._http.server_port}"

    @contextmanager
    def running(self) -> Iterator[UpstreamServer]:
        """Serve for as long as the block lasts."""
        thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield self
        finally:
            self.release.set()
            self._http.shutdown()
            thread.join()
            self._http.server_close()


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, upstream: UpstreamServer, host: str) -> None:
        self.upstream = upstream
        super().__init__((host, 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Http

    @property
    def upstream(self) -> UpstreamServer:
        return self.server.upstream

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_GET(self) -> None:
        with suppress(ConnectionError):
            self._answer(None)

    def _answer(self, body: bytes | None) -> None:
        self.upstream.requests.append((self.command, self.path, self.headers["Range"]))
        self.close_connection = True
        if self.path in self.upstream.redirects:
            return self._head(302, {"Location": self.upstream.redirects[self.path], "Content-Length": "0"})
        status = self.upstream.head_status if self.command == "HEAD" else self.upstream.status
        if self.upstream.statuses and self.command == "GET":
            status = self.upstream.statuses.pop(0)
        content = self.upstream.contents.get(self.path)
        if content is None or status != 200:
            return self._head(404 if content is None else status, {"Content-Length": "0"})
        start, end, status = self._slice(len(content))
        headers = {"Content-Type": self.upstream.media_type}
        if self.upstream.etag is not None:
            headers["ETag"] = self.upstream.etag
        if status == 416:
            return self._head(416, headers | {"Content-Range": f"bytes */{len(content)}", "Content-Length": "0"})
        if self.upstream.tells_length:
            headers["Content-Length"] = str(end - start)
        if status == 206:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        self._head(status, headers)
        if body is None:
            self._send(content[start:end])
        return None

    def _slice(self, size: int) -> tuple[int, int, int]:
        asked, condition = self.headers["Range"], self.headers["If-Range"]
        if not asked or not self.upstream.has_ranges:
            return 0, size, 200
        if condition is not None and condition != self.upstream.etag and self.upstream.heeds_if_range:
            return 0, size, 200
        first, _, last = asked.removeprefix("bytes=").partition("-")
        end = min(size, int(last) + 1) if last else size
        return int(first), end, 206 if int(first) < end else 416

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, content: bytes) -> None:
        cut = self.upstream.cut_after.pop(0) if self.upstream.cut_after else len(content)
        for start in range(0, min(cut, len(content)), _STEP):
            if self.upstream.hang_after is not None and start >= self.upstream.hang_after:
                self.upstream.hanging.set()
                self.upstream.release.wait()
                return
            part = content[start : min(start + _STEP, cut)]
            self.wfile.write(part)
            self.upstream.sent[self.path] += len(part)
            if self.upstream.rate:
                self.upstream.release.wait(len(part) / self.upstream.rate)
