from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from stagecast import proxy
from stagecast.errors import BackendFailed, BackendUnreached, BadInput
from stagecast.loopback import free_port
from stagecast.proxy import ClientGone, Message, forward, read_body

Handle = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Client:
    """The client's side of one ASGI request: what it sends, what it got, and when it leaves."""

    def __init__(self, *messages: Message) -> None:
        self._incoming: asyncio.Queue[Message] = asyncio.Queue()
        self.sent: asyncio.Queue[Message] = asyncio.Queue()
        for message in messages:
            self._incoming.put_nowait(message)

    def leave(self) -> None:
        self._incoming.put_nowait({"type": "http.disconnect"})

    async def receive(self) -> Message:
        return await self._incoming.get()

    async def send(self, message: Message) -> None:
        self.sent.put_nowait(message)

    def got(self) -> list[Message]:
        return [self.sent.get_nowait() for _ in range(self.sent.qsize())]


class Upstream:
    """A real server whose one handler the test chooses."""

    url = ""

    def __init__(self) -> None:
        self.handle: Handle = self.echo

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        return await self.handle(request)

    async def echo(self, request: web.Request) -> web.Response:
        said = {"method": request.method, "path": request.raw_path, "body": (await request.read()).decode()}
        return web.json_response(said | {"headers": {k.lower(): v for k, v in request.headers.items()}})


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    handler = Upstream()
    runner = web.ServerRunner(web.Server(handler), shutdown_timeout=0.1)  # type: ignore[arg-type]
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    handler.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield handler
    await runner.cleanup()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        yield session


def part(body: bytes, *, more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


def headers_of(start: Message) -> dict[bytes, bytes]:
    return dict(start["headers"])


async def test_a_body_is_read_whole() -> None:
    client = Client(part(b"one", more=True), part(b"", more=True), part(b" two"))
    assert await read_body(client.receive) == b"one two"
    assert await read_body(Client({"type": "http.request"}).receive) == b""


async def test_a_client_that_leaves_while_it_sends_is_gone() -> None:
    client = Client(part(b"one", more=True))
    client.leave()
    with pytest.raises(ClientGone):
        await read_body(client.receive)


async def test_a_body_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "BODY_LIMIT", 1000)
    assert len(await read_body(Client(part(bytes(1000))).receive)) == 1000
    with pytest.raises(BadInput, match="the request's body has more than 1,000 bytes; send less"):
        await read_body(Client(part(bytes(600), more=True), part(bytes(401), more=True)).receive)


async def test_a_request_is_passed_on_without_what_is_meant_for_us_alone(
    upstream: Upstream, session: aiohttp.ClientSession
) -> None:
    client = Client()
    headers = [
        (b"Host", b"public.example"), (b"Content-Length", b"4"), (b"Content-Type", b"text/x"), (b"Cookie", b"secret"),
        (b"Transfer-Encoding", b"chunked"), (b"X-Thing", b"1"), (b"Proxy-Authorization", b"secret"),
    ]  # fmt: skip
    went = await forward(
        session, "PUT", f"{upstream.url}/a%2Fb?c=d%20e", headers, b"body", client.receive, client.send,
        drop=frozenset({b"cookie"}), extra={"Authorization": "Bearer token"},
    )  # fmt: skip
    assert went
    start, *parts = client.got()
    said: dict[str, Any] = json.loads(b"".join(part["body"] for part in parts))
    assert (said["method"], said["path"], said["body"]) == ("PUT", "/a%2Fb?c=d%20e", "body")
    got = said["headers"]
    assert (got["content-type"], got["x-thing"], got["authorization"]) == ("text/x", "1", "Bearer token")
    assert got["host"] in upstream.url
    assert "secret" not in got.values()
    assert "transfer-encoding" not in got
    assert (start["type"], start["status"], parts[-1].get("more_body")) == ("http.response.start", 200, False)


