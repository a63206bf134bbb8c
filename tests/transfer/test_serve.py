from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from math import inf
from pathlib import Path

import pytest

from stagecast.manifest import Manifest, decode
from stagecast.store import Store
from stagecast.transfer import FileServer, Holder, serve
from stagecast.transfer.source import Source
from tests.sample import lay_out, manifest_of

CONTENTS = {"empty": b"", "weights/a.bin": bytes(range(256)) * 20, "weights/b.bin": b"b" * 1000}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    lay_out(tmp_path / "models" / "tiny", CONTENTS)
    return Store(tmp_path / "models", tmp_path / "data")


@pytest.fixture
def manifest(store: Store) -> Manifest:
    manifest = manifest_of("tiny", CONTENTS)
    store.record(manifest)
    return manifest


@pytest.fixture
def server(store: Store) -> Iterator[FileServer]:
    with FileServer(store, "127.0.0.1") as server:
        yield server


@pytest.fixture
def client(server: FileServer) -> Iterator[HTTPConnection]:
    with contextlib.closing(HTTPConnection("127.0.0.1", server.port, timeout=60)) as client:
        yield client


def digest_of(manifest: Manifest, path: str) -> str:
    return next(file.digest for file in manifest.files if file.path == path)


def ask(client: HTTPConnection, path: str, method: str = "GET", **fields: str) -> tuple[HTTPResponse, bytes]:
    client.request(method, path, headers={name.replace("_", "-"): value for name, value in fields.items()})
    response = client.getresponse()
    return response, response.read()


def until_busy(server: FileServer) -> None:
    """Wait until what is served has begun to ask for something."""
    while any(served.exchange.idle_since != inf for served in list(server._open.values())):
        time.sleep(0.001)


def until_idle(server: FileServer, count: int) -> None:
    """Wait until so many connections are open that were not given up, and each waits for its next request."""

    def are_idle() -> list[bool]:
        staying = [served for served in list(server._open.values()) if not served.is_leaving]
        return [served.exchange.idle_since < inf for served in staying]

    while are_idle() != [True] * count:
        time.sleep(0.001)


def code_of(body: bytes) -> str:
    return str(json.loads(body)["error"]["code"])


def test_a_whole_file(client: HTTPConnection, manifest: Manifest) -> None:
    digest = digest_of(manifest, "weights/a.bin")

    response, body = ask(client, f"/files/{digest}")

    assert response.status == 200
    assert body == CONTENTS["weights/a.bin"]
    assert response.headers["ETag"] == f'"{digest}"'
    assert response.headers["Accept-Ranges"] == "bytes"


def test_ranges_over_one_connection(client: HTTPConnection, server: FileServer, manifest: Manifest) -> None:
    path, content = f"/files/{digest_of(manifest, 'weights/a.bin')}", CONTENTS["weights/a.bin"]

    for text, expected, bounds in [
        ("bytes=0-0", content[:1], "0-0"),
        ("bytes=10-19", content[10:20], "10-19"),
        ("bytes=5000-", content[5000:], "5000-5119"),
        ("bytes=5000-99999", content[5000:], "5000-5119"),
        ("bytes=-20", content[-20:], "5100-5119"),
    ]:
        response, body = ask(client, path, Range=text)
        assert (response.status, body) == (206, expected)
        assert response.headers["Content-Range"] == f"bytes {bounds}/{len(content)}"
    assert len(server._open) == 1
    ask(client, "/")  # once this is answered, what came before it on the connection has been counted
    assert server.bytes_sent == 1 + 10 + 120 + 120 + 20


def test_a_range_beyond_the_end(client: HTTPConnection, manifest: Manifest) -> None:
    response, body = ask(client, f"/files/{digest_of(manifest, 'weights/b.bin')}", Range="bytes=1000-")

    assert response.status == 416
    assert response.headers["Content-Range"] == "bytes */1000"
    assert code_of(body) == "bad_input"


def test_a_range_of_another_revision_gets_all_of_this_one(client: HTTPConnection, manifest: Manifest) -> None:
    path = f"/files/{digest_of(manifest, 'weights/b.bin')}"

    response, body = ask(client, path, Range="bytes=0-1", If_Range='"other"')

    assert (response.status, len(body)) == (200, 1000)


