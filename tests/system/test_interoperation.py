"""WIRE sections 1 and 2 between real processes: two replicas and a worker of ours, and one that is none of ours."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from stagecast.child import Child
from stagecast.client import Client
from stagecast.cluster import Cluster
from stagecast.quantities import parse_time
from stagecast.revision import parse
from stagecast.rows import Row
from stagecast.subjects import token
from tests.conftest import eventually
from tests.system.deployment import MB, deployment, lay_out_random, metric, until_ended, until_known

pytestmark = [pytest.mark.system, pytest.mark.asyncio(loop_scope="module")]

RATE = 10 * MB
OURS = {"config.json": 300, "a.bin": 8 * MB, "b.bin": 22 * MB}
STATUS = {
    "model_id": "", "node_name": "elsewhere", "file_name": "f.gguf", "bytes_sent": 5, "total_bytes": 10,
    "progress": 50.0, "speed": "1 MB/s", "file_index": 1, "total_files": 2, "message": "moving",
    "started_at": "2026-06-01T10:00:00Z",
}  # fmt: skip
GALLERY = {
    "deletion": False, "file_name": "f", "processed": False, "message": "fetching", "progress": 10.0,
    "gallery_element_name": "ufo", "cancelled": False, "cancellable": True,
}  # fmt: skip


class Plain:
    """The other system's process: what it heard, and how to let it speak."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.heard: list[tuple[str, Any]] = []

    async def listen(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            said = json.loads(line)
            if "subject" in said:
                self.heard.append((said["subject"], said["payload"]))

    async def say(self, subject: str, payload: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"subject": subject, "payload": payload}).encode() + b"\n")
        await self._process.stdin.drain()

    async def stage(self, model: str, *, done: bool = False, **status: object) -> None:
        event = {"model_id": model, "status": STATUS | {"model_id": model} | status, "done": done}
        await self.say(f"staging.{token(model)}.progress", event)

    def events(self, model: str) -> list[dict[str, Any]]:
        """Return what it heard of a staging of ours, as it reads it."""
        found = [json.loads(payload) for subject, payload in self.heard if subject.startswith("staging.")]
        return [event for event in found if event.get("model_id") == model and "op" in event]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(data: Path) -> AsyncIterator[Cluster]:
    lay_out_random(data / "models" / "ours", OURS)
    async with deployment(data, replicas=2, workers=1, rate_limit=RATE) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def plain(running: Cluster) -> AsyncIterator[Plain]:
    async with publisher(running) as plain:
        yield plain


@asynccontextmanager
async def publisher(running: Cluster) -> AsyncIterator[Plain]:
    script = str(Path(__file__).parent / "plain_publisher.py")
    pipes = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
    process = await asyncio.create_subprocess_exec(sys.executable, script, running.nats_url, limit=2**24, **pipes)
    assert process.stdout is not None
    assert json.loads(await process.stdout.readline()) == {"ready": True}
    plain = Plain(process)
    listening = asyncio.create_task(plain.listen())
    try:
        yield plain
    finally:
        process.kill()
        await process.wait()
        await listening


