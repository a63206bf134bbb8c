from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from stagecast.frontend.encoded import Encoded, Frames
from tests.conftest import eventually


class Server:
    """What an ASGI server does with one request: it takes messages, and says when the client has left."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.left = asyncio.Event()

    async def receive(self) -> dict[str, object]:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def run(self, response: Encoded[object] | Frames) -> None:
        await response.to_asgi_response()({"type": "http"}, self.receive, self.send)  # type: ignore[arg-type,typeddict-item]

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.sent[1:])


class Source:
    """Frames that somebody lets come, and whether they were let go."""

    def __init__(self, *frames: bytes) -> None:
        self.is_open = False
        self._frames = frames
        self.go_on = asyncio.Event()

    async def __call__(self) -> AsyncGenerator[bytes, None]:
        self.is_open = True
        try:
            for frame in self._frames:
                yield frame
            await self.go_on.wait()
        finally:
            self.is_open = False


async def test_bytes_go_out_as_they_are() -> None:
    server = Server()
    await server.run(Encoded(200, b"{}", [(b"etag", b'"1"')]))
    assert server.sent[0]["status"] == 200
    assert server.headers == {b"content-type": b"application/json", b"content-length": b"2", b"etag": b'"1"'}
    assert server.body == b"{}"


async def test_what_has_not_changed_has_no_body_and_says_no_length() -> None:
    server = Server()
    await server.run(Encoded(304, b"", [(b"etag", b'"1"')]))
    assert (server.sent[0]["status"], server.headers, server.body) == (304, {b"etag": b'"1"'}, b"")


async def test_frames_are_sent_until_they_end() -> None:
    server, source = Server(), Source(b"a", b"b")
    source.go_on.set()
    await server.run(Frames(source()))
    assert server.headers[b"content-type"].startswith(b"text/event-stream")
    assert [message["body"] for message in server.sent[1:]] == [b"a", b"b", b""]
    assert [message.get("more_body", False) for message in server.sent[1:]] == [True, True, False]
    assert not source.is_open


async def test_a_client_that_leaves_ends_its_stream_and_nothing_else() -> None:
    server, source = Server(), Source(b"a")
    running = asyncio.create_task(server.run(Frames(source())))
    await eventually(lambda: server.body == b"a")
    assert source.is_open
    server.left.set()
    await running
    assert not source.is_open
    assert not running.cancelled()


async def test_a_server_that_stops_cancels_its_streams() -> None:
    server, source = Server(), Source(b"a")
    running = asyncio.create_task(server.run(Frames(source())))
    await eventually(lambda: server.body == b"a")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not source.is_open
    assert len(asyncio.all_tasks()) == 1, "nobody looks for the client any more"
