from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from stagecast.bus import Lost
from stagecast.bus.memory import MemoryBus
from stagecast.client import Client
from stagecast.errors import BadInput, ModelLoading, NotReady, ReplicaBehind, Unauthorized
from stagecast.event_stream import StreamEvent
from stagecast.frontend import events, gate
from stagecast.frontend.gate import Gate
from stagecast.frontend.refusals import error_body
from stagecast.proxy import Receive, Scope, Send
from stagecast.revision import Revision, identity_of, parse
from stagecast.tracker import Tracker
from tests.alone import Alone, alone

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Alone]:
    async with alone(tmp_path_factory.mktemp("guarded"), api_key="key") as running:
        yield running


@pytest.mark.parametrize(
    "path",
    ["/api/operations", "/api/nodes", "/api/docs", "/api/openapi.json", "/api/nothing", "/v1/models", "/metrics"],
)
async def test_without_the_key_nothing_is_said(guarded: Alone, path: str) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic key"}, {"Authorization": "key"}):
        answer = await guarded.get(path, headers=headers)
        said = answer.json["error"]
        assert (answer.status, said["code"], said["message"]) == (401, "unauthorized", "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("value", ["Bearer key", "bearer key", "Bearer  key "])
async def test_with_the_key_everything_is(guarded: Alone, value: str) -> None:
    for path in ("/api/operations", "/v1/models", "/metrics", "/api/openapi.json"):
        assert (await guarded.get(path, headers={"Authorization": value})).status == 200


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/page/page.css"])
async def test_the_page_and_health_are_for_everybody(guarded: Alone, path: str) -> None:
    assert (await guarded.get(path)).status == 200


async def test_an_error_of_v1_has_openai_s_shape_also_at_the_gate(guarded: Alone) -> None:
    assert (await guarded.get("/v1/models")).json == {
        "error": {"message": "unauthorized", "type": "invalid_request_error", "param": None, "code": "unauthorized"}
    }


async def test_every_answer_says_who_gave_it_and_of_the_api_at_which_revision(here: Alone) -> None:
    for path in ("/api/operations", "/api/nodes", "/api/nothing", "/api/operations/nope"):
        before = here.peer.revision
        answer = await here.get(path)
        said = parse(answer.headers["stagecast-revision"])
        assert answer.headers["stagecast-replica"] == "here"
        # It says things of itself meanwhile, as how its disk stands.
        assert said is not None
        assert before.reached_by(said)
        assert said.reached_by(here.peer.revision)
    answer = await here.get("/healthz")
    assert answer.headers["stagecast-replica"] == "here"
    assert "stagecast-revision" not in answer.headers


async def test_a_revision_that_is_reached_is_answered_at_once(here: Alone) -> None:
    now = str(here.peer.revision)
    assert (await here.get("/api/operations", params={"min_revision": now})).json["revision"] == now
    assert (await here.get("/api/operations", headers={"Stagecast-Min-Revision": now})).status == 200
    quoted = await here.get("/api/operations", params={"min_revision": f'"{now}"'})
    assert quoted.status == 200


async def test_a_revision_on_its_way_is_waited_for(here: Alone) -> None:
    wanted = here.peer.revision._replace(sequence=here.peer.revision.sequence + 1)
    asked = asyncio.create_task(here.get("/api/operations", params={"min_revision": str(wanted)}))
    await here.running("staging", "waited", "there")
    answer = await asked
    assert answer.status == 200
    assert "staging:waited@there" in {row["id"] for row in answer.json["operations"]}


async def test_a_replica_that_cannot_hear_the_log_makes_nobody_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "MIN_REVISION_WAIT", 1000.0)
    tracker = Tracker(MemoryBus(), "replica/1")
    async with tracker.running():
        await tracker.caught_up.wait()
        held = tracker.revision
        ahead = Revision(held.identity, held.sequence + 1)
        asked = asyncio.create_task(gate.catch_up(tracker, ahead))
        await asyncio.sleep(0)
        assert not asked.done()
        tracker._hear(Lost())
        async with asyncio.timeout(60):
            with pytest.raises(ReplicaBehind):
                await asked
            with pytest.raises(ReplicaBehind):
                await gate.catch_up(tracker, ahead)
            await gate.catch_up(tracker, held)


async def test_a_revision_of_a_later_log_that_is_gone_ends_in_a_fresh_picture(
    here: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "MIN_REVISION_WAIT", 0.01)
    gone = f"{identity_of(1e10)}-7"
    assert (await here.get("/api/operations", params={"min_revision": gone})).status == 200
    assert (await here.get("/api/operations", params={"after": gone, "wait": "30"})).status == 200
    assert await events.begin(here.peer, gone) is None
    async with Client(here.url, revision=gone) as client:
        await client.operations()
        assert client.revision != gone
        await client.operations()
        [snapshot] = [event async for event in limited(client.stream(), 1)]
    assert snapshot.event == "snapshot"


