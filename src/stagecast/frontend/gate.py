"""The gate: what every request passes before any route. Who may come in, how fresh it must be, who answers it."""

from __future__ import annotations

import hmac
from typing import Final
from urllib.parse import parse_qs, urlsplit

from stagecast import revision
from stagecast.errors import CrossOrigin, NotReady, ReplicaBehind, StagecastError, Unauthorized
from stagecast.frontend.refusals import refuse
from stagecast.frontend.segment import one_slash_each
from stagecast.proxy import Message, Receive, Scope, Send
from stagecast.revision import Revision
from stagecast.tracker import Tracker

MIN_REVISION_WAIT: Final = 2.0
"""Seconds that a replica which is behind waits to reach the revision that a client has seen (WIRE section 3)."""
_REVISION: Final = b"stagecast-revision"
_OPEN: Final = ("/page/",)
_OPEN_PATHS: Final = frozenset({"/", "/healthz", "/readyz"})


class Gate:
    """ASGI middleware around the whole application."""

    def __init__(self, app: object, tracker: Tracker, name: str, api_key: str) -> None:
        self._app = app
        self._tracker = tracker
        self._name = name.encode("utf-8")
        self._key = api_key.encode("utf-8")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)  # type: ignore[operator]  # an ASGI application
            return
        # As the routes see it, or a second slash would lead around the key. The server itself drops a HEAD's body.
        path = one_slash_each(scope["path"])
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        scope = {**scope, "path": path, "method": method}

        async def signed(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] != Unauthorized.status:
                headers = [*message.get("headers", ()), (b"Stagecast-Replica", self._name)]
                if path.startswith(("/api", "/v1")) and all(name != _REVISION for name, _ in headers):
                    headers.append((b"Stagecast-Revision", str(self._reached(method)).encode()))
                message["headers"] = headers
            await send(message)

        try:
            self._admit(scope, path)
            if path.startswith("/api"):
                await self._catch_up(scope)
        except StagecastError as error:
            await refuse(error, path, signed)
            return
        await self._app(scope, receive, signed)  # type: ignore[operator]  # an ASGI application

    def _reached(self, method: str) -> Revision:
        """Return what an answer shows, or of one that tells of a write, where the log has that (law L5)."""
        folded, placed = self._tracker.revision, self._tracker.placed
        # Of a log that is gone nothing is said, though its clock may have run ahead of the present one's.
        is_told = method != "GET" and placed.identity == self._tracker.identity
        return placed.later(folded) if is_told else folded

    def _admit(self, scope: Scope, path: str) -> None:
        """Raise `Unauthorized` unless the key is right, `NotReady` before the log was read once.

        Raises:
            CrossOrigin: a browser sends this for a page of another site.
        """
        if path in _OPEN_PATHS or path.startswith(_OPEN):
            return
        if self._key:
            given = header(scope, b"authorization")
            scheme, _, key = given.partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(key.strip(), self._key):
                raise Unauthorized
        if scope["method"] != "GET":
            _check_origin(scope)
        if not self._tracker.caught_up.is_set():
            raise NotReady("the log has not been read yet")

    async def _catch_up(self, scope: Scope) -> None:
        """Wait until this replica has folded what the client says that it has seen. Raises `ReplicaBehind`."""
        text = header(scope, b"stagecast-min-revision").decode("latin-1")
        if not text and scope["query_string"]:
            text = parse_qs(scope["query_string"].decode("latin-1")).get("min_revision", [""])[0]
        wanted = revision.parse(text) if text else None
        if wanted is not None:
            await catch_up(self._tracker, wanted)


def written(tracker: Tracker, at: Revision) -> dict[str, str]:
    """Return the header of an answer to what was written ``at`` a revision, which this replica may have yet to fold.

    Who sends it back is shown that write on whichever replica is asked next (law L5).
    """
    return {_REVISION.decode(): str(at.later(tracker.revision))}


async def catch_up(tracker: Tracker, wanted: Revision) -> None:
    """Wait until this replica has folded what a client has seen, or knows that nobody ever will.

    Raises:
        ReplicaBehind: it did not for `MIN_REVISION_WAIT`; at once where it cannot hear the log, while another one may.
    """
    await tracker.until(lambda: wanted.reached_by(tracker.revision) or tracker.is_degraded, MIN_REVISION_WAIT)
    if not await tracker.reached(wanted, 0):
        raise ReplicaBehind(str(wanted))


def _check_origin(scope: Scope) -> None:
    """Raise `CrossOrigin` where a browser says that another site's page asks: that page has no key, its reader may."""
    origin = header(scope, b"origin").decode("latin-1")
    hosts = {header(scope, name).decode("latin-1").lower() for name in (b"host", b"x-forwarded-host")}
    if origin and urlsplit(origin).netloc.lower() not in hosts - {""}:
        raise CrossOrigin(origin)


def header(scope: Scope, name: bytes) -> bytes:
    """Return what a request says in a header, empty if it has none; ``name`` in lower case."""
    return next((value for key, value in scope["headers"] if key.lower() == name), b"")
