"""Whether bytes delay words: GET /api/operations on a replica that serves a pull at full speed, and on the same idle.

Everything is real: a nats-server, `stagecast serve` and `stagecast worker` as processes; the worker pulls the model
from the replica again and again while a client of its own process asks the replica, one request after the other.
Beside it, the same client asks a server that does nothing but answer, in a process of its own: what the busy machine
does to anybody.
"""

from __future__ import annotations

import http.server
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

from contenders import free_port
from material import Case, lay_out
from processes import child, nats_server

ASKED = 2000
PAUSE = 0.002
"""Seconds between an answer and the next request: people poll, they do not hammer."""


@dataclass(frozen=True)
class Calm:
    """Seconds at p50 and p99, of the replica and of the server that does nothing, idle and while bytes move."""

    idle: tuple[float, float]
    busy: tuple[float, float]
    bare_idle: tuple[float, float]
    bare_busy: tuple[float, float]
    rate: float
    """Bytes per second that the replica served meanwhile."""


def measure(folder: Path, case: Case) -> Calm:
    """Return what asking took before and while the case moved."""
    lay_out(folder / "models", case)
    with nats_server() as nats, _process("serve", nats, folder, models=folder / "models") as replica:
        _until(lambda: _ask(replica, "GET", f"/api/models/{case.name}")["holders"])
        with _process("worker", nats, folder) as _, child("calm.py", "bare") as bare:
            idle, bare_idle = _percentiles(replica), _percentiles(bare.said)
            with _moving(replica, case) as moved:
                began, before = time.monotonic(), moved[0]
                busy, bare_busy = _percentiles(replica), _percentiles(bare.said)
                rate = (moved[0] - before) / (time.monotonic() - began)
    return Calm(idle, busy, bare_idle, bare_busy, rate)


@contextmanager
def _process(verb: str, nats: str, folder: Path, models: Path | None = None) -> Iterator[int]:
    port = free_port()
    command = [str(Path(sys.executable).parent / "stagecast"), verb, "--listen", f"127.0.0.1:{port}", "--nats", nats]
    command += ["--data", str(folder / verb), "--name", verb, *(["--models", str(models)] if models else [])]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            path = "/readyz" if verb == "serve" else "/metrics"
            _until(lambda: _ask(port, "GET", path) is not None)
            yield port
        finally:
            process.terminate()
            process.wait(20)


def _until(is_so: object, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if is_so():  # type: ignore[operator]
                return
        except (OSError, KeyError, ValueError):
            pass
        time.sleep(0.05)
    raise RuntimeError("it did not come true")


def _ask(port: int, method: str, path: str, body: object = None) -> object:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
        return json.loads(content) if answer.headers.get_content_type() == "application/json" else content
    finally:
        connection.close()


@contextmanager
def _moving(replica: int, case: Case) -> Iterator[list[int]]:
    """Have the worker stage the model, delete it and begin again, until the block ends; count the bytes."""
    moved, ended = [0], threading.Event()

    def go_on() -> None:
        while not ended.is_set():
            _ask(replica, "POST", f"/api/models/{case.name}/stage", {"nodes": ["worker"]})
            _until(lambda: _holds(replica, case.name))
            moved[0] += case.total
            _ask(replica, "DELETE", f"/api/models/{case.name}?node=worker")

    _ask(replica, "POST", f"/api/models/{case.name}/stage", {"nodes": ["worker"]})
    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield moved
    finally:
        ended.set()
        thread.join()


def _holds(replica: int, model: str) -> bool:
    said = _ask(replica, "GET", f"/api/models/{model}")
    return "worker" in json.dumps(said["holders"])  # type: ignore[index,call-overload]


def _percentiles(port: int) -> tuple[float, float]:
    connection, took = HTTPConnection("127.0.0.1", port, timeout=30), []
    for _ in range(ASKED):
        began = time.perf_counter()
        connection.request("GET", "/api/operations")
        connection.getresponse().read()
        took.append(time.perf_counter() - began)
        time.sleep(PAUSE)
    connection.close()
    cuts = statistics.quantiles(took, n=100)
    return cuts[49], cuts[98]


class _Bare(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class's name for it
        pass


def _serve_bare() -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Bare)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(json.dumps(server.server_address[1]), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    if sys.argv[1:] == ["bare"]:
        _serve_bare()
    else:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as name:  # no disk may slow it down
            print(measure(Path(name), Case("calm", "", (2 << 30,))))
