"""A response whose bytes are there already: nothing of it is made anew for each request."""

from __future__ import annotations

from typing import Any, TypeVar, cast

from litestar import Response
from litestar.types import ASGIApp

from stagecast.proxy import Receive, Scope, Send

Said = TypeVar("Said")


class Encoded(Response[Said]):
    """JSON bytes with these headers, sent as they are. To the documentation it is what the bytes say."""

    def __init__(self, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        self.status_code = status
        self._body = body
        self._headers = headers

    def to_asgi_response(self, *_: Any, **__: Any) -> ASGIApp:  # type: ignore[override]  # what it is given is made anew
        """Return what sends it."""
        return cast("ASGIApp", self._send)

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        headers = self._headers
        if self.status_code != 304:
            length = str(len(self._body)).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", length), *headers]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": self._body})