def test_a_bundle(client: HTTPConnection, server: FileServer, manifest: Manifest) -> None:
    """Six pieces: five of one file, then the other file."""
    a, b = CONTENTS["weights/a.bin"], CONTENTS["weights/b.bin"]
    for numbers, content in [("0-5", a + b), ("5", b), ("1,4-5", a[1024:2048] + a[4096:] + b), ("5,0", b + a[:1024])]:
        response, body = ask(client, f"/bundles/{manifest.digest}/{numbers}")

        assert (response.status, body) == (200, content)
        assert response.headers["ETag"] == f'"{manifest.digest}"'
    assert server.bytes_sent == len(a) + 3 * 1024 + 4 * len(b)
    response, body = ask(client, f"/bundles/{manifest.digest}/0-5", "HEAD")
    assert (response.status, body, response.headers["Content-Length"]) == (200, b"", str(len(a) + len(b)))


@pytest.mark.parametrize(
    ("numbers", "status"), [("6", 400), ("0-6", 400), ("3-2", 400), (",", 400), ("", 404), ("a", 404)]
)
def test_a_bundle_of_what_is_no_piece(client: HTTPConnection, manifest: Manifest, numbers: str, status: int) -> None:
    assert ask(client, f"/bundles/{manifest.digest}/{numbers}")[0].status == status
    assert ask(client, f"/bundles/{manifest.digest}/0")[0].status == 200


def test_a_bundle_comes_whole_or_not_at_all(client: HTTPConnection, store: Store, manifest: Manifest) -> None:
    (store.models / "tiny" / "weights" / "b.bin").write_bytes(b"c" * 1000)

    response, body = ask(client, f"/bundles/{manifest.digest}/0-5")
    assert (response.status, code_of(body)) == (404, "not_found")
    assert ask(client, f"/bundles/{manifest.digest}/0-4")[0].status == 200
    assert ask(client, f"/bundles/{'0' * 64}/0")[0].status == 404


def test_an_empty_file(client: HTTPConnection, manifest: Manifest) -> None:
    response, body = ask(client, f"/files/{digest_of(manifest, 'empty')}")

    assert (response.status, body) == (200, b"")


def test_a_head(client: HTTPConnection, server: FileServer, manifest: Manifest) -> None:
    response, body = ask(client, f"/files/{digest_of(manifest, 'weights/b.bin')}", "HEAD", Range="bytes=0-1")

    assert (response.status, body, response.headers["Content-Length"]) == (200, b"", "1000")
    assert ask(client, "/nowhere", "HEAD")[0].status == 404
    assert server.bytes_sent == 0


def test_a_manifest(client: HTTPConnection, manifest: Manifest) -> None:
    response, body = ask(client, f"/manifests/{manifest.digest}")

    assert response.status == 200
    assert decode(body) == manifest


@pytest.mark.parametrize(
    "path",
    ["/", "/files/", "/files/" + "0" * 64, "/manifests/" + "0" * 64, "/files/../manifests/" + "0" * 64, "/files/xyz"],
)
def test_what_is_not_here(client: HTTPConnection, manifest: Manifest, path: str) -> None:
    response, body = ask(client, path)

    assert response.status == 404
    assert response.headers["Content-Type"] == "application/json"
    assert code_of(body) == "not_found"


def test_a_file_that_was_changed_is_no_longer_served(client: HTTPConnection, store: Store, manifest: Manifest) -> None:
    (store.models / "tiny" / "weights" / "b.bin").write_bytes(b"c" * 1000)

    assert ask(client, f"/files/{digest_of(manifest, 'weights/b.bin')}")[0].status == 404


@pytest.mark.parametrize("given", ["", "Bearer wrong", "Bearer sécret", "Basic secret", "secret"])
def test_a_wrong_token_is_told_nothing(store: Store, manifest: Manifest, given: str) -> None:
    with FileServer(store, "127.0.0.1", token="secret") as server:
        client = HTTPConnection("127.0.0.1", server.port, timeout=60)
        with contextlib.closing(client):
            response, body = ask(client, f"/manifests/{manifest.digest}", Authorization=given)
            assert response.status == 401
            assert json.loads(body) == {"error": {"code": "unauthorized", "message": "unauthorized"}}


def test_the_right_token(store: Store, manifest: Manifest) -> None:
    with FileServer(store, "127.0.0.1", 0, "secret") as server:
        client = HTTPConnection("127.0.0.1", server.port, timeout=60)
        with contextlib.closing(client):
            response, _ = ask(client, f"/manifests/{manifest.digest}", Authorization="Bearer secret")
            assert response.status == 200


