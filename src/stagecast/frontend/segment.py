"""The segment: an operation's id may have slashes in it, but a route takes one segment of the path for an id."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote

from stagecast.proxy import Receive, Scope, Send, raw_path

HOME: Final = "/api/operations"
"""Where a replica of ours has these routes, and where every client of ours looks for them below its base URL."""
_SLASHES: Final = re.compile("/{2,}")
_BELOW: Final = re.compile("/+api/+operations/+([^/].*)", re.DOTALL)


class Segments:
    """ASGI middleware around the routes: makes each id one segment, whether it came with ``/`` or with ``%2F``."""

    def __init__(self, app: object) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http" and scope["path"].startswith(f"{HOME}/"):
            has_verb = scope["method"] == "POST" and _ends_in_a_segment(scope)
            # A slash at the end is no part of an id, unless it was sent as one.
            path = scope["path"] if raw_path(scope).lower().endswith("%2f") else scope["path"].rstrip("/")
            scope = {**scope, "path": with_one_segment(path, has_verb=has_verb)}
        await self._app(scope, receive, send)  # type: ignore[operator]  # an ASGI application


def one_slash_each(path: str) -> str:
    """Return a decoded path in which no slash follows another one; those in an operation's id are the id's own."""
    return _SLASHES.sub("/", path) if (below := _BELOW.match(path)) is None else f"{HOME}/{below[1]}"


def with_one_segment(path: str, *, has_verb: bool) -> str:
    """Return a decoded path below `HOME` with its id as one segment, which `whole_id` reads; a verb may follow it."""
    below = path.removeprefix(HOME).lstrip("/")
    operation, slash, verb = below.rpartition("/") if has_verb else (below, "", "")
    return f"{HOME}/{operation.replace('%', '%25').replace('/', '%2F')}{slash}{verb}"


def whole_id(segment: str) -> str:
    """Return the id that a segment stands for."""
    return unquote(segment)


def _ends_in_a_segment(scope: Scope) -> bool:
    """Tell whether the last word of the path was one when it was sent, not the end of an id that has a slash."""
    return "%2f" not in raw_path(scope).rpartition("/")[2].lower()
