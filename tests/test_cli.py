"""The command line: what it asks of a replica, what it prints, and its exit codes."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from stagecast import answers, cli, display
from stagecast.cli import main
from stagecast.options import PROCESSES
from stagecast.rows import Row
from stagecast.settings import ReplicaSettings, WorkerSettings
from tests.conftest import free_port
from tests.replica_stand_in import ReplicaStandIn, answering, refusing, replica_stand_in, row, streaming

BODY = '{"operations": [],  "revision": "a-1", "degraded": false}'
STARTED = {"operations": [row()], "revision": "a-1"}
INTERRUPTED = 130


@pytest.fixture
def replica(monkeypatch: pytest.MonkeyPatch) -> Iterator[ReplicaStandIn]:
    """Serve in a thread of its own, because each command brings its own event loop."""
    started: list[ReplicaStandIn] = []
    ready, done = threading.Event(), threading.Event()

    async def serve() -> None:
        async with replica_stand_in() as stand_in:
            started.append(stand_in)
            ready.set()
            await asyncio.to_thread(done.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert ready.wait(60)
    monkeypatch.setenv("STAGECAST_URL", started[0].url)
    yield started[0]
    done.set()
    thread.join()


def event(name: str, data: object) -> str:
    return f"event: {name}\nid: a-1\ndata: {json.dumps(data)}\n\n"


def test_a_command_sees_no_older_state_than_the_one_before(replica: ReplicaStandIn) -> None:
    replica.script.extend([answering(STARTED, 202, Stagecast_Revision="a-41"), answering(json.loads(BODY))])
    assert main(["stage", "m", "--all"]) == 0
    assert main(["ops"]) == 0
    sent = [request.headers.get("Stagecast-Min-Revision") for request in replica.requests]
    assert sent == [None, "a-41"]


def test_ops_prints_a_table(replica: ReplicaStandIn, capsys: pytest.CaptureFixture[str]) -> None:
    replica.script.append(answering({"operations": [row(state="failed", error="no space")], "revision": "a-1"}))
    assert main(["ops"]) == 0
    shown = capsys.readouterr().out
    for word in ("staging:m@worker-1", "failed", "40 %", "400 B of 1.0 kB", "no space"):
        assert word in shown
    frames = row(id="render:film", taskType="render", currentBytes=400, totalBytes=24_000, bytesPerSecond=7)
    replica.script.append(answering({"operations": [frames], "revision": "a-1"}))
    assert main(["ops"]) == 0
    shown = capsys.readouterr().out
    for word in ("render:film", "running", "400 of 24,000", "7/s"):
        assert word in shown
    replica.script.append(answering(json.loads(BODY)))
    assert main(["ops"]) == 0
    assert capsys.readouterr().out == "nothing is under way\n"


def test_ops_says_that_the_replica_has_lost_the_cluster(
    replica: ReplicaStandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    replica.script.append(answering({"operations": [row()], "revision": "a-1", "degraded": True}))
    assert main(["ops"]) == 0
    shown = capsys.readouterr()
    assert "staging:m@worker-1" in shown.out
    assert shown.err == "degraded: the replica that answered cannot hear the cluster and shows what it knew\n"


@pytest.mark.parametrize("width", [200, 80, 40])
def test_ops_never_cuts_an_id(
    replica: ReplicaStandIn, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setattr(display, "_PIPE_WIDTH", width)
    name = "staging:bartowski-Meta-Llama-3.1-8B-Instruct-GGUF@rack-17-worker-2"
    rows = [row(id=name, bytesPerSecond=7e6, etaSeconds=61.0, message="a long way to go"), row(state="queued")]
    replica.script.append(answering({"operations": rows, "revision": "a-1"}))
    assert main(["ops"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= width
    assert name in ("".join(shown.split()) if width == 40 else shown), "a terminal that is too narrow breaks the line"
    for fact in ("transferring", "40 %", "400 B of 1.0 kB", "7.0 MB/s", "1 min 1 s", "a long way to go", "queued"):
        assert fact in " ".join(shown.split())
    assert shown.startswith("operation") == (width == 200), "a table where it fits"


def test_ops_json_is_what_the_api_sent_byte_for_byte(
    replica: ReplicaStandIn, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    async def answer(request: object) -> object:
        from aiohttp import web

        return web.Response(body=BODY.encode(), content_type="application/json")

    replica.script.append(answer)  # type: ignore[arg-type]
    assert main(["ops", "--json"]) == 0
    assert capfdbinary.readouterr().out == BODY.encode() + b"\n"


def test_verify_is_for_every_copy_or_for_those_that_are_named(replica: ReplicaStandIn) -> None:
    replica.routes["POST /api/models/m/verify"] = answering(STARTED, 202)
    assert main(["verify", "m"]) == 0
    assert main(["verify", "m", "--node", "w1", "--node", "w2"]) == 0
    assert [body["nodes"] for body in replica.bodies] == ["all", ["w1", "w2"]]  # type: ignore[index]


def test_stage_says_where_to(replica: ReplicaStandIn, capsys: pytest.CaptureFixture[str]) -> None:
    replica.routes["POST /api/models/m/stage"] = answering(STARTED, 202)
    assert main(["stage", "m", "--to", "w1", "--to", "w2"]) == 0
    assert main(["stage", "m", "--all"]) == 0
    assert [body["nodes"] for body in replica.bodies] == [["w1", "w2"], "all"]  # type: ignore[index]
    assert main(["stage", "m"]) == 2
    assert main(["stage", "m", "--all", "--to", "w1"]) == 2
    assert "say where to, either with --to NODE" in capsys.readouterr().err


def test_a_dry_run_says_whether_it_fits(replica: ReplicaStandIn, capsys: pytest.CaptureFixture[str]) -> None:
    node = {"node": "w1", "bytes": 5, "present": 2, "to_move": 3_000_000, "disk_free": 9, "holders": []}
    for fits, code in ((True, 0), (False, 1)):
        plan = {"plan": {"model": "m", "bytes": 5, "nodes": [node | {"fits": fits, "seconds": 61}]}}
        replica.script.append(answering(plan))
        assert main(["stage", "m", "--all", "--dry-run"]) == code
    shown = capsys.readouterr().out
    assert "3.0 MB" in shown
    assert "1 min 1 s" in shown
    assert "by nodes above" not in shown
    taken = {"plan": {"model": "m", "bytes": 5, "nodes": [node | {"fits": False, "disk_taken": 7_000_000}]}}
    replica.script.append(answering(taken))
    assert main(["stage", "m", "--all", "--dry-run"]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "+ 7.0 MB" in shown


@pytest.mark.parametrize(("state", "code"), [("succeeded", 0), ("failed", 1), ("cancelled", 1)])
def test_follow_ends_with_the_outcome(
    replica: ReplicaStandIn, capsys: pytest.CaptureFixture[str], state: str, code: int
) -> None:
    replica.routes["POST /api/models/install"] = answering(STARTED, 202)
    ended = row(state=state, message="the end") | ({"error": "no space"} if state == "failed" else {})
    replica.streams.put_nowait(streaming(event("snapshot", STARTED), event("operation", ended), ends=False))
    assert main(["install", "m", "--gallery", "http://g/index.yaml", "--name", "n", "--follow"]) == code
    assert replica.bodies[0] == {"ref": "m", "gallery": "http://g/index.yaml", "name": "n"}
    said = capsys.readouterr()
    assert f"staging:m@worker-1: {state}" in said.out
    assert (
        said.err
        == {
            "succeeded": "",
            "failed": "error: staging:m@worker-1 failed: no space\n",
            "cancelled": "error: staging:m@worker-1 cancelled: the end\n",
        }[state]
    )


def test_a_path_of_this_machine_is_made_absolute(
    replica: ReplicaStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica.routes["POST /api/models/install"] = answering(STARTED, 202)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.gguf").touch()
    assert main(["install", "./model.gguf"]) == 0
    assert main(["install", "./elsewhere.gguf"]) == 0
    assert [body["ref"] for body in replica.bodies] == [str(tmp_path / "model.gguf"), "./elsewhere.gguf"]  # type: ignore[index]


@pytest.mark.parametrize("verb", ["cancel", "pause", "resume", "retry", "dismiss"])
def test_each_verb_is_a_command(replica: ReplicaStandIn, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    replica.routes[f"POST /api/operations/job-1/{verb}"] = answering(row(state="cancelled"))
    assert main([verb, "job-1"]) == 0
    assert "cancelled" in capsys.readouterr().out


@pytest.mark.parametrize(("options", "body"), [([], None), (["--keep"], {"keep_partial": True})])
def test_a_cancel_can_keep_what_has_arrived(replica: ReplicaStandIn, options: list[str], body: object) -> None:
    replica.routes["POST /api/operations/job-1/cancel"] = answering(row(state="cancelled"))
    assert main(["cancel", "job-1", *options]) == 0
    assert replica.bodies == [body]


def test_what_one_call_asked_for_stands_together_below_a_line_for_all_of_it(
    replica: ReplicaStandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = [
        {"node_name": "w1", "status": "running", "percentage": 40.0, "bytes_sent": 400, "total_bytes": 1000,
         "file_name": "a", "phase": "transferring"},
        {"node_name": "w2", "status": "failed", "percentage": 60.0, "bytes_sent": 600, "total_bytes": 1000,
         "file_name": "a", "phase": "transferring", "error": "no disk"},
    ]  # fmt: skip
    rows = [row("job-1", id="staging:m@w1", callID="c", nodes=nodes), row("job-2", id="staging:other@w1"),
            row("job-3", id="staging:m@w2", callID="c", nodes=nodes, state="failed", error="no disk")]  # fmt: skip
    replica.routes["GET /api/operations"] = answering({"operations": rows, "revision": "r", "degraded": False})
    assert main(["ops"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert " ".join(lines[0]) == "m on 2 nodes: 1 running, 1 failed 50 % 1.0 kB of 2.0 kB"
    assert [line[0] for line in lines[1:]] == ["staging:m@w1", "staging:m@w2", "staging:other@w1"]


def test_the_other_commands(replica: ReplicaStandIn, capsys: pytest.CaptureFixture[str]) -> None:
    model = {"name": "m", "bytes": 5_000_000, "files": 2, "holders": [{"node": "w", "complete": False}],
             "instances": [{"node": "w", "state": "ready", "id": "1"}]}  # fmt: skip
    node = {"name": "w", "kind": "worker", "draining": True, "labels": {"gpu": "a100"}, "disk_total": 4_000_000}
    replica.routes = {
        "GET /api/models": answering({"models": [model]}),
        "GET /api/nodes": answering({"nodes": [node]}),
        "GET /api/operations/history": answering({"operations": [row(state="failed", error="no space")]}),
        "DELETE /api/models/m": answering({"removed": [{"node": "w", "bytes": 7_000_000}]}),
        "POST /api/nodes/w/drain": answering({}),
        "POST /api/nodes/w/resume": answering({}),
        "POST /api/models/m/load": answering({}, 202),
    }
    commands = ("models", "nodes", "history --kind staging", "rm m --node w", "drain w", "undrain w", "load m --node w")
    for command in commands:
        assert main(command.split()) == 0
    shown = capsys.readouterr().out
    for word in ("5.0 MB", "w (in part)", "w (ready)", "draining", "gpu=a100", "no space", "7.0 MB"):
        assert word in shown
    assert replica.bodies[-1] == {"node": "w"}


ENDED = {
    "state": "failed", "error": "the disk of worker-1 is full", "updatedAt": "2026-11-24T01:48:04.123Z",
    "cause": "api", "durationSeconds": 64.2, "bytesMoved": 5_000_000, "totalBytes": 9_000_000,
    "meanBytesPerSecond": 77_881.6, "attempts": [
        {"attempt": 1, "state": "replaced", "owner": "w#0", "endedAt": "2026-11-24T01:47:04.123Z"},
        {"attempt": 2, "state": "failed", "owner": "w#1", "endedAt": "2026-11-24T01:48:04.123Z"},
    ],
}  # fmt: skip


@pytest.mark.parametrize("width", [200, 80, 40])
def test_the_history_reads_well_on_every_terminal(
    replica: ReplicaStandIn, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setattr(display, "_PIPE_WIDTH", width)
    page = {"operations": [row(**ENDED), row(state="succeeded", durationSeconds=0.31)], "next": "5.0~1~job"}
    replica.routes["GET /api/operations/history"] = answering(page)
    asked = "history --node worker-1 --state failed --job j --kind staging --model m --limit 2 --before 6.0~2~x"
    assert main(asked.split()) == 0
    assert dict(replica.requests[-1].query) == {
        "node": "worker-1", "state": "failed", "job": "j", "kind": "staging", "model": "m", "limit": "2",
        "before": "6.0~2~x",
    }  # fmt: skip
    said = capsys.readouterr()
    assert said.err == "There is more: --before 5.0~1~job\n"
    assert max(map(len, said.out.splitlines())) <= width
    words = " ".join(said.out.split())
    for fact in ("staging m", "worker-1", "failed (attempt 2)", "1 min 4 s", "5.0 MB of 9.0 MB", "77.9 kB/s", "api"):
        assert fact in words
    assert "the disk of worker-1 is full" in words
    assert "0.3 s" in words
    assert said.out.startswith("when") == (width == 200), "a table where it fits"
    lines = said.out.splitlines()
    assert len(lines) == 4 if width == 200 else len(lines) >= 5


def test_limits_are_shown_and_changed(replica: ReplicaStandIn, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [
        {"node": "free", "moving": True}, {"node": "w", "rate": 50 * 10**6, "stagings_at_once": 2},
        {"node": "x", "moving": True, "share": 450 * 10**6},
    ]  # fmt: skip
    limits = answering({"rate": 500 * 10**6, "nodes": nodes, "generation": 3, "revision": "a-1"})
    replica.routes = {"GET /api/limits": limits, "PUT /api/limits": limits}
    assert main(["limits"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["cluster:", "500.0", "MB/s"],
        ["node", "limit", "stagings", "at", "once", "of", "the", "cluster's"],
        ["free", "-", "-", "no", "limit"],
        ["w", "50.0", "MB/s", "2", "-"],
        ["x", "-", "-", "450.0", "MB/s"],
    ]
    assert main(["limits", "--cluster", "500MB/s", "--node", "w", "--rate", "50MB/s", "--at-once", "2"]) == 0
    assert main(["limits", "--cluster", "0"]) == 0
    assert replica.bodies[1:3] == [
        {"rate": 500 * 10**6, "nodes": {"w": {"rate": 50 * 10**6, "stagings_at_once": 2}}}, {"rate": 0},
    ]  # fmt: skip
    replica.routes = {"GET /api/limits": answering({"rate": 0, "nodes": []})}
    capsys.readouterr()
    assert main(["limits"]) == 0
    assert capsys.readouterr().out == "cluster: no limit\n"


def test_an_empty_history_says_so(replica: ReplicaStandIn, capsys: pytest.CaptureFixture[str]) -> None:
    replica.routes["GET /api/operations/history"] = answering({"operations": []})
    assert main(["history"]) == 0
    assert capsys.readouterr().out == "nothing has ended that is still known\n"
    assert main(["history", "--model", "nosuch", "--state", "failed"]) == 0
    said = "nothing has ended that is still known of model nosuch, state failed; without these you see all\n"
    assert capsys.readouterr().out == said


def test_the_history_as_json_is_what_the_api_returns(
    replica: ReplicaStandIn, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    async def answer(request: object) -> object:
        from aiohttp import web

        return web.Response(body=BODY.encode(), content_type="application/json")

    replica.script.append(answer)  # type: ignore[arg-type]
    assert main(["history", "--json"]) == 0
    assert capfdbinary.readouterr() == (BODY.encode() + b"\n", b"")


@pytest.mark.parametrize("what", ["models", "nodes"])
def test_models_and_nodes_as_json_are_what_the_api_returns(
    replica: ReplicaStandIn, capfd: pytest.CaptureFixture[str], what: str
) -> None:
    replica.routes[f"GET /api/{what}"] = answering({what: []})
    assert main([what, "--json"]) == 0
    assert capfd.readouterr() == (json.dumps({what: []}) + "\n", "")


def test_no_terminal_is_too_narrow_for_an_address(capsys: pytest.CaptureFixture[str]) -> None:
    address = "http://inference-rack-12.example.internal:8081"
    node = answers.Node(
        name="inference-rack-12", kind="worker", alive=True, address=address, labels={"gpu": "a100", "zone": "b"},
        disk_free=10**12, disk_total=2 * 10**12, disk_reserved=10**9, disk_orphaned=10**8, pinned=["owl"],
    )  # fmt: skip
    Console(width=80, file=sys.stdout).print(display.nodes([node]))
    said = capsys.readouterr().out
    assert address in said
    assert "inference-rack-12" in said.replace(address, "")
    assert max(map(len, said.splitlines())) <= 80


@pytest.mark.parametrize("zone", ["UTC", "JST-9"])
def test_a_time_says_its_zone(monkeypatch: pytest.MonkeyPatch, zone: str) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert display.date_of(0) == {
            "UTC": "1970-01-01 00:00:00 UTC", "JST-9": "1970-01-01 09:00:00 JST",
        }[zone]  # fmt: skip
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_refusal_is_one_line(replica: ReplicaStandIn, capsys: pytest.CaptureFixture[str]) -> None:
    replica.script.append(refusing(404, "not_found", "no model 'x' is known; known: m"))
    assert main(["stage", "x", "--all"]) == 1
    assert capsys.readouterr().err == "error: no model 'x' is known; known: m\n"


def test_who_has_no_key_is_told_how_to_give_it(replica: ReplicaStandIn, capsys: pytest.CaptureFixture[str]) -> None:
    replica.script.append(refusing(401, "unauthorized", "unauthorized"))
    assert main(["ops"]) == 1
    said = "unauthorized: the key is missing or another one; give it by STAGECAST_API_KEY, or with --api-key"
    assert capsys.readouterr().err == f"error: {said}\n"


def test_what_is_followed_into_a_pipe_is_told_each_tenth_of_the_way_and_what_was_there_already(
    replica: ReplicaStandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    there = row("job-2", id="staging:m@worker-2", state="succeeded", phase="publishing")
    started = {"operations": [row(progress=0), there], "revision": "a-1"}
    replica.routes["POST /api/models/m/stage"] = answering(started, 202)
    words = [event("operation", row(progress=percent)) for percent in (5, 9, 10, 15, 27, 29)]
    end = event("operation", row(state="succeeded", progress=100))
    replica.streams.put_nowait(streaming(event("snapshot", started), *words, end, ends=False))
    assert main(["stage", "m", "--all", "--follow"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "staging:m@worker-2: succeeded",
        "staging:m@worker-1: running (transferring), 10 %",
        "staging:m@worker-1: running (transferring), 27 %",
        "staging:m@worker-1: succeeded",
    ]


async def test_what_is_followed_into_a_pipe_is_told_again_while_no_word_comes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    going = msgspec.convert(row(), Row)
    said = ""

    async def words() -> AsyncIterator[Row]:
        nonlocal said
        while said.count("\n") < 2:
            await asyncio.sleep(0)
            said += capsys.readouterr().out
        yield msgspec.convert(row(state="succeeded"), Row)

    async with asyncio.timeout(60):
        [ended] = await display.follow(words(), [going], every=0.001)
    assert ended.state == "succeeded"
    assert set(said.splitlines()) == {"staging:m@worker-1: running (transferring), 40 %"}


def test_what_is_followed_into_a_pipe_says_why_it_does_not_move(
    replica: ReplicaStandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    replica.routes["POST /api/models/install"] = answering(STARTED, 202)
    stalled = row(state="stalled", phase="planning", message="Installing m: stalled (not a byte from the source)")
    events = [event("snapshot", STARTED), event("operation", stalled), event("operation", row(state="succeeded"))]
    replica.streams.put_nowait(streaming(*events, ends=False))
    assert main(["install", "m", "--gallery", "http://g/index.yaml", "--follow"]) == 0
    said = "staging:m@worker-1: stalled (planning), 40 %; Installing m: stalled (not a byte from the source)"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({}, "succeeded"),
        ({"verification": "undamaged"}, "verified, undamaged"),
        ({"verification": "1 piece repaired (16.8 MB) in a"}, "verified, 1 piece repaired (16.8 MB) in a"),
    ],
)
def test_a_success_is_one_word_and_a_verification_says_what_it_found(
    replica: ReplicaStandIn, capsys: pytest.CaptureFixture[str], found: dict[str, str], said: str
) -> None:
    replica.routes["POST /api/models/m/verify"] = answering(STARTED, 202)
    ended = row(state="succeeded", phase="publishing", progress=100, **found)
    replica.streams.put_nowait(streaming(event("snapshot", STARTED), event("operation", ended), ends=False))
    assert main(["verify", "m", "--follow"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"staging:m@worker-1: {said}"


def test_the_history_tells_a_verification_from_a_staging_and_what_it_moved(
    replica: ReplicaStandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {"state": "succeeded", "bytesMoved": 100, "meanBytesPerSecond": 50.0, "verification": "undamaged"}
    replica.routes["GET /api/operations/history"] = answering({"operations": [row(**found)]})
    assert main(["history"]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert "verification m" in line
    assert "verified, undamaged" in line
    assert "100 B" in line
    assert "1.0 kB" not in line
    assert "/s" not in line


def test_the_history_says_why_a_copy_stayed(replica: ReplicaStandIn, capsys: pytest.CaptureFixture[str]) -> None:
    """A collection's deletion that finds a reason not to delete has succeeded, and freed nothing."""
    left = row(state="succeeded", isDeletion=True, message="Deleting m on worker-1: succeeded (kept: pinned)")
    gone = row(state="succeeded", isDeletion=True, message="Deleting m on worker-1: succeeded")
    replica.routes["GET /api/operations/history"] = answering({"operations": [left, gone]})
    assert main(["history"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert [line for line in lines if "Deleting" in line] == ["Deleting m on worker-1: succeeded (kept: pinned)"]


def test_the_page_of_another_server_is_no_list(replica: ReplicaStandIn, capsys: pytest.CaptureFixture[str]) -> None:
    replica.script.append(answering("welcome"))
    assert main(["ops"]) == 1
    said = capsys.readouterr()
    assert (said.out, said.err.startswith("error: the answer is not a replica's")) == ("", True)


def test_nobody_there(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stagecast.remote._PATIENCE", 0.1)
    assert main(["ops", "--url", f"http://127.0.0.1:{free_port()}"]) == 1
    assert "start one, or say where with --url or STAGECAST_URL" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("nonsense", "nonsense"),
        ("stage", "MODEL"),
        ("ops --nonsense", "nonsense"),
        ("up --rate-limit fast", "write it like 20MB/s"),
        ("up --replicas 0", "at least 1"),
        ("worker", "say where NATS is, with --nats URL or STAGECAST_NATS"),
        ("ops --url 127.0.0.1:8080", "write it with its scheme, like http://127.0.0.1:8080"),
        ("worker --nats nats://x --label gpu", "KEY=VALUE"),
        ("history --state nonsense", "nonsense"),
        ("serve --history-count 0", "at least 1"),
        ("serve --history-age 0", "above 0"),
    ],
)
def test_usage_errors(capsys: pytest.CaptureFixture[str], arguments: str, said: str) -> None:
    assert main(arguments.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("ops --nonsense", "error: Unknown option: --nonsense; see `stagecast ops --help`\n"),
        (
            "up --replicas 0",
            'error: Invalid value "0" for --replicas: it must be at least 1; see `stagecast up --help`\n',
        ),
        ("nonsense", "...; see `stagecast --help`\n"),
    ],
)
def test_a_usage_error_reads_as_a_sentence_and_names_the_command_s_own_help(
    capsys: pytest.CaptureFixture[str], arguments: str, said: str
) -> None:
    assert main(arguments.split()) == 2
    assert capsys.readouterr().err.endswith(said)


