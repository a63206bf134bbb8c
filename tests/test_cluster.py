"""A cluster with a real nats-server and a real Caddy; stand-ins are the replicas and workers."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest

from stagecast.bus.nats import connect
from stagecast.child import ChildFailed
from stagecast.cluster import Cluster, ClusterSettings, PortTaken, cluster
from stagecast.errors import Busy, Unknown
from stagecast.loopback import is_free
from tests.conftest import eventually

pytestmark = pytest.mark.system

STAND_IN = (sys.executable, str(Path(__file__).parent / "stand_in.py"))


def settings(data: Path, **changes: object) -> ClusterSettings:
    return ClusterSettings(**{"data": data, "replicas": 2, "workers": 1, "program": STAND_IN, **changes})  # type: ignore[arg-type]


@pytest.fixture
async def said() -> list[str]:
    return []


@pytest.fixture
async def running(tmp_path: Path, said: list[str]) -> AsyncIterator[Cluster]:
    async with cluster(
        settings(tmp_path / "data", rate_limit=1000, disk_budget=2000, keep_free=3000), said.append
    ) as running:
        yield running


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


async def fetch(http: aiohttp.ClientSession, url: str) -> dict[str, object]:
    async with http.get(url) as response:
        return await response.json(content_type=None)


async def test_the_balancer_goes_round_over_the_replicas(running: Cluster, http: aiohttp.ClientSession) -> None:
    names = []
    for _ in range(6):
        async with http.get(f"{running.url}/api/operations") as response:
            names.append(response.headers["Stagecast-Replica"])
    assert sorted(names) == ["replica-1"] * 3 + ["replica-2"] * 3
    assert all(one != other for one, other in itertools.pairwise(names))


async def test_children_are_told_by_arguments_and_get_the_secret_by_environment(
    running: Cluster, http: aiohttp.ClientSession
) -> None:
    replica = await fetch(http, running.replicas[0].url)
    worker = await fetch(http, running.workers[0].url)
    listen = running.replicas[0].url.removeprefix("http://")
    data = running.data
    expected = f"serve --nats {running.nats_url} --listen {listen} --name replica-1 --data {data}/frontend"
    assert replica["arguments"] == [*expected.split(), "--models", f"{data}/models"]
    bounds = ["--rate-limit", "1000", "--disk-budget", "2000", "--keep-free", "3000"]
    assert worker["arguments"][-6:] == bounds  # type: ignore[index]
    assert not {"--disk-budget", "--keep-free"} & {*replica["arguments"]}, "their folder is the person's"  # type: ignore[misc]
    tokens = {json.dumps(each["environment"]["STAGECAST_TOKEN"]) for each in (replica, worker)}  # type: ignore[index]
    assert len(tokens) == 1
    assert len(tokens.pop()) > 30
    assert (data / "logs" / "replica-1.log").read_text() == "one line on standard output\n"


async def test_what_the_person_set_for_this_process_does_not_reach_the_children(
    tmp_path: Path, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGECAST_RATE_LIMIT", "1")
    monkeypatch.setenv("STAGECAST_RUNTIME_DIR", str(tmp_path))
    async with cluster(settings(tmp_path, replicas=1, workers=0, api_key="key")) as running:
        environment = (await fetch(http, running.replicas[0].url))["environment"]
    assert "STAGECAST_RATE_LIMIT" not in environment  # type: ignore[operator]
    assert environment["STAGECAST_API_KEY"] == "key"  # type: ignore[index]
    assert environment["STAGECAST_RUNTIME_DIR"] == str(tmp_path), "where the folders of one disk meet"  # type: ignore[index]


async def test_jetstream_is_there(running: Cluster) -> None:
    async with connect(running.nats_url, "test") as bus:
        assert await bus.log.append("staging.x.progress", b"1") > 0


async def test_nobody_who_reads_feels_a_killed_replica(running: Cluster, http: aiohttp.ClientSession) -> None:
    statuses: set[int] = set()
    names: list[str] = []

    async def poll() -> None:
        while True:
            async with http.get(f"{running.url}/api/operations") as response:
                statuses.add(response.status)
                names.append(response.headers["Stagecast-Replica"])

    poller = asyncio.create_task(poll())
    await eventually(lambda: len(names) > 20)
    in_flight = [asyncio.create_task(fetch(http, f"{running.url}/slow")) for _ in range(4)]
    await running.kill("replica-1")
    after = len(names)
    await eventually(lambda: len(names) > after + 50)
    assert "replica-1" not in names[after + 1 :]
    assert {(await each)["pid"] for each in in_flight} == {running.replicas[1].pid}
    await running.restart("replica-1")
    after = len(names)
    await eventually(lambda: "replica-1" in names[after:])
    poller.cancel()
    await asyncio.wait([poller])
    assert poller.cancelled()
    assert statuses == {200}


async def test_a_read_that_met_a_replica_which_is_behind_goes_to_another(
    running: Cluster, http: aiohttp.ClientSession
) -> None:
    async def answers(method: str, path: str) -> set[tuple[str, int]]:
        found = set()
        for _ in range(6):
            async with http.request(method, f"{running.url}{path}") as response:
                found.add((response.headers["Stagecast-Replica"], response.status))
        return found

    assert await answers("GET", "/api/behind") == {("replica-2", 200)}
    # It still gets its share of everything else, and what is not a read, or is a model's own 503, is passed on.
    assert await answers("GET", "/api/operations") == {("replica-1", 200), ("replica-2", 200)}
    assert await answers("POST", "/api/behind") == {("replica-1", 503), ("replica-2", 200)}
    assert await answers("GET", "/v1/behind") == {("replica-1", 503), ("replica-2", 200)}


async def test_a_replica_added_later_gets_its_share(running: Cluster, http: aiohttp.ClientSession) -> None:
    added = await running.add_replica()
    assert added.name == "replica-3"
    names = set()
    while len(names) < 3:
        async with http.get(f"{running.url}/") as response:
            names.add(response.headers["Stagecast-Replica"])


async def test_a_replica_that_is_removed_gets_no_more_requests(running: Cluster, http: aiohttp.ClientSession) -> None:
    pid = running.replicas[1].pid
    await running.remove_replica("replica-2")
    assert [child.name for child in running.replicas] == ["replica-1"]
    assert not is_alive(pid)
    async with http.get(f"{running.url}/") as one, http.get(f"{running.url}/") as other:
        assert {each.headers["Stagecast-Replica"] for each in (one, other)} == {"replica-1"}
    assert (await running.add_replica()).name == "replica-2"


class Elsewhere:
    """A ground where each process has an address of its own, and is told where it is."""

    def host(self, name: str) -> str:
        return {"nats": "127.0.0.2", "replica-1": "127.0.0.3"}.get(name, "127.0.0.4")

    def placed(self, name: str, command: tuple[str, ...]) -> tuple[str, ...]:
        return ("env", f"GROUND={name}", *command)


async def test_processes_stand_where_their_ground_says(tmp_path: Path, http: aiohttp.ClientSession) -> None:
    async with cluster(settings(tmp_path, replicas=1), ground=Elsewhere()) as running:
        replica, worker = running.replicas[0], running.workers[0]
        assert replica.url.startswith("http://127.0.0.3:")
        assert worker.url.startswith("http://127.0.0.4:")
        said = await fetch(http, f"{running.url}/")
        assert f"--nats nats://127.0.0.2:{running.nats_port} --listen {replica.url[7:]}" in " ".join(said["arguments"])  # type: ignore[arg-type]
        assert said["environment"]["GROUND"] == "replica-1"  # type: ignore[index]
        async with connect(running.nats_url, "test") as bus:
            assert bus.is_connected


async def test_a_child_that_ends_by_itself_is_started_again(
    running: Cluster, said: list[str], http: aiohttp.ClientSession
) -> None:
    before = running.workers[0].pid
    with suppress(aiohttp.ClientError):
        await fetch(http, f"{running.workers[0].url}/crash")
    await eventually(lambda: running.workers[0].pid != before and not is_free(int(running.workers[0].url[-5:])))
    assert said == ["worker-1 ended with exit code 3; it is started again in 0.5 s"]
    await running.kill("worker-1")
    assert not running.workers[0].is_running
    assert len(said) == 1


async def test_a_process_can_be_made_to_hang_and_to_wake(running: Cluster, http: aiohttp.ClientSession) -> None:
    worker = running.workers[0]
    running.send("worker-1", signal.SIGSTOP)
    await eventually(lambda: Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    running.send("worker-1", signal.SIGCONT)
    assert (await fetch(http, worker.url))["pid"] == worker.pid


async def test_an_unknown_process_is_said_plainly(running: Cluster) -> None:
    with pytest.raises(Unknown, match="no process 'replica-9' is known; known: balancer, nats, replica-1"):
        await running.kill("replica-9")


async def test_nothing_is_left(tmp_path: Path) -> None:
    async with cluster(settings(tmp_path)) as running:
        pids = [child.pid for child in running.children.values()]
        assert len(pids) == 5
        assert all(map(is_alive, pids))
        groups = {os.getpgid(pid) for pid in pids}
        assert os.getpgrp() not in groups
    assert not any(map(is_alive, pids))


async def test_nothing_is_left_when_a_child_does_not_come_up(tmp_path: Path) -> None:
    before = children_of_ours()
    with pytest.raises(ChildFailed) as failed:
        async with cluster(settings(tmp_path, models=tmp_path / "broken")):
            pass
    assert "ended with exit code 1; its last lines:" in failed.value.message
    assert "error: the models folder is broken" in failed.value.message
    assert children_of_ours() == before


def children_of_ours() -> str:
    return Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text()


def test_nothing_is_left_when_the_parent_is_killed(tmp_path: Path) -> None:
    script = f"""
import asyncio
from pathlib import Path
from stagecast.cluster import ClusterSettings, cluster
async def main():
    async with cluster(ClusterSettings(data=Path({str(tmp_path)!r}), program={STAND_IN!r}, replicas=1)) as running:
        print(*(child.pid for child in running.children.values()), flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 5
        parent.send_signal(signal.SIGKILL)
        parent.wait(60)
        deadline = time.monotonic() + 60
        while any(map(is_alive, pids)):
            assert time.monotonic() < deadline
            os.sched_yield()


async def test_two_clusters_do_not_share_a_data_folder(running: Cluster) -> None:
    with pytest.raises(Busy, match="is being worked on by another cluster"):
        async with cluster(settings(running.data)):
            pass


async def test_a_taken_port_is_said_before_anything_starts(running: Cluster, tmp_path: Path) -> None:
    with pytest.raises(PortTaken, match="choose another one with --port"):
        async with cluster(settings(tmp_path / "other", port=running.port)):
            pass
