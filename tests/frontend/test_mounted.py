"""The operation routes under other programs' applications, at every place, behind every kind of prefix."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from fastapi import FastAPI
from litestar import Litestar
from litestar.handlers import asgi
from starlette.applications import Starlette
from starlette.routing import Mount

import stagecast
from stagecast import commands
from stagecast.client import Client
from stagecast.event_stream import EventParser
from stagecast.frontend.mounted import Mounted, own_path
from stagecast.listener import Endpoint, bound, serving
from stagecast.participant import participating
from stagecast.tracker import Tracker
from tests.losing import LosingBus

Application = Callable[..., Awaitable[None]]


@pytest.mark.parametrize(
    ("path", "root", "outer", "expected"),
    [
        ("/jobs", "/jobs", "", ""),
        ("/jobs/", "/jobs", "", "/"),
        ("/jobs/stream", "/jobs", "", "/stream"),
        ("/jobs/api/operations/stream", "/jobs", "", "/stream"),
        ("/api/operations", "/api", "", ""),
        ("/api/operations/stream", "/api", "", "/stream"),
        ("/api/operations/stream", "/api/operations", "", "/stream"),
        ("/proxied/jobs/stream", "/proxied/jobs", "/proxied", "/stream"),
        ("/jobs/stream", "/proxied/jobs", "/proxied", "/stream"),
        ("/jobs/stream", "/proxied/jobs", "", "/jobs/stream"),
        ("/stream", "", "", "/stream"),
        ("/", "", "", "/"),
        ("/api/operations/x", "", "", "/x"),
        ("/stream", "/", "", "/stream"),
        ("/jobsearch", "/jobs", "", "/jobsearch"),
        ("/operationsx", "", "", "/operationsx"),
    ],
)
def test_what_is_left_of_a_path(path: str, root: str, outer: str, expected: str) -> None:
    assert own_path({"path": path, "root_path": root, "app_root_path": outer}) == f"/api/operations{expected}"


def fastapi(service: stagecast.Service, place: str) -> Application:
    app = FastAPI()
    app.mount(place, service.app)
    return app


def fastapi_behind_a_prefix(service: stagecast.Service, place: str) -> Application:
    """A proxy has cut a prefix off, and the server puts it back, as uvicorn's ``--root-path`` does."""
    app = fastapi(service, place)

    async def below(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "path": f"/proxied{scope['path']}", "root_path": "/proxied"}, receive, send)

    return below


def fastapi_in_a_router(service: stagecast.Service, place: str) -> Application:
    inner = FastAPI()
    inner.mount(place, service.app)
    outer = FastAPI()
    outer.mount("/inner", inner)

    async def below(scope: Any, receive: Any, send: Any) -> None:
        await outer({**scope, "path": f"/inner{scope['path']}"}, receive, send)

    return below


def starlette(service: stagecast.Service, place: str) -> Application:
    return Starlette(routes=[Mount(place, service.app)])


def litestar(service: stagecast.Service, place: str) -> Application:
    @asgi(place, is_mount=True, copy_scope=True)
    async def jobs(scope: Any, receive: Any, send: Any) -> None:
        await service.app(scope, receive, send)

    return Litestar([jobs], openapi_config=None)