@pytest.mark.parametrize("command", ["", *(name for name in cli.app if not name.startswith("-"))])
def test_help_shows_one_default_at_most_and_of_the_environment_what_is_read(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert main([*command.split(), "--help"]) == 0
    said = " ".join(line.strip("│╭╰╮╯─ ") for line in capsys.readouterr().out.splitlines())
    for option in re.split(r" (?=--[a-z])", said):
        assert option.count("[default:") <= 1, option
    assert re.search(r"\[default: (\]|False|\(\)|\"\")", said) is None
    if command and command not in PROCESSES:
        assert "[env var:" not in said
        assert set(re.findall(r"STAGECAST_\w+", said)) == {"STAGECAST_URL", "STAGECAST_API_KEY"}


def test_help_says_what_is_a_size_and_what_a_rate(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--help"]) == 0
    said = capsys.readouterr().out
    assert all(each in said for each in ("--rate-limit RATE", "--disk-budget SIZE", "--keep-free SIZE"))
    assert main(["limits", "--help"]) == 0
    assert "--cluster RATE" in capsys.readouterr().out
    assert main(["gc", "--help"]) == 0
    assert "--free SIZE" in capsys.readouterr().out


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert main(["--help"]) == 0
    listed = set(re.findall(r"^│ (\w+)  ", capsys.readouterr().out, re.MULTILINE))
    wire = (
        "up demo serve worker stage verify ops cancel pause resume retry dismiss history install models rm nodes drain"
    )
    assert set(wire.split()) <= listed


class _Ran:
    settings: object = None

    async def __call__(self, settings: object) -> None:
        self.settings = settings


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> _Ran:
    ran = _Ran()
    monkeypatch.setattr("stagecast.composition.run_replica", ran)
    monkeypatch.setattr("stagecast.composition.run_worker", ran)
    monkeypatch.setattr("stagecast.cli._log_to_stderr", lambda: None)
    return ran


def test_serve_is_told_by_options(ran: _Ran) -> None:
    options = (
        "--listen 0.0.0.0:1 --files-listen 0.0.0.0:2 --advertise host --nats nats://x --data /d --models /m --name n "
        "--token t --allow-unauthenticated --backends /b --rate-limit 20MB/s --disk-budget 2TB --keep-free 50GB "
        "--stagings-at-once 2 --files-certificate /c --files-key /k --files-authority /a "
        "--api-key k --galleries g1 --galleries g2 --wait-budget 3 --history-count 500 --history-age 0.5"
    )
    assert main(["serve", *options.split()]) == 0
    assert ran.settings == ReplicaSettings(
        listen="0.0.0.0:1", files_listen="0.0.0.0:2", advertise="host", nats="nats://x", data=Path("/d"),
        models=Path("/m"), name="n", token="t", allow_unauthenticated=True, backends=Path("/b"),
        rate_limit=20_000_000, disk_budget=2 * 10**12, keep_free=50 * 10**9, api_key="k", stagings_at_once=2,
        galleries=("g1", "g2"), wait_budget=3, history_count=500, history_age=0.5,
        files_certificate=Path("/c"), files_key=Path("/k"), files_authority=Path("/a"),
    )  # fmt: skip


def test_worker_is_told_by_the_environment(ran: _Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"LISTEN": "127.0.0.1:0", "NATS": "nats://x", "DATA": "/d", "NAME": "n", "TOKEN": "t",
             "RATE_LIMIT": "512KiB/s", "LABEL": "gpu=a100 zone=b", "ALLOW_UNAUTHENTICATED": "true"}  # fmt: skip
    for name, value in given.items():
        monkeypatch.setenv(f"STAGECAST_{name}", value)
    assert main(["worker", "--name", "mine"]) == 0
    assert ran.settings == WorkerSettings(
        listen="127.0.0.1:0", nats="nats://x", data=Path("/d"), name="mine", token="t", rate_limit=512 * 1024,
        labels=(("gpu", "a100"), ("zone", "b")), allow_unauthenticated=True,
    )  # fmt: skip


def test_the_defaults_are_those_of_the_settings(ran: _Ran) -> None:
    assert main(["serve"]) == 0
    assert ran.settings == ReplicaSettings()


def test_the_nodes_own_name_is_not_what_a_model_is_called(
    replica: ReplicaStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica.routes["POST /api/models/install"] = answering(STARTED, 202)
    monkeypatch.setenv("STAGECAST_NAME", "rack-1")
    assert main(["install", "http://host/m.gguf"]) == 0
    assert main(["install", "http://host/m.gguf", "--name", "mine"]) == 0
    assert replica.bodies == [{"ref": "http://host/m.gguf"}, {"ref": "http://host/m.gguf", "name": "mine"}]


def test_an_installation_can_wait_for_room(replica: ReplicaStandIn) -> None:
    replica.routes["POST /api/models/install"] = answering(STARTED, 202)
    assert main(["install", "http://host/m.gguf", "--wait"]) == 0
    assert replica.bodies == [{"ref": "http://host/m.gguf", "wait_for_space": True}]


def test_what_a_command_acts_on_is_never_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGECAST_MODEL", "m")
    assert main(["rm"]) == 2


@pytest.mark.parametrize(
    "command",
    ["stage m --to w1", "stage m --all", "gc", "verify m", "rm m", "load m", "pin m", "limits", "history", "install m"],
)
def test_what_a_client_does_is_never_read_from_the_environment(
    replica: ReplicaStandIn, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    main(command.split())
    variables = (
        "ALL",
        "TO",
        "FREE",
        "NODE",
        "DRY_RUN",
        "KEEP",
        "WAIT",
        "PRIORITY",
        "FOLLOW",
        "SHA256",
        "STATE",
        "RATE",
    )
    for name in (*variables, "CLUSTER", "AT_ONCE", "GALLERY", "NAME", "LIMIT", "JSON"):
        values = {"FREE": "1TB", "RATE": "1MB/s", "CLUSTER": "1MB/s", "STATE": "failed", "PRIORITY": "low"}
        is_flag = name in {"ALL", "DRY_RUN", "KEEP", "WAIT", "FOLLOW", "JSON"}
        monkeypatch.setenv(f"STAGECAST_{name}", values.get(name, "true" if is_flag else "7"))
    main(command.split())
    first, second = replica.requests
    assert (second.method, second.path_qs) == (first.method, first.path_qs)
    assert replica.bodies[len(replica.bodies) // 2 :] == replica.bodies[: len(replica.bodies) // 2]


def test_every_command_says_what_it_does() -> None:
    for name in cli.app:
        if not name.startswith("-"):
            assert inspect.getdoc(cli.app[name].default_command), name


def stagecast(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "stagecast", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.system
def test_ctrl_c_ends_a_watching_client(replica: ReplicaStandIn) -> None:
    async def never(request: object) -> object:
        await asyncio.Event().wait()

    replica.script.extend([answering(json.loads(BODY)), never])  # type: ignore[list-item]
    with stagecast("ops", "--watch", "--json", "--url", replica.url) as watching:
        assert watching.stdout is not None
        assert '"revision"' in watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        _, error = watching.communicate(timeout=60)
        assert (watching.returncode, error) == (INTERRUPTED, "")


@pytest.mark.system
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, 0)])
def test_up_runs_until_it_is_told(tmp_path: Path, number: signal.Signals, code: int) -> None:
    options = ("--replicas", "1", "--workers", "1", "--port", "0", "--data", str(tmp_path))
    with stagecast("up", *options) as running:
        assert running.stdout is not None
        lines = [running.stdout.readline() for _ in range(5)]
        assert [line.split()[0] for line in lines] == ["nats", "replica-1", "worker-1", "balancer", "Open"]
        pids = [int(pid) for pid in Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()]
        assert len(pids) == 4
        running.send_signal(number)
        _, error = running.communicate(timeout=60)
        assert (running.returncode, error) == (code, "")
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert (tmp_path / "logs" / "replica-1.log").exists()
