"""The application: the routes of a replica put together, and how errors leave it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import aiohttp
from litestar import Litestar, Request, Response, get
from litestar.di import Provide
from litestar.enums import MediaType
from litestar.handlers import asgi
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.static_files import create_static_files_router

from stagecast.errors import NotReady
from stagecast.frontend.disk_api import DiskApi
from stagecast.frontend.docs import readable
from stagecast.frontend.gate import Gate
from stagecast.frontend.installs import Installs
from stagecast.frontend.limits_api import LimitsApi
from stagecast.frontend.models_api import ModelsApi
from stagecast.frontend.nodes_api import NodesApi
from stagecast.frontend.openai import OpenAI
from stagecast.frontend.operations_api import OperationsApi
from stagecast.frontend.refusals import handlers
from stagecast.frontend.replica import Replica
from stagecast.frontend.segment import Segments
from stagecast.metrics import Metrics
from stagecast.proxy import Receive, Scope, Send

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
            OperationsApi, ModelsApi, NodesApi, DiskApi, LimitsApi, healthz, readyz, show_metrics, index, docs, v1,
            create_static_files_router("/page", [PAGE], include_in_schema=False),
        ],
        dependencies={
            "participant": Provide(lambda: replica.participant, sync_to_thread=False),
            "replica": Provide(lambda: replica, sync_to_thread=False),
            "installs": Provide(lambda: installs, sync_to_thread=False),
        },
        exception_handlers=handlers("; see /api/docs"),
        openapi_config=OpenAPIConfig(
            title="Stagecast", version="1", path="/api/openapi.json", render_plugins=[JsonRenderPlugin(path="/")],
            description="Operations, models and nodes of a Stagecast cluster; any replica answers for all of it.",
        ),
        logging_config=None,
    )  # fmt: skip
    return Gate(Segments(application), replica.tracker, replica.name, api_key)