@pytest.mark.parametrize(("request_", "status"), [(b"POST / HTTP/1.1\r\n\r\n", 501), (b"nonsense\r\n\r\n", 400)])
def test_what_cannot_be_read_is_refused_as_json(server: FileServer, request_: bytes, status: int) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
        client.sendall(request_)
        response = client.makefile("rb").read()

    head, _, body = response.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert code_of(body) == "bad_input"


def test_a_body_is_not_taken_for_another_request(server: FileServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
        client.sendall(b"GET /a HTTP/1.1\r\nContent-Length: 20\r\n\r\nGET /b HTTP/1.1\r\n\r\n")
        response = client.makefile("rb").read()

    assert response.count(b"HTTP/1.1 404") == 1


def test_too_many_busy_connections_hear_when_to_come_back(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "TURNED_AWAY", 1)
    with FileServer(store, "127.0.0.1", connections=1) as server, contextlib.ExitStack() as stack:
        first, second = (
            stack.enter_context(contextlib.closing(HTTPConnection("127.0.0.1", server.port, timeout=60)))
            for _ in range(2)
        )
        assert ask(first, "/")[0].status == 404
        until_idle(server, 1)
        first.sock.sendall(b"GET / HTTP/1.1\r\n")
        until_busy(server)
        second.connect()
        third = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=60))
        assert third.recv(1) == b""

        response, body = ask(second, "/")

        assert (response.status, response.headers["Retry-After"], code_of(body)) == (503, "1", "busy")
        first.sock.sendall(b"\r\n")
        assert first.sock.recv(12) == b"HTTP/1.1 404"


def test_for_one_more_the_connection_is_given_up_that_was_idle_the_longest(store: Store, manifest: Manifest) -> None:
    path = f"/manifests/{manifest.digest}"
    with FileServer(store, "127.0.0.1", connections=2) as server, contextlib.ExitStack() as stack:
        first, second, third = (
            stack.enter_context(contextlib.closing(HTTPConnection("127.0.0.1", server.port, timeout=60)))
            for _ in range(3)
        )
        for client in (first, second):
            assert ask(client, path)[0].status == 200
        until_idle(server, 2)
        assert ask(first, path)[0].status == 200
        until_idle(server, 2)

        assert ask(third, path)[0].status == 200

        assert second.sock.recv(1) == b""
        assert ask(first, path)[0].status == 200
        holder = Holder("origin", server.url)
        with Source(holder, "", threading.Event()) as one, Source(holder, "", threading.Event()) as other:
            for source in (one, other, one, other, one):
                until_idle(server, 2)
                ask(third, path)
                until_idle(server, 2)
                assert source.manifest(manifest.digest) == manifest, "who was given up asks again, and is served"


def test_a_client_that_goes_away_or_hangs_ends_only_its_own_connection(store: Store, tmp_path: Path) -> None:
    contents = {"big": bytes(32 << 20)}
    lay_out(tmp_path / "models" / "big", contents)
    digest = store.manifest("big").files[0].digest
    with FileServer(store, "127.0.0.1") as server:
        hanging = socket.create_connection(("127.0.0.1", server.port), timeout=60)
        leaving = socket.create_connection(("127.0.0.1", server.port), timeout=60)
        for client in (hanging, leaving):
            client.sendall(f"GET /files/{digest} HTTP/1.1\r\n\r\n".encode())
            assert client.recv(4096)
        leaving.close()

        client = HTTPConnection("127.0.0.1", server.port, timeout=60)
        with contextlib.closing(client):
            response, body = ask(client, f"/files/{digest}")
            assert (response.status, len(body)) == (200, 32 << 20)

        began = time.monotonic()
    hanging.close()
    assert time.monotonic() - began < 20


def test_closing_ends_open_connections_at_once_and_leaves_no_thread(store: Store) -> None:
    before = set(threading.enumerate())
    with FileServer(store, "127.0.0.1") as server:
        client = HTTPConnection("127.0.0.1", server.port, timeout=60)
        ask(client, "/")
        began = time.monotonic()

    assert time.monotonic() - began < 20
    assert set(threading.enumerate()) <= before
    assert client.sock.recv(1) == b""
    client.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), timeout=60)


def test_the_url_of_a_six_address(store: Store) -> None:
    with FileServer(store, "::1") as server:
        assert server.url == f"http://[::1]:{server.port}"
        client = HTTPConnection("::1", server.port, timeout=60)
        assert ask(client, "/")[0].status == 404
        client.close()
