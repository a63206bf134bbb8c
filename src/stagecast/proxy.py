"""The proxy: one request passed on to another server, its response passed back as it comes.

Works on ASGI's own terms, since a streaming response must go out byte for byte as it arrives, and an upstream must be
let go as soon as the client is.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import suppress
from typing import Any, Final

import aiohttp
from yarl import URL

from stagecast.errors import BackendFailed, BackendUnreached, BadInput

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

BODY_LIMIT: Final = 256 * 1024 * 1024
"""Bytes that a request's body may have: it is kept whole, so that it can be sent again to another worker."""
_HOP: Final = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization te trailer transfer-encoding upgrade".split()
)
_AUTOMATIC: Final = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
"""What the client library would add; the backend shall see what the client sent, and nothing else."""


class ClientGone(Exception):  # a fact, like its siblings
    """The client closed the connection before the response was whole."""


def raw_path(scope: Scope) -> str:
    """Return a request's path as it was sent, percent-encoded, with a single slash before it."""
    sent = scope.get("raw_path") or str(scope["path"]).encode()
    return re.sub("^/+", "/", sent.decode("latin-1").partition("?")[0])


async def read_body(receive: Receive) -> bytes:
    """Return a request's whole body.

    Raises:
        BadInput: it has more than `BODY_LIMIT` bytes.
        ClientGone: the client left meanwhile.
    """
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        size += len(part)
        if size > BODY_LIMIT:
            raise BadInput(f"the request's body has more than {BODY_LIMIT:,} bytes; send less")
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


async def forward(
    session: aiohttp.ClientSession, method: str, url: str, headers: Iterable[tuple[bytes, bytes]], body: bytes,
    receive: Receive, send: Send, *, drop: frozenset[bytes] = frozenset(), extra: dict[str, str] | None = None,
    refused: Callable[[int], bool] = lambda _: False,
) -> bool:  # fmt: skip
    """Pass a request on to ``url`` and its response back. Tell whether a response went out.

    ``drop`` names request headers that stay here, ``extra`` adds some. ``refused`` says of an upstream status that it
    is meant for us and not for the client: then nothing goes out and False is returned, so another try is possible.

    Raises:
        BackendUnreached: the upstream took no connection.
        BackendFailed: it ended before its response began.
        ClientGone: the client left; the upstream was let go.
    """
    outgoing = [
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in headers
        if name.lower() not in _HOP | drop | {b"host", b"content-length"}
    ]
    outgoing += list((extra or {}).items())
    gone = asyncio.create_task(until_gone(receive))
    sending = asyncio.create_task(_exchange(session, method, url, outgoing, body, send, refused))
    try:
        await asyncio.wait({gone, sending}, return_when=asyncio.FIRST_COMPLETED)
        if not sending.done():
            raise ClientGone
        return await sending
    finally:
        for task in (gone, sending):
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(gone, sending, return_exceptions=True)


async def _exchange(
    session: aiohttp.ClientSession, method: str, url: str, headers: list[tuple[str, str]], body: bytes, send: Send,
    refused: Callable[[int], bool],
) -> bool:  # fmt: skip
    started = False
    try:
        async with session.request(
            method, URL(url, encoded=True), headers=headers, data=body or None, allow_redirects=False,
            auto_decompress=False, skip_auto_headers=_AUTOMATIC,
        ) as response:  # fmt: skip
            if refused(response.status):
                return False
            await send({"type": "http.response.start", "status": response.status, "headers": _passed(response)})
            started = True
            async for chunk in response.content.iter_any():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
    except aiohttp.ClientConnectorError as error:
        raise BackendUnreached(f"{url} did not answer: {error}") from error
    except (aiohttp.ClientError, OSError) as error:
        if started:
            raise ClientGone from error
        raise BackendFailed(f"{url} did not answer: {str(error) or type(error).__name__}") from error
    return True


async def until_gone(receive: Receive) -> None:
    """Return once the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _passed(response: aiohttp.ClientResponse) -> list[tuple[bytes, bytes]]:
    return [(name.lower(), value) for name, value in response.raw_headers if name.lower() not in _HOP]
