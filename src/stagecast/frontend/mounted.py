"""The operation routes alone, to be mounted anywhere in another program's own ASGI application."""

from __future__ import annotations

from typing import Final

from litestar import Litestar
from litestar.di import Provide

from stagecast.frontend.gate import Gate
from stagecast.frontend.operations_api import OperationsApi
from stagecast.frontend.refusals import handlers
from stagecast.frontend.segment import HOME, Segments
from stagecast.participant import Participant
from stagecast.proxy import Receive, Scope, Send

SHORT: Final = "/operations"
"""What is left of it for who mounts the routes at ``/api``."""


class Mounted:
    """An ASGI application that answers as `HOME` does on a replica, wherever it is mounted.

    Below the place where it is mounted the routes have no prefix, but that of `HOME` is understood too: so the base URL
    of a `stagecast.Client` is that place.
    """

    def __init__(self, participant: Participant, api_key: str) -> None:
        routes = Litestar(
            route_handlers=[OperationsApi],
            dependencies={"participant": Provide(lambda: participant, sync_to_thread=False)},
            exception_handlers=handlers(),
            openapi_config=None,
            logging_config=None,
        )
        self._gate = Gate(Segments(routes), participant.tracker, participant.name, api_key)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. What the program around it has put into the scope is none of ours."""
        own = {"path": own_path(scope), "root_path": "", "path_params": {}, "state": {}}
        await self._gate({**scope, **own}, receive, send)


def own_path(scope: Scope) -> str:
    """Return what a request's path is on a replica of ours.

    Frameworks differ in what they cut off: the path of the scope may still begin with ``root_path``, or only with that
    part of it that is the mount's own (a proxy before the server has taken the rest), or with neither.
    """
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    for mount in (root, root.removeprefix(scope.get("app_root_path", ""))):
        if mount.strip("/") and _is_below(path, mount):
            path = path[len(mount.rstrip("/")) :]
            break
    for prefix in (HOME, SHORT):
        if _is_below(path, prefix):
            path = path[len(prefix) :]
            break
    return f"{HOME}{path}"


def _is_below(path: str, prefix: str) -> bool:
    return f"{path}/".startswith(f"{prefix.rstrip('/')}/")
