"""The client against a real server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
from aiohttp import web

from stagecast import session as session_module
from stagecast.client import Client
from stagecast.event_stream import StreamEvent
from stagecast.revision import identity_of
from stagecast.session import ApiError, Unanswered, Unreachable
from tests.conftest import free_port
from tests.replica_stand_in import (
    ReplicaStandIn,
    answering,
    breaking_off,
    refusing,
    replica_stand_in,
    row,
    streaming,
)

LIST = {"operations": [row()], "revision": "a-7", "degraded": False}


@pytest.fixture
async def replica() -> AsyncIterator[ReplicaStandIn]:
    async with replica_stand_in() as replica:
        yield replica


@pytest.fixture
async def client(replica: ReplicaStandIn) -> AsyncIterator[Client]:
    async with Client(replica.url, api_key="key") as client:
        yield client


async def test_the_list_is_read_and_the_replica_is_named(replica: ReplicaStandIn, client: Client) -> None:
    replica.script.append(answering(LIST, Stagecast_Replica="replica-2", Stagecast_Revision="a-7"))
    listed = await client.operations()
    assert [(shown.job_id, shown.progress, shown.node_name) for shown in listed.operations] == [
        ("job-1", 40, "worker-1")
    ]
    assert (listed.revision, listed.degraded, client.replica, client.revision) == ("a-7", False, "replica-2", "a-7")
    assert replica.requests[0].headers["Authorization"] == "Bearer key"


async def test_it_sends_the_highest_revision_that_it_has_seen(replica: ReplicaStandIn, client: Client) -> None:
    for seen in ("a-7", "a-5", "nonsense", "a-10", "b-1"):
        replica.script.append(answering(LIST, Stagecast_Revision=seen))
        await client.operations()
    replica.script.append(answering(LIST))
    await client.operations()
    sent = [request.headers.get("Stagecast-Min-Revision") for request in replica.requests]
    assert sent == [None, "a-7", "a-7", "a-7", "a-10", "b-1"]


async def test_it_leaves_a_log_that_is_gone_though_the_next_ones_clock_is_behind(
    replica: ReplicaStandIn, client: Client
) -> None:
    gone, fresh = f"{identity_of(1.9e9)}-70", f"{identity_of(1.8e9)}-1"
    replica.script.append(answering(LIST, Stagecast_Revision=gone))
    await client.operations()
    replica.script.append(
        answering({"error": {"code": "replica_behind", "message": "no"}}, 503, Stagecast_Revision=fresh)
    )
    replica.script.append(answering(LIST, Stagecast_Revision=fresh))
    await client.operations()
    assert [request.headers.get("Stagecast-Min-Revision") for request in replica.requests] == [None, gone, gone]
    assert client.revision == fresh


async def test_a_long_poll_asks_for_what_comes_after(replica: ReplicaStandIn, client: Client) -> None:
    replica.script.append(answering(LIST))
    await client.operations(after="a-7", wait=2.5)
    assert replica.requests[0].query_string == "after=a-7&wait=2.5"


@pytest.mark.parametrize(
    "fault",
    [refusing(503, "replica_behind"), breaking_off, answering("no JSON of ours", 502), refusing(503, "no_replica")],
    ids=["behind", "broken off", "bad gateway", "our balancer's own"],
)
async def test_a_get_is_repeated(replica: ReplicaStandIn, client: Client, fault: object) -> None:
    replica.script.extend([fault, fault, answering(LIST)])  # type: ignore[list-item]
    assert len((await client.operations()).operations) == 1
    # aiohttp repeats by itself what broke off on a connection that it had used before.
    assert len(replica.requests) >= 3


async def test_patience_ends(replica: ReplicaStandIn) -> None:
    replica.script.append(refusing(503, "replica_behind", "not yet"))
    async with Client(replica.url, patience=0) as client:
        with pytest.raises(ApiError, match="not yet") as refused:
            await client.operations()
    assert (refused.value.status, refused.value.code) == (503, "replica_behind")


async def test_what_may_be_done_twice_is_repeated_where_the_connection_broke(
    replica: ReplicaStandIn, client: Client
) -> None:
    for fault in (refusing(503, "replica_behind"), breaking_off, answering("no JSON of ours", 502)):
        replica.script.extend([fault, answering(row(state="cancelled"))])
        assert (await client.command("staging:m@worker-1", "cancel")).state == "cancelled"
    assert replica.requests[0].raw_path == "/api/operations/staging:m@worker-1/cancel"
    replica.script.extend([breaking_off, answering({"operations": [row()], "revision": "a-1"})])
    assert len(await client.stage("m")) == 1


async def test_what_must_not_be_done_twice_is_repeated_only_if_nothing_was_done(
    replica: ReplicaStandIn, client: Client
) -> None:
    replica.script.extend([refusing(503, "replica_behind"), answering({"data": []})])
    assert await client.embeddings("m", ["text"]) == []
    replica.script.append(breaking_off)
    with pytest.raises(Unanswered, match="see with `stagecast ops` whether it took it up"):
        await client.embeddings("m", ["text"])
    assert len(replica.requests) == 3


async def test_nobody_there_is_said_plainly() -> None:
    async with Client(f"http://127.0.0.1:{free_port()}", patience=0.2) as client:
        with pytest.raises(Unreachable, match=r"no replica answers at http://127\.0\.0\.1"):
            await client.operations()
        with pytest.raises(Unreachable):
            await client.load("m")


async def test_a_refusal_keeps_its_words(replica: ReplicaStandIn, client: Client) -> None:
    replica.script.append(refusing(409, "wrong_state", "cannot pause it: it is paused"))
    with pytest.raises(ApiError, match="cannot pause it") as refused:
        await client.command("x", "pause")
    assert (refused.value.status, refused.value.code) == (409, "wrong_state")


async def test_an_answer_that_is_not_a_replicas_is_said_plainly(replica: ReplicaStandIn, client: Client) -> None:
    replica.script.append(answering({"operations": [{"id": 3}]}))
    with pytest.raises(ApiError, match="the answer is not a replica's"):
        await client.operations()


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (404, "that is no Stagecast replica: it answered 404"),
        (502, "no Stagecast replica answers there: it answered 502"),
    ],
)
async def test_another_server_is_said_to_be_one_and_its_page_is_not_shown(
    replica: ReplicaStandIn, status: int, said: str
) -> None:
    async def page(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, text="<!DOCTYPE html><p>nothing", content_type="text/html")

    replica.routes["GET /api/operations"] = page
    async with Client(replica.url, patience=0) as client:
        with pytest.raises(ApiError) as refused:
            await client.operations()
    assert refused.value.message == said


async def test_names_are_quoted(replica: ReplicaStandIn, client: Client) -> None:
    replica.routes["POST /api/models/a%2Fb%3Fc%20d%25/stage"] = answering({"operations": [row()], "revision": "a-1"})
    assert len(await client.stage("a/b?c d%")) == 1


async def test_each_call_says_what_it_means(replica: ReplicaStandIn, client: Client) -> None:
    operations = answering({"operations": [row()], "revision": "a-1"}, 202)
    plan = {"plan": {"model": "m", "bytes": 9, "nodes": [{"node": "w", "to_move": 9, "fits": False, "holders": []}]}}
    replica.routes = {
        "POST /api/models/m/stage": operations,
        "POST /api/models/m/verify": operations,
        "POST /api/models/install": operations,
        "DELETE /api/models/m": answering({"removed": [{"node": "w", "bytes": 5}], "revision": "a-2"}),
        "POST /api/models/m/load": answering({"placement": {"model": "m", "nodes": []}, "revision": "a-3"}, 202),
        "GET /api/models": answering({"models": [{"name": "m", "bytes": 3, "holders": [{"node": "w"}]}]}),
        "GET /api/nodes": answering({"nodes": [{"name": "w", "kind": "worker", "models": ["m"]}]}),
        "POST /api/nodes/w/drain": answering({}),
        "POST /api/nodes/w/resume": answering({}),
        "GET /api/operations/job-1": answering(row(state="succeeded")),
        "GET /api/operations/history": answering({"operations": [row()]}),
        "POST /v1/embeddings": answering({"data": [{"embedding": [0.5, 1]}, {"embedding": [1, 0]}]}),
    }
    assert (await client.stage("m", ["w"]))[0].job_id == "job-1"
    assert (await client.verify("m"))[0].job_id == "job-1"
    assert (await client.install("all", gallery="http://g/index.yaml", name="m")).id == "staging:m@worker-1"
    assert (await client.remove("m", "w"))[0].bytes == 5
    await client.load("m", "w")
    assert (await client.models())[0].holders[0].node == "w"
    assert (await client.nodes())[0].name == "w"
    await client.drain("w")
    await client.resume("w")
    assert (await client.operation("job-1")).state == "succeeded"
    assert len(await client.history(kind="staging", limit=5)) == 1
    assert await client.embeddings("m", ["a", "b"]) == [[0.5, 1], [1, 0]]
    assert replica.bodies[:3] == [
        {"nodes": ["w"], "dry_run": False},
        {"nodes": "all"},
        {"ref": "all", "gallery": "http://g/index.yaml", "name": "m"},
    ]
    assert replica.bodies[-1] == {"model": "m", "input": ["a", "b"]}
    assert replica.requests[3].query_string == "node=w"
    assert replica.requests[-2].query_string == "kind=staging&limit=5"
    await client.stage("m", ["w"], priority="low")
    assert replica.bodies[-1] == {"nodes": ["w"], "dry_run": False, "priority": "low"}
    replica.routes["POST /api/models/m/stage"] = answering(plan)
    assert not (await client.plan("m")).nodes[0].fits
    assert replica.bodies[-1] == {"nodes": "all", "dry_run": True}


async def test_limits_are_read_and_changed(replica: ReplicaStandIn, client: Client) -> None:
    said = answering({"rate": 9, "nodes": [{"node": "w", "rate": 5, "moving": True, "share": 5}], "generation": 2})
    replica.routes = {"GET /api/limits": said, "PUT /api/limits": said}
    found = await client.limits()
    assert (found.rate, found.nodes[0].share, found.nodes[0].stagings_at_once) == (9, 5, 0)
    await client.limit(rate=9)
    await client.limit(node="w", node_rate=0, at_once=2)
    assert replica.bodies == [None, {"rate": 9}, {"nodes": {"w": {"rate": 0, "stagings_at_once": 2}}}]


async def test_the_stream_goes_on_elsewhere_where_it_broke(replica: ReplicaStandIn, client: Client) -> None:
    first = 'event: snapshot\nid: a-1\ndata: {"operations": []}\n\n'
    change = f"event: operation\nid: a-2\ndata: {json.dumps(row())}\n\n"
    for part in (
        streaming(first, ": beat\n\n", change[:30]),
        breaking_off,
        answering("", 502),
        streaming(change, ends=False),
    ):
        replica.streams.put_nowait(part)
    async with aclosing(client.stream()) as stream:
        assert await anext(stream) == StreamEvent("snapshot", '{"operations": []}', "a-1")
        assert await anext(stream) == StreamEvent("operation", json.dumps(row()), "a-2")
    assert client.replica == "replica-1"
    assert client.revision == "a-2"
    sent = [request.headers.get("Last-Event-ID") for request in replica.requests]
    assert (sent[0], sent[-1]) == (None, "a-1")


async def test_a_stream_never_begins_before_what_the_client_has_been_told(
    replica: ReplicaStandIn, client: Client
) -> None:
    replica.script.append(answering(LIST, Stagecast_Revision="a-7"))
    await client.operations()
    replica.streams.put_nowait(streaming("data: 1\n\n", ends=False))
    async with aclosing(client.stream()) as stream:
        await anext(stream)
    assert replica.requests[-1].headers["Stagecast-Min-Revision"] == "a-7"


async def test_a_silent_stream_is_opened_again(
    replica: ReplicaStandIn, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "SILENCE", 0.1)
    replica.streams.put_nowait(streaming(ends=False))
    replica.streams.put_nowait(streaming("data: 1\n\n", ends=False))
    async with aclosing(client.stream()) as stream:
        assert (await anext(stream)).data == "1"


async def test_a_stream_that_is_refused_ends(replica: ReplicaStandIn, client: Client) -> None:
    replica.streams.put_nowait(refusing(401, "unauthorized", "unauthorized"))
    async with aclosing(client.stream()) as stream:
        with pytest.raises(ApiError, match="unauthorized"):
            await anext(stream)


async def test_a_stream_that_nobody_serves_is_said_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "STREAM_PATIENCE", 0.1)
    async with Client(f"http://127.0.0.1:{free_port()}") as client, aclosing(client.stream()) as stream:
        with pytest.raises(Unreachable):
            await anext(stream)


async def test_outside_its_block_it_is_of_no_use() -> None:
    with pytest.raises(RuntimeError, match="async with"):
        await Client().operations()
