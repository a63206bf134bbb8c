"""A small real server that speaks the API of a replica: what it answers is what the test scripts."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def row(job: str = "job-1", **changes: object) -> dict[str, object]:
    """Return a row of WIRE section 3."""
    given: dict[str, object] = {
        "id": "staging:m@worker-1", "jobID": job, "name": "m", "fullName": "m", "taskType": "staging",
        "state": "running", "phase": "transferring", "progress": 40, "currentBytes": 400, "totalBytes": 1000,
        "fileName": "a", "fileIndex": 1, "totalFiles": 2, "bytesPerSecond": 100.0, "etaSeconds": 6.0,
        "nodeName": "worker-1", "nodeID": "worker-1", "owner": "w#1", "attempt": 1, "isDeletion": False,
        "isBackend": False, "isQueued": False, "cancellable": True, "message": "a, 1 of 2",
        "startedAt": "2026-11-24T01:48:00.123Z", "updatedAt": "2026-11-24T01:48:04.123Z",
    }  # fmt: skip
    return given | changes


class ReplicaStandIn:
    """Keeps the requests that it got; answers each with the next of ``script``, or from ``routes``."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[web.Request] = []
        self.bodies: list[object] = []
        self.script: deque[Handler] = deque()
        self.routes: dict[str, Handler] = {}
        self.streams: asyncio.Queue[Handler] = asyncio.Queue()

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        self.bodies.append(await request.json() if request.can_read_body else None)
        if self.script:
            return await self.script.popleft()(request)
        if request.path == "/api/operations/stream":
            return await (await self.streams.get())(request)
        key = f"{request.method} {request.raw_path.partition('?')[0]}"
        return await self.routes[key](request)


@asynccontextmanager
async def replica_stand_in() -> AsyncIterator[ReplicaStandIn]:
    """Serve on a free port for as long as the block lasts."""
    stand_in = ReplicaStandIn()
    runner = web.ServerRunner(web.Server(stand_in), shutdown_timeout=0.1)  # type: ignore[arg-type]
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    stand_in.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield stand_in
    await runner.cleanup()


def answering(body: object, status: int = 200, **headers: str) -> Handler:
    """Answer with JSON."""

    async def answer(request: web.Request) -> web.StreamResponse:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.json_response(body, status=status, headers=names)

    return answer


def refusing(status: int, code: str, message: str = "no") -> Handler:
    """Answer with an error."""
    return answering({"error": {"code": code, "message": message}}, status)


async def breaking_off(request: web.Request) -> web.StreamResponse:
    """Close the connection instead of an answer, as a process does that is killed."""
    assert request.transport is not None
    request.transport.close()
    return web.Response()


def streaming(*events: str, ends: bool = True) -> Handler:
    """Answer with server-sent events, and end the response, or leave it open."""

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Stagecast-Replica": "replica-1"})
        await response.prepare(request)
        for event in events:
            await response.write(event.encode())
        if not ends:
            await asyncio.Event().wait()
        return response

    return stream
