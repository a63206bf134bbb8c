"""The application: the routes of a replica put together, and how errors leave it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
from litestar import Litestar, Request, Response, get
from litestar.di import Provide
from litestar.enums import MediaType
from litestar.exceptions import HTTPException
from litestar.handlers import asgi
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.static_files import create_static_files_router

from stagecast.errors import NotReady, StagecastError
from stagecast.frontend.docs import readable
from stagecast.frontend.gate import Gate, error_body
from stagecast.frontend.installs import Installs
from stagecast.frontend.models_api import ModelsApi, NodesApi
from stagecast.frontend.openai import OpenAI
from stagecast.frontend.operations_api import OperationsApi
from stagecast.frontend.replica import Replica
from stagecast.metrics import Metrics
from stagecast.proxy import Receive, Scope, Send

_logger = logging.getLogger(__name__)

PAGE: Final = Path(__file__).parent / "page"
_POLICY: Final = {"Content-Security-Policy": "default-src 'self'", "Cache-Control": "no-cache"}

AnyRequest = Request[Any, Any, Any]


def build(replica: Replica, installs: Installs, session: aiohttp.ClientSession, api_key: str) -> Gate:
    """Return the ASGI application of a replica; ``session`` carries the requests that are passed on to workers."""
    metrics = Metrics(replica.tracker, replica.node)
    openai = OpenAI(replica, session)

    @get("/healthz", media_type=MediaType.TEXT, include_in_schema=False)
    async def healthz() -> str:
        return "ok"

    @get("/readyz", media_type=MediaType.TEXT, include_in_schema=False)
    async def readyz() -> str:
        if not (replica.tracker.caught_up.is_set() and replica.history.caught_up.is_set()):
            raise NotReady("the log has not been read yet")
        if not replica.node.surveyed.is_set():
            raise NotReady("the models folder has not been read yet")
        return "ready"

    @get("/metrics", include_in_schema=False)
    async def show_metrics() -> Response[bytes]:
        return Response(metrics.text(), media_type=metrics.content_type)

    @get("/", include_in_schema=False)
    async def index() -> Response[bytes]:
        return Response((PAGE / "index.html").read_bytes(), media_type=MediaType.HTML, headers=_POLICY)

    @get("/api/docs", include_in_schema=False)
    async def docs(request: AnyRequest) -> Response[str]:
        schema = request.app.openapi_schema.to_schema()
        return Response(readable(schema), media_type=MediaType.HTML, headers=_POLICY)

    @asgi("/v1", is_mount=True, copy_scope=True)
    async def v1(scope: Scope, receive: Receive, send: Send) -> None:
        await openai(scope, receive, send)

    application = Litestar(
        route_handlers=[
            OperationsApi, ModelsApi, NodesApi, healthz, readyz, show_metrics, index, docs, v1,
            create_static_files_router("/page", [PAGE], include_in_schema=False),
        ],
        dependencies={
            "participant": Provide(lambda: replica.participant, sync_to_thread=False),
            "replica": Provide(lambda: replica, sync_to_thread=False),
            "installs": Provide(lambda: installs, sync_to_thread=False),
        },
        exception_handlers={
            StagecastError: _answer_error, HTTPException: _answer_refusal, Exception: _answer_surprise,
        },
        openapi_config=OpenAPIConfig(
            title="Stagecast", version="1", path="/api/openapi.json", render_plugins=[JsonRenderPlugin(path="/")],
            description="Operations, models and nodes of a Stagecast cluster; any replica answers for all of it.",
        ),
        logging_config=None,
    )  # fmt: skip
    return Gate(application, replica.tracker, replica.name, api_key)


def _answer_error(request: AnyRequest, error: StagecastError) -> Response[bytes]:
    headers = {"Retry-After": "1"} if error.status == 503 else {}
    body = error_body(error, request.url.path)
    return Response(body, status_code=error.status, media_type=MediaType.JSON, headers=headers)


def _answer_refusal(request: AnyRequest, error: HTTPException) -> Response[bytes]:
    codes = {404: "not_found", 405: "method_not_allowed", 400: "bad_input"}
    said: dict[str, object] = {"code": codes.get(error.status_code, "refused"), "message": error.detail}
    if error.status_code == 404:
        said["message"] = f"there is nothing at {request.url.path}; see /api/docs"
    elif error.status_code == 400:
        said["message"] = f"{request.method} {request.url.path} does not take that: {_causes(error)}; see /api/docs"
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
