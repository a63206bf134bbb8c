"""Stands in for `stagecast serve` and `stagecast worker` where a test is about processes, not about what they do."""

from __future__ import annotations

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def option(name: str, default: str = "") -> str:
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/crash":
            os._exit(3)
        if self.path == "/slow":
            time.sleep(0.5)
        if self.path == "/hang":
            time.sleep(60)
        # A worker that knows only /healthz.
        status = 404 if self.path == "/readyz" and sys.argv[1] == "worker" else 200
        # A replica that is behind what everybody asks for, while the others are not.
        if self.path.endswith("/behind") and option("--name") == "replica-1":
            status = 503
        self._send(status, {"arguments": sys.argv[1:], "environment": dict(os.environ), "pid": os.getpid()})

    def do_POST(self) -> None:
        self.do_GET()

    def _send(self, status: int, body: object) -> None:
        payload = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Stagecast-Replica", option("--name"))
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *arguments: object) -> None:
        pass


if __name__ == "__main__":
    host, _, port = option("--listen").rpartition(":")
    print("one line on standard output", flush=True)
    if option("--models").endswith("/broken"):
        sys.exit("error: the models folder is broken")
    ThreadingHTTPServer((host, int(port)), Handler).serve_forever()