async def limited(stream: AsyncGenerator[StreamEvent, None], count: int) -> AsyncIterator[StreamEvent]:
    async with aclosing(stream):
        for _ in range(count):
            yield await anext(stream)


@pytest.mark.parametrize("path", ["/api/operations", "/api/operations/stream", "/api/models"])
async def test_a_replica_that_stays_behind_says_when_to_ask_again(
    here: Alone, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(gate, "MIN_REVISION_WAIT", 0.01)
    ahead = str(here.peer.revision._replace(sequence=10**9))
    for options in ({"params": {"min_revision": ahead}}, {"headers": {"Stagecast-Min-Revision": ahead}}):
        answer = await here.get(path, **options)
        said = f"this replica has not reached revision {ahead} yet; ask again"
        assert answer.error == (503, "replica_behind", said)
        assert answer.headers["retry-after"] == "1"


@pytest.mark.parametrize("text", ["garbage", "", "-", "a-", "a-b", "-5", "a-9999999999999999999999", "another-10000"])
async def test_garbage_and_revisions_of_another_log_are_ignored(here: Alone, text: str) -> None:
    assert (await here.get("/api/operations", params={"min_revision": text})).status == 200
    assert (await here.get("/api/operations", headers={"Stagecast-Min-Revision": text})).status == 200


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 204})
    await send({"type": "http.response.body", "body": b""})


async def asked(gate: Gate, path: str) -> list[Any]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request"}

    await gate({"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b""}, receive, send)
    return sent


async def test_before_the_log_was_read_only_health_is_told() -> None:
    tracker = Tracker(MemoryBus(), "p")
    unready = Gate(application, tracker, "näme", "")
    start, body = await asked(unready, "/api/operations")
    assert start["status"] == 503
    assert (b"retry-after", b"1") in start["headers"]
    assert msgspec.json.decode(body["body"]) == {
        "error": {"code": "not_ready", "message": "not ready: the log has not been read yet"}
    }
    assert (await asked(unready, "/healthz"))[0]["status"] == 204
    tracker.fold.revision = Revision("x", 7)
    tracker.caught_up.set()
    [start, _] = await asked(unready, "/api/operations")
    assert (b"Stagecast-Revision", b"x-7") in start["headers"]
    assert (b"Stagecast-Replica", "näme".encode()) in start["headers"]


async def test_errors_have_the_shape_of_where_they_happen() -> None:
    assert msgspec.json.decode(error_body(BadInput("no"), "/api/models")) == {
        "error": {"code": "bad_input", "message": "no"}
    }
    for error, kind in ((BadInput("no"), "invalid_request_error"), (NotReady("x"), "server_error")):
        said = msgspec.json.decode(error_body(error, "/v1/chat/completions"))["error"]
        assert (said["type"], said["code"], said["param"]) == (kind, error.code, None)
    assert Unauthorized().message == "unauthorized"
    assert ModelLoading("m").status == 503


KEYED_PATHS = ["/api/operations", "//api/operations", "/api//operations", "///v1/models", "//metrics", "/nothing"]


@pytest.mark.parametrize("path", KEYED_PATHS)
async def test_no_spelling_of_a_path_leads_around_the_key_and_nothing_else_is_said(path: str) -> None:
    tracker = Tracker(MemoryBus(), "p")
    tracker.caught_up.set()
    start, body = await asked(Gate(application, tracker, "name", "key"), path)
    assert start["status"] == 401
    assert not [name for name, _ in start["headers"] if name.lower().startswith(b"stagecast")]
    assert b"unauthorized" in body["body"]


@pytest.mark.parametrize(
    ("origin", "status"), [("", 204), ("http://here:8080", 204), ("http://evil.example", 403), ("null", 403)]
)
async def test_pages_of_other_sites_change_nothing(origin: str, status: int) -> None:
    tracker = Tracker(MemoryBus(), "p")
    tracker.caught_up.set()
    headers = [(b"host", b"here:8080")] + ([(b"origin", origin.encode())] if origin else [])
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request"}

    scope = {"type": "http", "method": "POST", "path": "/api/models/m/stage", "headers": headers, "query_string": b""}
    await Gate(application, tracker, "name", "")(scope, receive, send)
    assert sent[0]["status"] == status


@pytest.mark.parametrize(
    ("method", "placed", "told"),
    [
        ("POST", ("b", 9), ("b", 9)),
        ("GET", ("b", 9), ("b", 3)),
        ("POST", ("b", 2), ("b", 3)),
        ("POST", ("c", 9), ("b", 3)),
    ],
)
async def test_an_answer_to_a_write_tells_of_that_but_of_no_log_that_is_gone(
    method: str, placed: tuple[str, int], told: tuple[str, int]
) -> None:
    """The clock of a lost log may have run ahead of the present one's: nobody could ever reach what stood there."""
    tracker = SimpleNamespace(revision=Revision("b", 3), identity="b", placed=Revision(*placed))
    assert Gate(None, tracker, "one", "")._reached(method) == told  # type: ignore[arg-type]