async def both(
    running: Cluster, http: aiohttp.ClientSession, is_so: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """Return the rows by id once each replica shows them as asked for, the same bytes at the same revision."""
    async with asyncio.timeout(60):
        while True:
            bodies = [await listed(child, http) for child in running.replicas if child.is_running]
            rows = {row["id"]: row for row in json.loads(bodies[0])["operations"]}
            if len(set(bodies)) == 1 and is_so(rows):
                return rows


async def listed(child: Child, http: aiohttp.ClientSession) -> bytes:
    async with http.get(f"{child.url}/api/operations") as response:
        assert response.status == 200
        return await response.read()


async def test_its_rows_are_on_both_replicas_byte_for_byte_until_it_says_done(
    running: Cluster, http: aiohttp.ClientSession, plain: Plain
) -> None:
    await plain.stage("org/theirs.v1")
    rows = await both(running, http, lambda rows: "staging:org/theirs.v1" in rows)
    row = rows["staging:org/theirs.v1"]
    shown = {"name": "org/theirs.v1", "nodeName": "elsewhere", "fileName": "f.gguf", "currentBytes": 5,
             "totalBytes": 10, "progress": 50, "fileIndex": 1, "totalFiles": 2, "message": "moving", "owner": "",
             "startedAt": "2026-06-01T10:00:00Z", "state": "running", "cancellable": False}  # fmt: skip
    assert {name: row[name] for name in shown} == shown
    await plain.stage("org/theirs.v1", bytes_sent=9)
    await both(running, http, lambda rows: rows["staging:org/theirs.v1"]["currentBytes"] == 9)
    await plain.say("staging.org/theirs-v1.progress", {"model_id": "org/theirs.v1", "done": True})
    await both(running, http, lambda rows: "staging:org/theirs.v1" not in rows)


async def test_two_whose_tokens_collide_are_two_rows_on_a_replica_that_starts_later_too(
    running: Cluster, http: aiohttp.ClientSession, plain: Plain
) -> None:
    names = ["a.b", "a b", "a*b"]
    assert len({token(name) for name in names}) == 1
    wanted = {f"staging:{name}" for name in names}
    for name in names:  # one by one: of what comes within a millisecond on one subject the log keeps but the last
        await plain.stage(name)
        await both(running, http, lambda rows, name=name: f"staging:{name}" in rows)  # type: ignore[misc]
    await both(running, http, lambda rows: wanted <= rows.keys())
    await running.restart("replica-2")
    await both(running, http, lambda rows: wanted <= rows.keys())
    for name in names:
        await plain.stage(name, done=True)
        await both(running, http, lambda rows, name=name: f"staging:{name}" not in rows)  # type: ignore[misc]
    await both(running, http, lambda rows: not wanted & rows.keys())
    await running.restart("replica-1")
    await both(running, http, lambda rows: not wanted & rows.keys())


async def test_what_is_malformed_is_dropped_and_counted(
    running: Cluster, http: aiohttp.ClientSession, plain: Plain
) -> None:
    names = [child.name for child in running.replicas]
    before = {name: await metric(running, "stagecast_malformed_events_total", name) for name in names}
    bad: list[object] = [
        "nonsense",
        [],
        {"done": True},
        {"model_id": 5},
        {"model_id": "m", "status": {"bytes_sent": "x"}},
    ]
    for number, event in enumerate(bad):
        await plain.say(f"staging.bad{number}.progress", event)
    await plain.say("gallery.bad.progress", "{")
    await plain.stage("good", unknown={"deep": True})
    await both(running, http, lambda rows: "staging:good" in rows)
    for name in names:
        counted = await metric(running, "stagecast_malformed_events_total", name)
        assert counted - before[name] == len(bad) + 1
    await plain.stage("good", done=True)


async def test_its_gallery_is_cancelled_from_any_replica_and_it_obeys(
    running: Cluster, http: aiohttp.ClientSession, plain: Plain
) -> None:
    await plain.say("gallery.job-1.progress", {"job_id": "job-1", "status": GALLERY})
    await both(running, http, lambda rows: "installation:ufo" in rows)
    async with http.post(f"{running.replicas[1].url}/api/operations/installation:ufo/cancel") as response:
        assert response.status == 200
    await both(running, http, lambda rows: "installation:ufo" not in rows)
    assert ("gallery.job-1.cancel", '{"id":"job-1"}') in plain.heard
    async with http.get(f"{running.replicas[0].url}/api/operations/installation:ufo") as response:
        assert (await response.json())["state"] == "cancelled"


async def test_what_it_reads_of_our_staging_is_the_wire_s_and_no_echo_of_it_changes_anything(
    running: Cluster, client: Client, http: aiohttp.ClientSession, plain: Plain
) -> None:
    await until_known(client, "ours", "replica-1")
    [row] = await client.stage("ours")
    await eventually(lambda: any(event["status"]["bytes_sent"] for event in plain.events("ours")))
    echoing = asyncio.create_task(echo(plain))
    seen = await watched(running, http, row)
    echoing.cancel()
    await asyncio.wait([echoing])
    await plain.stage("ours", done=True)
    [ended] = await until_ended(client, row)
    assert (ended.state, ended.attempt, ended.current_bytes) == ("succeeded", 1, sum(OURS.values()))
    assert seen == sorted(seen), "never backwards"
    await eventually(lambda: any(event["done"] for event in plain.events("ours")))
    check_fields(plain.events("ours"))
    check_pace(plain.events("ours"))
    await both(running, http, lambda rows: not {row.id, "staging:ours"} & rows.keys())


async def echo(plain: Plain) -> None:
    """Say again what was heard of our staging, older words too, as a stranger and as an echo, that it is done too."""
    subjects = {subject for subject, payload in plain.heard if json.loads(payload).get("model_id") == "ours"}
    while True:
        for event in plain.events("ours")[:3]:
            bare = {name: value for name, value in event.items() if name != "op"}
            for subject in ("staging.ours.progress", *subjects):
                for stray in (event, bare, bare | {"done": True}):
                    await plain.say(subject, stray)
        await asyncio.sleep(0.1)  # it is a pace, not a wait


async def watched(running: Cluster, http: aiohttp.ClientSession, row: Row) -> list[int]:
    """Return the bytes that polls of both replicas in turn showed until the staging has ended."""
    counts: list[int] = []
    at = ""
    while True:
        for child in running.replicas:
            async with http.get(f"{child.url}/api/operations", params={"min_revision": at} if at else {}) as response:
                body = await response.json()
            rows = {each["id"]: each for each in body["operations"]}
            assert parse(body["revision"]) is not None
            at = body["revision"]
            if row.id not in rows:
                async with http.get(
                    f"{child.url}/api/operations/{row.job_id}", params={"min_revision": at}
                ) as response:
                    assert (await response.json())["state"] == "succeeded", "nothing ends by vanishing"
                return counts
            assert "staging:ours" not in rows, "the echo of our own work is no work of its own"
            assert rows[row.id]["owner"].startswith("worker-1/") or rows[row.id]["state"] == "queued"
            counts.append(rows[row.id]["currentBytes"])


def check_fields(events: list[dict[str, Any]]) -> None:
    """Every event has every field of WIRE section 1, each with its type."""
    for event in events:
        assert event["model_id"] == event["status"]["model_id"] == "ours"
        assert isinstance(event["done"], bool)
        types = {name: type(value) for name, value in event["status"].items()}
        assert types == {name: type(value) for name, value in STATUS.items()}
        assert 0.0 <= event["status"]["progress"] <= 100.0
        assert event["status"]["node_name"] == "worker-1"
        assert parse_time(event["status"]["started_at"]) > 1.7e9
        assert 1 <= event["status"]["file_index"] <= event["status"]["total_files"] == len(OURS)


def check_pace(events: list[dict[str, Any]]) -> None:
    """The first tick at once, then at most one a second, and each completed file and the end besides."""
    said = sorted({event["op"]["seq"]: event for event in events if event["op"].get("phase") == "transferring"}.items())
    moving = [event for _, event in said if not event["done"]]
    first = next(event for event in moving if event["status"]["bytes_sent"])
    assert first["status"]["bytes_sent"] < RATE / 2, "what comes in half a second"
    took = moving[-1]["op"]["updated_at"] - moving[0]["op"]["updated_at"]
    assert len(moving) <= took + 2 + 2 * len(OURS)
    assert {event["status"]["file_index"] for event in moving} == set(range(1, len(OURS) + 1))
    assert len({event["op"]["seq"] for event in events if event["done"]}) == 1
    for one, other in pairwise(moving):
        assert one["status"]["bytes_sent"] <= other["status"]["bytes_sent"]
