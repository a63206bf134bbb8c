"""``/v1``: OpenAI-compatible requests, routed to a worker that has the model; streaming passes through as it comes."""

from __future__ import annotations

import re
from typing import Final

import aiohttp
import msgspec

from stagecast.errors import BackendFailed, BadInput, ModelLoading, StagecastError, Unknown
from stagecast.frontend.refusals import refuse
from stagecast.frontend.replica import Replica
from stagecast.proxy import ClientGone, Receive, Scope, Send, forward, raw_path, read_body
from stagecast.router import Target

TRIES: Final = 3
WRONG_INSTANCE: Final = 421
"""Status by which a worker refuses a request that is meant for another instance (RFC 9110: misdirected)."""
_MULTIPART_MODEL: Final = re.compile(rb'name="model"\r\n(?:[^\r\n]+\r\n)*\r\n([^\r\n]{1,300})\r\n')
_SECRETS: Final = frozenset({b"authorization", b"cookie"})


class ModelRequest(msgspec.Struct):
    """The one field of a request's body that routing looks at."""

    model: str = ""


class OpenAI:
    """An ASGI application to be mounted at ``/v1``."""

    def __init__(self, replica: Replica, session: aiohttp.ClientSession) -> None:
        self._replica = replica
        self._session = session

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        path = "/v1/" + str(scope["path"]).removeprefix("/v1").strip("/")
        try:
            if path == "/v1/models" and scope["method"] == "GET":
                await _answer(send, {"object": "list", "data": [_card(name) for name in self._models()]})
            elif path.startswith("/v1/models/") and scope["method"] == "GET":
                await self._show_model(path.removeprefix("/v1/models/"), send)
            else:
                await self._route(scope, path, receive, send)
        except ClientGone:
            return
        except ModelLoading as error:
            await self._say_loading(error, send)
        except StagecastError as error:
            await refuse(error, "/v1", send)

    async def _route(self, scope: Scope, path: str, receive: Receive, send: Send) -> None:
        body = await read_body(receive)
        model = requested_model(path, scope, body)
        avoid: frozenset[str] = frozenset()
        for attempt in range(TRIES):
            target = await self._replica.router.ready(model, self._replica.wait_budget, avoid)
            try:
                if await self._forward(target, scope, path, body, receive, send):
                    return
            except BackendFailed:
                if attempt == TRIES - 1:
                    raise
            avoid |= {target.instance}
        raise BackendFailed(f"no backend of {model} took the request; see the operations, then retry")

    async def _forward(
        self, target: Target, scope: Scope, path: str, body: bytes, receive: Receive, send: Send
    ) -> bool:
        query = scope["query_string"].decode("latin-1")
        sent = raw_path(scope)
        sent = sent if sent.startswith("/v1") else path
        url = f"{target.address}/instances/{target.instance}{sent}" + (f"?{query}" if query else "")
        token = self._replica.token
        with self._replica.router.using(target):
            return await forward(
                self._session, scope["method"], url, scope["headers"], body, receive, send,
                drop=_SECRETS, extra={"Authorization": f"Bearer {token}"} if token else None,
                refused=lambda status: status == WRONG_INSTANCE,
            )  # fmt: skip

    async def _show_model(self, name: str, send: Send) -> None:
        if name not in self._models():
            raise Unknown("model", name, self._models())
        await _answer(send, _card(name))

    def _models(self) -> list[str]:
        return [name for name in self._replica.fold.models() if self._replica.fold.holders(name)]

    async def _say_loading(self, error: ModelLoading, send: Send) -> None:
        standing = self._replica.router.standing(error.model)
        eta = standing.eta_seconds
        seconds = 5 if isinstance(eta, msgspec.UnsetType) else max(1, round(eta))
        said = {"message": error.message, "type": error.code, "code": error.code}
        await _answer(send, {"error": said, "loading": standing}, 503, [(b"retry-after", str(seconds).encode())])


def requested_model(path: str, scope: Scope, body: bytes) -> str:
    """Return the model that a request names, in its JSON or multipart body. Raises `BadInput`."""
    kind = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
    if kind.startswith(b"multipart/"):
        found = _MULTIPART_MODEL.search(body)
        model = found[1].decode("utf-8", "replace") if found else ""
    else:
        try:
            model = msgspec.json.decode(body, type=ModelRequest).model if body else ""
        except msgspec.DecodeError as error:
            raise BadInput(f"the body is not the JSON that {path} takes: {error}") from None
    if not model:
        raise BadInput('the request names no model; say "model" in its body')
    return model


def _card(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "stagecast"}


async def _answer(
    send: Send, body: object, status: int = 200, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    data = msgspec.json.encode(body)
    own = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": own + (headers or [])})
    await send({"type": "http.response.body", "body": data})
