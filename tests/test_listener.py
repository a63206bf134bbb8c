from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from stagecast.errors import BadInput
from stagecast.listener import Endpoint, _Corked, bound, check_open, parse_endpoint, serving
from stagecast.proxy import Receive, Scope, Send

LOOPBACK = Endpoint("127.0.0.1", 0)


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("127.0.0.1:8080", Endpoint("127.0.0.1", 8080)),
        ("localhost:0", Endpoint("localhost", 0)),
        ("[::1]:65535", Endpoint("::1", 65535)),
        (":8080", Endpoint("", 8080)),
    ],
)
def test_an_endpoint_is_a_host_and_a_port(text: str, endpoint: Endpoint) -> None:
    assert parse_endpoint(text, "--listen") == endpoint


@pytest.mark.parametrize("text", ["", "8080", "127.0.0.1", "127.0.0.1:", "h:65536", "h:-1", "h:http", "h:8080/x"])
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(BadInput) as refused:
        parse_endpoint(text, "--files-listen")
    assert refused.value.message == f"--files-listen is {text!r}; write it like 127.0.0.1:8080"


@pytest.mark.parametrize(
    ("host", "is_loopback", "is_wildcard"),
    [
        ("127.0.0.1", True, False), ("127.8.8.8", True, False), ("::1", True, False), ("localhost", True, False),
        ("0.0.0.0", False, True), ("::", False, True), ("", False, True),
        ("10.0.0.1", False, False), ("worker-1.example", False, False),
    ],
)  # fmt: skip
def test_who_can_reach_it(host: str, is_loopback: bool, is_wildcard: bool) -> None:
    endpoint = Endpoint(host, 80)
    assert (endpoint.is_loopback, endpoint.is_wildcard) == (is_loopback, is_wildcard)
    for secret, allowed in (("s", False), ("", True)):
        check_open(endpoint, secret, allowed=allowed, option="STAGECAST_TOKEN")
    if is_loopback:
        check_open(endpoint, "", allowed=False, option="STAGECAST_TOKEN")
        return
    with pytest.raises(BadInput) as refused:
        check_open(endpoint, "", allowed=False, option="STAGECAST_TOKEN")
    assert refused.value.message == (
        f"{host or '*'} can be reached from other machines, and without a secret anybody could use it: "
        "set STAGECAST_TOKEN, or say --allow-unauthenticated"
    )


def test_an_address_that_is_taken_is_told() -> None:
    with bound(LOOPBACK) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(BadInput) as refused, bound(Endpoint("127.0.0.1", port)):
            pass
    assert refused.value.message == (
        f"cannot listen on 127.0.0.1:{port}: Address already in use; choose another address with --listen"
    )
    with bound(Endpoint("127.0.0.1", port)):
        pass


def test_a_host_that_nobody_knows_is_told() -> None:
    with (
        pytest.raises(BadInput, match=r"cannot listen on no\.such\.host\.invalid:0: "),
        bound(Endpoint("no.such.host.invalid", 0)),
    ):
        pass


class Recorder(asyncio.Transport):
    """A transport that keeps each call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[bytes | str] = []

    def write(self, data: Any) -> None:
        self.calls.append(bytes(data))

    def close(self) -> None:
        self.calls.append("close")

    def is_closing(self) -> bool:
        return "close" in self.calls


async def turn_of_the_loop() -> None:
    await asyncio.sleep(0)


async def test_what_one_turn_of_the_loop_writes_leaves_in_one_call() -> None:
    transport = Recorder()
    corked = _Corked(transport)
    corked.write(b"head ")
    corked.write(b"body")
    assert transport.calls == []
    await turn_of_the_loop()
    corked.write(b"more")
    await turn_of_the_loop()
    assert transport.calls == [b"head body", b"more"]


async def test_what_is_left_leaves_before_the_close_and_nothing_after_it() -> None:
    transport = Recorder()
    corked = _Corked(transport)
    corked.write(b"last")
    corked.close()
    corked.write(b"too late")
    await turn_of_the_loop()
    assert transport.calls == [b"last", "close"]
    assert corked.is_closing()


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer ``/`` at once and ``/stream`` in two parts with a turn of the loop between them; ``/hang`` never ends."""
    await receive()
    if scope["path"] == "/hang":
        await asyncio.Event().wait()
    body = b"x" * 1000
    headers = [(b"content-length", str(2 * len(body) if scope["path"] == "/stream" else len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if scope["path"] == "/stream":
        await send({"type": "http.response.body", "body": body, "more_body": True})
        await asyncio.sleep(0.01)
    await send({"type": "http.response.body", "body": body})


class Writes:
    """The sizes of all writes of the server, as its transports get them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        transport = asyncio.selector_events._SelectorSocketTransport  # type: ignore[attr-defined]
        original: Callable[..., None] = transport.write

        def write(itself: Any, data: bytes) -> None:
            if data.startswith((b"HTTP/1.1", b"x")):
                self.sizes.append(len(data))
            original(itself, data)

        monkeypatch.setattr(transport, "write", write)


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    with bound(LOOPBACK) as listening:
        async with serving(application, listening):
            reader, writer = await asyncio.open_connection(*listening.getsockname())
            yield reader, writer
            writer.close()
            await writer.wait_closed()


async def whole(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return head + await reader.readexactly(length)


@pytest.mark.parametrize("last", [b"close", b"keep-alive"])
async def test_a_response_leaves_in_one_write(monkeypatch: pytest.MonkeyPatch, last: bytes) -> None:
    writes = Writes(monkeypatch)
    async with connected() as (reader, writer):
        sizes = []
        for connection in (b"keep-alive", b"keep-alive", last):
            writer.write(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: %s\r\n\r\n" % connection)
            sizes.append(len(await whole(reader)))
    assert writes.sizes == sizes


async def test_pipelined_requests_are_each_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    writes = Writes(monkeypatch)
    async with connected() as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n" * 5)
        sizes = [len(await whole(reader)) for _ in range(5)]
    assert sum(writes.sizes) == sum(sizes)
    assert len(writes.sizes) <= 5


async def test_a_stream_is_not_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    writes = Writes(monkeypatch)
    async with connected() as (reader, writer):
        writer.write(b"GET /stream HTTP/1.1\r\nHost: h\r\n\r\n")
        size = len(await whole(reader))
    assert writes.sizes == [size - 1000, 1000]


async def test_one_read_of_a_plain_socket_gets_the_whole_response() -> None:
    with bound(LOOPBACK) as listening:
        async with serving(application, listening):
            for _ in range(20):
                with socket.create_connection(listening.getsockname()) as client:
                    client.setblocking(False)
                    loop = asyncio.get_running_loop()
                    await loop.sock_sendall(client, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
                    data = await loop.sock_recv(client, 65536)
                assert data.endswith(b"\r\n\r\n" + b"x" * 1000)


async def test_the_port_is_free_again_and_a_request_that_hangs_does_not_hold_up_the_end() -> None:
    with bound(LOOPBACK) as listening:
        address = listening.getsockname()
        async with asyncio.timeout(60), serving(application, listening):
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"GET /hang HTTP/1.1\r\nHost: h\r\n\r\n")
            await writer.drain()
    assert (await reader.read()).startswith(b"HTTP/1.1 500 ")
    writer.close()
    await writer.wait_closed()
    with bound(Endpoint(*address)):
        pass