def nothing_around_it(service: stagecast.Service, place: str) -> Application:
    async def below(scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"].removeprefix(place)
        await service.app({**scope, "path": path}, receive, send)

    return below


async def test_a_command_is_answered_with_where_the_log_has_it_also_by_a_replica_that_has_yet_to_hear_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or the next poll, on a replica that is behind as well, would show the state before (law L5)."""
    monkeypatch.setattr(commands, "OWNER_TIMEOUT", 0.05)
    bus = LosingBus()
    async with participating(bus, "one", judges=True) as one, served(Mounted(one, "")) as url, Client(url) as client:
        record, at = await one.tracker.open("render", "film", cause="test")
        await one.tracker.reached(at)
        with bus.log.unheard():
            assert (await client.command(record.id, "cancel")).state == "cancelled"
        assert one.tracker.revision == at
        assert client.revision == str(at._replace(sequence=at.sequence + 1))


async def test_a_program_can_say_where_the_log_has_what_it_submitted_before_it_is_heard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def at_once(*_: object) -> bool:
        return False

    monkeypatch.setattr(Tracker, "reached", at_once)
    service = stagecast.Service(name="one")
    async with service.lifespan():
        log, before = service._running.tracker.bus.log, service._running.tracker.revision
        monkeypatch.setattr(log, "_followers", set())
        await service.submit("render", "film")
        assert service._running.tracker.revision == before
        assert service.revision == str(before._replace(sequence=before.sequence + 1))


@asynccontextmanager
async def served(application: Application) -> AsyncIterator[str]:
    with bound(Endpoint("127.0.0.1", 0)) as listening:
        async with serving(application, listening):
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"


HOSTS = [fastapi, fastapi_behind_a_prefix, fastapi_in_a_router, starlette, litestar, nothing_around_it]


@pytest.mark.parametrize("place", ["/jobs", "/deep/down"])
@pytest.mark.parametrize("host", HOSTS)
async def test_every_route_works_wherever_it_is_mounted(
    host: Callable[[stagecast.Service, str], Application], place: str
) -> None:
    service = stagecast.Service(name="one")
    async with service.lifespan(), served(host(service, place)) as url, stagecast.Client(url + place) as client:
        row = await service.submit("render", "film", total=240)
        assert [each.id for each in (await client.operations()).operations] == [row.id]
        assert (client.replica, client.revision) == ("one", service.revision)
        assert (await client.operation(row.job_id)) == row == await client.operation(row.id)
        assert (await client.command(row.id, "cancel")).state == "cancelled"
        record, revision = await service._running.tracker.open("render", "reels/one/cancel", cause="another program")
        await service._running.tracker.reached(revision)
        deep = service.row(record.id)
        assert (await client.operation(deep.id)) == deep
        assert (await client.command(deep.id, "cancel")).id == deep.id
        assert [each.job_id for each in await client.history(kind="render", model="film")] == [row.job_id]
        async with aiohttp.ClientSession() as http:
            async with http.get(f"{url}{place}/", allow_redirects=False) as response:
                assert (response.status, response.headers["ETag"]) == (200, f'"{service.revision}"')
            headers = {"If-None-Match": f'"{service.revision}"'}
            async with http.get(f"{url}{place}/", headers=headers) as response:
                assert response.status == 304
            async with http.get(f"{url}{place}/{deep.id}") as response:
                assert (response.status, (await response.json())["state"]) == (200, "cancelled")
            async with http.post(f"{url}{place}/{deep.id}/retry") as response:
                assert (response.status, (await response.json())["state"]) == (200, "queued")
            async with http.get(f"{url}{place}/render:nothing") as response:
                assert (response.status, (await response.json())["error"]["code"]) == (404, "not_found")
            async with http.get(f"{url}{place}/history", params={"kind": "baking"}) as response:
                assert (response.status, (await response.json())["error"]["code"]) == (400, "bad_input")
            async with http.get(f"{url}{place}/a/b/c") as response:
                assert (response.status, (await response.json())["error"]["code"]) == (404, "not_found")


async def test_the_stream_is_told_what_happens_and_resumes() -> None:
    service = stagecast.Service(name="one")
    async with service.lifespan(), served(fastapi(service, "/jobs")) as url, aiohttp.ClientSession() as http:
        seen = service.revision
        async with http.get(f"{url}/jobs/stream") as response:
            await service.submit("render", "film", total=240)
            events = EventParser()
            found: list[Any] = []
            async with asyncio.timeout(60):
                while len(found) < 2:
                    found += events.feed(await response.content.readany())
        assert [event.event for event in found] == ["snapshot", "operation"]
        assert json.loads(found[1].data)["id"] == "render:film"
        async with http.get(f"{url}/jobs/stream", headers={"Last-Event-ID": seen}) as response:
            async with asyncio.timeout(60):
                resumed: list[Any] = []
                while not resumed:
                    resumed += EventParser().feed(await response.content.readany())
        assert [event.event for event in resumed] == ["operation"]


async def test_a_key_is_asked_for_where_the_program_says_so() -> None:
    service = stagecast.Service(name="one", api_key="key")
    async with service.lifespan(), served(fastapi(service, "/jobs")) as url, aiohttp.ClientSession() as http:
        for path in ("/jobs/", "/jobs/stream", "/jobs/api/operations", "/jobs//", "/jobs/readyz"):
            async with http.get(url + path) as response:
                assert (response.status, await response.json()) == (
                    401, {"error": {"code": "unauthorized", "message": "unauthorized"}},
                )  # fmt: skip
        async with http.get(f"{url}/jobs/", headers={"Authorization": "Bearer key"}) as response:
            assert response.status == 200


async def test_a_revision_that_is_not_reached_is_waited_for_and_then_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from stagecast.frontend import gate

    monkeypatch.setattr(gate, "MIN_REVISION_WAIT", 0.01)
    service = stagecast.Service(name="one")
    async with service.lifespan(), served(fastapi(service, "/jobs")) as url, aiohttp.ClientSession() as http:
        ahead = f"{service.revision.rpartition('-')[0]}-99"
        async with http.get(f"{url}/jobs/", headers={"Stagecast-Min-Revision": ahead}) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (503, "replica_behind")


async def test_pages_of_other_sites_cancel_nothing() -> None:
    service = stagecast.Service(name="one")
    async with service.lifespan(), served(fastapi(service, "/jobs")) as url, aiohttp.ClientSession() as http:
        row = await service.submit("render", "film")
        headers = {"Origin": "https://evil.example"}
        async with http.post(f"{url}/jobs/{row.id}/cancel", headers=headers) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (403, "cross_origin")
        assert service.row(row.id).state == "queued"
