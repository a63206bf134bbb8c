"""How errors leave a frontend: every one as JSON with a stable word, whoever found it (WIRE section 3)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.enums import MediaType
from litestar.exceptions import HTTPException

from stagecast.errors import StagecastError
from stagecast.proxy import Send

_logger = logging.getLogger(__name__)

AnyRequest = Request[Any, Any, Any]


def error_body(error: StagecastError, path: str) -> bytes:
    """Return an error as JSON: OpenAI's shape below ``/v1``, ours elsewhere (WIRE section 3)."""
    if path.startswith("/v1"):
        kind = "invalid_request_error" if error.status < 500 else "server_error"
        return msgspec.json.encode(
            {"error": {"message": error.message, "type": kind, "param": None, "code": error.code}}
        )
    return msgspec.json.encode({"error": {"code": error.code, "message": error.message}})


async def refuse(error: StagecastError, path: str, send: Send) -> None:
    """Send an error as a whole response."""
    body = error_body(error, path)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if error.status == 503:
        headers.append((b"retry-after", b"1"))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def handlers(hint: str = "") -> dict[int | type[Exception], Callable[[Any, Any], Response[bytes]]]:
    """Return what answers for each kind of error in a litestar application; ``hint`` says where to read on."""
    return {
        StagecastError: _answer_error,
        HTTPException: partial(_answer_refusal, hint),
        Exception: _answer_surprise,
    }


def _answer_error(request: AnyRequest, error: StagecastError) -> Response[bytes]:
    headers = {"Retry-After": "1"} if error.status == 503 else {}
    body = error_body(error, request.url.path)
    return Response(body, status_code=error.status, media_type=MediaType.JSON, headers=headers)


def _answer_refusal(hint: str, request: AnyRequest, error: HTTPException) -> Response[bytes]:
    codes = {404: "not_found", 405: "method_not_allowed", 400: "bad_input"}
    said: dict[str, object] = {"code": codes.get(error.status_code, "refused"), "message": error.detail}
    if error.status_code == 404:
        said["message"] = f"there is nothing at {request.url.path}{hint}"
    elif error.status_code == 400:
        said["message"] = f"{request.method} {request.url.path} does not take that: {_causes(error)}{hint}"
    if error.extra:
        said["detail"] = error.extra
    body = msgspec.json.encode({"error": said}, enc_hook=str)
    return Response(body, status_code=error.status_code, media_type=MediaType.JSON)


def _causes(error: HTTPException) -> str:
    """Return why a request cannot be read. What litestar knows of it lies in ``extra``, and calls a body ``data``."""
    if not isinstance(error.extra, list):
        return error.detail
    found = {str(each.get("key", "")): str(each.get("message", "")) for each in error.extra if isinstance(each, dict)}
    return "; ".join(
        "the body is missing" if message == "'data'" else f"{'body' if key == 'data' else key}: {message}"
        for key, message in found.items()
    )


def _answer_surprise(request: AnyRequest, error: Exception) -> Response[bytes]:
    _logger.error("%s %s", request.method, request.url.path, exc_info=error)
    said = {"code": "internal", "message": f"{type(error).__name__}: see this replica's log"}
    return Response(msgspec.json.encode({"error": said}), status_code=500, media_type=MediaType.JSON)
