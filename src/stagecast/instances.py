"""A worker's own listener: passes requests on to the exact backend that they name, and to no other.

``/instances/<instance>/<path>`` reaches the backend of that instance, or is refused with 421: a model that was
restarted, unloaded or replaced never answers in another one's name.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable

import aiohttp
import msgspec

from stagecast.errors import BackendUnreached, StagecastError, Unauthorized, Unknown
from stagecast.loader import Loader
from stagecast.metrics import Metrics
from stagecast.proxy import ClientGone, Receive, Scope, Send, forward, raw_path, read_body

MISDIRECTED = 421


class Instances:
    """An ASGI application.

    ``session`` makes a new connection for each request: only so it is certain that a dead backend was sent nothing.
    """

    def __init__(
        self, loader: Loader, session: aiohttp.ClientSession, metrics: Metrics, token: str, is_ready: Callable[[], bool]
    ) -> None:
        self._loader = loader
        self._metrics = metrics
        self._session = session
        self._token = token.encode()
        self._is_ready = is_ready

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        path: str = scope["path"]
        if path in {"/healthz", "/readyz"}:
            ready = path == "/healthz" or self._is_ready()
            await _answer(send, 200 if ready else 503, {"ready": ready})
            return
        try:
            self._admit(scope)
            if path == "/metrics":
                await _send(send, 200, self._metrics.text(), self._metrics.content_type)
                return
            await self._pass_on(raw_path(scope), scope, receive, send)
        except ClientGone:
            return
        except StagecastError as error:
            await _answer(send, error.status, {"error": {"code": error.code, "message": error.message}})

    async def _pass_on(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        root, _, rest = path.lstrip("/").partition("/")
        instance, _, inner = rest.partition("/")
        if root != "instances":
            raise Unknown("path", path)
        base = self._loader.url(instance)
        if base is None:
            await _misdirect(instance, send)
            return
        body = await read_body(receive)
        query = scope["query_string"].decode("latin-1")
        url = f"{base}/{inner}" + (f"?{query}" if query else "")
        try:
            await forward(
                self._session, scope["method"], url, scope["headers"], body, receive, send,
                drop=frozenset({b"authorization"}),
            )  # fmt: skip
        except BackendUnreached:
            # It died a moment ago and nobody has seen that yet.
            await _misdirect(instance, send)

    def _admit(self, scope: Scope) -> None:
        if not self._token:
            return
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        if not hmac.compare_digest(given, b"Bearer " + self._token):
            raise Unauthorized


async def _misdirect(instance: str, send: Send) -> None:
    said = {"code": "wrong_instance", "message": f"instance {instance} does not run here (any more)"}
    await _answer(send, MISDIRECTED, {"error": said})


async def _answer(send: Send, status: int, body: object) -> None:
    await _send(send, status, msgspec.json.encode(body), "application/json")


async def _send(send: Send, status: int, data: bytes, media_type: str) -> None:
    headers = [(b"content-type", media_type.encode()), (b"content-length", str(len(data)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})
