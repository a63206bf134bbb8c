"""Responses whose bytes are made elsewhere: whole ones that are there already, and streams of frames."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final, TypeVar, cast

from litestar import Response
from litestar.types import ASGIApp

from stagecast.proxy import Receive, Scope, Send, until_gone

Said = TypeVar("Said")
_STREAM: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]  # fmt: skip


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


class Frames(Response[bytes]):
    """Server-sent events as they come, until they end or the client is gone.

    For a client that waits there is this one task and one that looks whether it is still there: thousands can wait.
    """

    def __init__(self, frames: AsyncGenerator[bytes, None]) -> None:
        self._frames = frames

    def to_asgi_response(self, *_: Any, **__: Any) -> ASGIApp:  # type: ignore[override]  # what it is given is made anew
        """Return what sends it."""
        return cast("ASGIApp", self._send)

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        task, watcher = asyncio.current_task(), asyncio.create_task(until_gone(receive))
        assert task is not None  # noqa: S101  # a server serves in tasks

        def leave(_: object) -> None:
            task.cancel()

        watcher.add_done_callback(leave)
        try:
            async with aclosing(self._frames) as frames:
                await send({"type": "http.response.start", "status": 200, "headers": _STREAM})
                async for frame in frames:
                    await send({"type": "http.response.body", "body": frame, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
        except asyncio.CancelledError:
            if not watcher.done() or task.uncancel():
                raise
        finally:
            watcher.remove_done_callback(leave)
            watcher.cancel()