async def test_a_response_comes_back_as_it_is(upstream: Upstream, session: aiohttp.ClientSession) -> None:
    async def answer(_: web.Request) -> web.Response:
        headers = {"Content-Encoding": "gzip", "X-Own": "1", "Keep-Alive": "timeout=5", "Location": "/else"}
        return web.Response(status=307, body=b"not really gzip", headers=headers)

    upstream.handle = answer
    client = Client()
    assert await forward(session, "GET", upstream.url, [], b"", client.receive, client.send)
    start, *parts = client.got()
    assert start["status"] == 307, "a redirect is the client's to follow"
    assert headers_of(start)[b"content-encoding"] == b"gzip"
    assert headers_of(start)[b"content-length"] == b"15"
    assert headers_of(start)[b"x-own"] == b"1"
    assert b"keep-alive" not in headers_of(start)
    assert b"".join(part["body"] for part in parts) == b"not really gzip"


async def test_a_stream_goes_out_as_it_comes(upstream: Upstream, session: aiohttp.ClientSession) -> None:
    more = asyncio.Event()

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"one")
        await more.wait()
        await response.write(b"two")
        return response

    upstream.handle = stream
    client = Client()
    sending = asyncio.create_task(forward(session, "GET", upstream.url, [], b"", client.receive, client.send))
    assert (await client.sent.get())["status"] == 200
    assert (await client.sent.get())["body"] == b"one"
    more.set()
    assert (await client.sent.get())["body"] == b"two"
    assert await sending


async def test_a_client_that_leaves_lets_the_upstream_go(upstream: Upstream, session: aiohttp.ClientSession) -> None:
    let_go = asyncio.Event()

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            try:
                while True:
                    await response.write(b"more")
                    await asyncio.sleep(0.001)
            finally:
                let_go.set()
        return response

    upstream.handle = endless
    client = Client()
    sending = asyncio.create_task(forward(session, "GET", upstream.url, [], b"", client.receive, client.send))
    await client.sent.get()
    client.leave()
    with pytest.raises(ClientGone):
        await sending
    async with asyncio.timeout(60):
        await let_go.wait()


async def test_a_client_that_left_before_the_answer_is_gone_too(
    upstream: Upstream, session: aiohttp.ClientSession
) -> None:
    asked = asyncio.Event()

    async def hang(_: web.Request) -> web.Response:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    upstream.handle = hang
    client = Client()
    sending = asyncio.create_task(forward(session, "GET", upstream.url, [], b"", client.receive, client.send))
    await asked.wait()
    client.leave()
    with pytest.raises(ClientGone):
        await sending
    assert client.got() == []


async def test_a_status_that_is_meant_for_us_goes_no_further(
    upstream: Upstream, session: aiohttp.ClientSession
) -> None:
    async def misdirect(_: web.Request) -> web.Response:
        return web.Response(status=421)

    upstream.handle = misdirect
    client = Client()
    for is_ours in (True, False):
        went = await forward(
            session, "GET", upstream.url, [], b"", client.receive, client.send,
            refused=lambda status, is_ours=is_ours: is_ours and status == 421,
        )  # fmt: skip
        assert went != is_ours
        assert [message.get("status") for message in client.got()][:1] == ([] if is_ours else [421])


async def test_an_upstream_that_takes_no_connection_can_be_told_from_one_that_broke_off(
    upstream: Upstream, session: aiohttp.ClientSession
) -> None:
    client = Client()
    nobody = f"http://127.0.0.1:{free_port()}/x"
    with pytest.raises(BackendUnreached, match=f"{nobody} did not answer: "):
        await forward(session, "GET", nobody, [], b"", client.receive, client.send)

    async def break_off(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    upstream.handle = break_off
    with pytest.raises(BackendFailed, match="did not answer: ") as broken:
        await forward(session, "POST", upstream.url, [], b"x", client.receive, client.send)
    assert not isinstance(broken.value, BackendUnreached)
    assert client.got() == []


async def test_an_upstream_that_breaks_off_in_the_middle_breaks_the_response_off(
    upstream: Upstream, session: aiohttp.ClientSession
) -> None:
    async def half(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b"half")
        assert request.transport is not None
        request.transport.close()
        return response

    upstream.handle = half
    client = Client()
    with pytest.raises(ClientGone):
        await forward(session, "GET", upstream.url, [], b"", client.receive, client.send)
    assert all(message.get("more_body", True) for message in client.got()), "nobody may take it for whole"
