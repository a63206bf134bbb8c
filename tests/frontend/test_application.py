from __future__ import annotations

import pytest

from stagecast.frontend import replica as replica_module
from tests.alone import Alone

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_health_and_readiness_are_plain_words(here: Alone) -> None:
    assert (await here.get("/healthz")).body == b"ok"
    assert (await here.get("/readyz")).body == b"ready"


@pytest.mark.parametrize("path", ["/api", "/api/nothing", "/nothing", "/page/nothing.js", "/api/models/a/b/c"])
async def test_a_path_that_is_not_there_points_to_the_docs(here: Alone, path: str) -> None:
    assert (await here.get(path)).error == (404, "not_found", f"there is nothing at {path}; see /api/docs")


async def test_a_method_that_a_path_does_not_take(here: Alone) -> None:
    for method, path in (("PUT", "/api/operations"), ("POST", "/api/nodes"), ("DELETE", "/")):
        status, code, _ = (await here.ask(method, path)).error
        assert (status, code) == (405, "method_not_allowed")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "the body is missing"),
        (b"{", ""),
        (b"[]", "Expected `object`"),
        (b'{"nodes": 5}', "nodes"),
        (b'{"node": "w"}', "unknown field `node`"),
    ],
)
async def test_a_body_that_cannot_be_read_is_explained(here: Alone, body: bytes, said: str) -> None:
    headers = {"Content-Type": "application/json"}
    status, code, message = (await here.ask("POST", "/api/models/owl/stage", data=body, headers=headers)).error
    assert (status, code) == (400, "bad_input")
    assert message.startswith("POST /api/models/owl/stage does not take that: ")
    assert message.endswith("; see /api/docs")
    assert said in message


async def test_what_nobody_thought_of_is_logged_and_says_no_more_than_its_kind(
    here: Alone, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> str:
        raise ZeroDivisionError("secret of the house")

    monkeypatch.setattr(replica_module, "newest_digest", broken)
    answer = await here.post("/api/models/owl/stage", {"dry_run": True})
    assert answer.error == (500, "internal", "ZeroDivisionError: see this replica's log")
    assert "secret of the house" in caplog.text
    assert "POST" in caplog.text


async def test_metrics_are_prometheus_s(here: Alone) -> None:
    answer = await here.get("/metrics")
    assert (answer.status, answer.headers["Content-Type"].partition(";")[0]) == (200, "text/plain")
    assert b"# TYPE stagecast_log_sequence gauge" in answer.body


async def test_the_page_loads_nothing_from_elsewhere(here: Alone) -> None:
    for path in ("/", "/api/docs"):
        answer = await here.get(path)
        assert (answer.status, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        assert answer.headers["Content-Security-Policy"] == "default-src 'self'"
        assert b'src="http' not in answer.body


async def test_the_description_has_every_call(here: Alone) -> None:
    paths = (await here.get("/api/openapi.json")).json["paths"]
    assert sorted((path, method) for path, item in paths.items() for method in item) == [
        ("/api/gc", "post"), ("/api/limits", "get"), ("/api/limits", "put"),
        ("/api/models", "get"), ("/api/models/install", "post"),
        ("/api/models/{name}", "delete"), ("/api/models/{name}", "get"),
        ("/api/models/{name}/load", "post"), ("/api/models/{name}/pin", "post"),
        ("/api/models/{name}/stage", "post"), ("/api/models/{name}/unpin", "post"),
        ("/api/models/{name}/verify", "post"),
        ("/api/nodes", "get"), ("/api/nodes/{name}/drain", "post"), ("/api/nodes/{name}/resume", "post"),
        ("/api/operations", "get"), ("/api/operations/history", "get"), ("/api/operations/stream", "get"),
        ("/api/operations/{operation}", "get"), ("/api/operations/{operation}/{verb}", "post"),
    ]  # fmt: skip
