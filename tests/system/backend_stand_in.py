"""Stands in for a model server where a test is about who reaches it: OpenAI's shapes, and a gate to hold it at.

``--gate FILE``: while FILE is not there, it is not ready, and a stream stops after its first chunk. ``--starts FILE``
gets a line per start. ``--fail LINE``: say LINE and exit 1. An embedding tells the process that made it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(200 if given.streams or is_open() else 503, {"status": "ok"})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/v1/chat/completions":
            self._stream()
        else:
            data = [{"index": number, "embedding": embedding(text)} for number, text in enumerate(asked["input"])]
            self._answer(200, {"object": "list", "data": data})

    def _answer(self, status: int, body: object) -> None:
        payload = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._chunk(b"data: one\n\n")
        while not is_open():
            time.sleep(0.01)
        for word in (b"two", b"three", b"[DONE]"):
            time.sleep(0.2)
            self._chunk(b"data: %s\n\n" % word)
        self._chunk(b"")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def log_message(self, *arguments: object) -> None:
        pass


def embedding(text: str) -> list[int]:
    return [os.getpid(), *hashlib.sha256(text.encode()).digest()[:4]]


def is_open() -> bool:
    return given.gate is None or given.gate.exists()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--gate", type=Path)
    parser.add_argument("--starts", type=Path)
    parser.add_argument("--streams", action="store_true")
    parser.add_argument("--fail", default="")
    given = parser.parse_args()
    if given.starts:
        with given.starts.open("a") as starts:
            starts.write("started\n")
    if given.fail:
        print("reading the weights", flush=True)
        sys.exit(given.fail)
    ThreadingHTTPServer(("127.0.0.1", given.port), Handler).serve_forever()
