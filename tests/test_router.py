from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, nullcontext
from typing import Any

import msgspec
import pytest

from stagecast import placement, router, subjects
from stagecast.bus.memory import MemoryBus
from stagecast.errors import BackendFailed, ModelLoading, Unknown
from stagecast.leases import LIFETIME
from stagecast.messages import Holding, Instance, NodeRecord, Placement
from stagecast.presence import Presence
from stagecast.router import Loading, Router, Target
from stagecast.tracker import Tracker
from tests.peers import Peers, a_record, agree


class Cluster:
    """Replicas that route on one log, and workers that exist only by what they have said there."""

    def __init__(self, peers: Peers, bus: MemoryBus) -> None:
        self.peers = peers
        self.bus = bus
        self.clock = 1000.0
        self.wall = time.time()
        self.trackers: list[Tracker] = []
        self.presences: list[Presence] = []

    async def router(self) -> Router:
        tracker = await self.peers.tracker(f"replica-{len(self.trackers)}", clock=lambda: self.wall)
        presence = Presence(tracker, judges=False, monotonic=lambda: self.clock)
        self.trackers.append(tracker)
        self.presences.append(presence)
        return Router(tracker, presence)

    async def say(self, subject: str, message: msgspec.Struct) -> None:
        sequence = await self.bus.log.append(subject, msgspec.json.encode(message))
        for tracker in self.trackers:
            await tracker.until(lambda tracker=tracker: tracker.revision.sequence >= sequence)  # type: ignore[misc]

    async def worker(self, name: str, *, free: int = 1000, **changes: Any) -> None:
        values = {"kind": "worker", "process": f"{name}/1", "disk_free": free, "address": f"http://{name}"} | changes
        await self.say(subjects.node(name), NodeRecord(name=name, **values))
        self.renew(name)

    def renew(self, *names: str) -> None:
        for presence in self.presences:
            for name in names:
                presence.leases.renew(f"{name}/1", self.clock)

    def kill(self, name: str) -> None:
        for presence in self.presences:
            presence.leases.leave(f"{name}/1")

    async def hold(self, node: str, model: str = "m", size: int = 100) -> None:
        await self.say(subjects.holding(node, model), Holding(node=node, model=model, digest="d", size=size, files=1))

    async def report(self, node: str, state: str, generation: int, error: str = "", model: str = "m") -> None:
        said = Instance(
            node=node, model=model, process=f"{node}/1", instance=f"{node}-{generation}", generation=generation,
            state=state, error=error,  # type: ignore[arg-type]
        )  # fmt: skip
        await self.say(subjects.instance(node, model), said)

    def placements(self) -> Placement:
        return self.trackers[0].fold.placements["m"]


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    bus = MemoryBus()
    async with AsyncExitStack() as stack:
        yield Cluster(Peers(stack, lambda _: nullcontext(bus)), bus)


@pytest.fixture
async def routing(cluster: Cluster) -> Router:
    """Return a router that knows the workers a and b, of which a holds the model m."""
    found = await cluster.router()
    await cluster.worker("a")
    await cluster.worker("b")
    await cluster.hold("a")
    return found


async def test_a_model_that_nobody_has_is_unknown(routing: Router) -> None:
    with pytest.raises(Unknown, match="no model 'x' is known; known: m"):
        await routing.ready("x", 0.0)
    assert not routing.knows("x")
    assert routing.knows("m")


async def test_a_model_on_its_way_is_known(cluster: Cluster, routing: Router) -> None:
    await cluster.trackers[0].open("installation", "new", cause="test")
    await cluster.trackers[0].open("deletion", "old", "a", cause="test")
    await cluster.trackers[0].until(lambda: len(cluster.trackers[0].fold.slots) == 2)
    assert routing.knows("new")
    assert not routing.knows("old")


async def test_a_model_that_is_still_being_read_in_is_known_and_loaded_where_it_lies(
    cluster: Cluster, routing: Router
) -> None:
    await cluster.worker("roomy", free=10**9)
    await cluster.say(subjects.holding("b", "fresh"), Holding(node="b", model="fresh", state="reading"))
    with pytest.raises(ModelLoading):
        await routing.ready("fresh", 0.0)
    assert cluster.trackers[0].fold.placements["fresh"].nodes == ("b",)


async def test_what_is_ready_on_a_living_worker_is_a_target(cluster: Cluster, routing: Router) -> None:
    await cluster.report("a", "loading", 1)
    assert routing.targets("m") == []
    await cluster.report("a", "ready", 1)
    await cluster.report("b", "ready", 1, model="other")
    assert routing.targets("m") == [Target("a", "http://a", "a-1")]
    assert await routing.ready("m", 0.0) == Target("a", "http://a", "a-1")
    cluster.kill("a")
    assert routing.targets("m") == []


async def test_a_backend_of_a_worker_s_earlier_process_is_none(cluster: Cluster, routing: Router) -> None:
    await cluster.report("a", "ready", 1)
    await cluster.worker("a", process="a/2")
    assert routing.targets("m") == []


async def test_the_least_busy_goes_first(cluster: Cluster, routing: Router) -> None:
    await cluster.report("b", "ready", 1)
    await cluster.report("a", "ready", 1)
    one, two = routing.targets("m")
    assert (one.node, two.node) == ("a", "b")
    with routing.using(one):
        assert routing.targets("m") == [two, one]
        with routing.using(two):
            assert routing.targets("m") == [one, two]
    assert routing.targets("m") == [one, two]
    assert routing._busy == {}


async def test_an_instance_to_avoid_is_not_given(cluster: Cluster, routing: Router) -> None:
    await cluster.report("a", "ready", 1)
    await cluster.report("b", "ready", 1)
    assert (await routing.ready("m", 0.0, frozenset({"a-1"}))).node == "b"
    with pytest.raises(ModelLoading):
        await routing.ready("m", 0.0, frozenset({"a-1", "b-1"}))


async def test_a_request_places_the_model_and_is_served_when_it_is_ready(cluster: Cluster, routing: Router) -> None:
    waiting = asyncio.create_task(routing.ready("m", 10.0))
    await cluster.trackers[0].until(lambda: "m" in cluster.trackers[0].fold.placements)
    wish = cluster.placements()
    assert (wish.nodes, wish.generation, wish.refused) == (("a",), 1, ())
    await cluster.report("a", "loading", 1)
    assert not waiting.done()
    await cluster.report("a", "ready", 1)
    assert (await waiting).instance == "a-1"


async def test_a_request_that_may_not_wait_leaves_the_wish_behind(cluster: Cluster, routing: Router) -> None:
    for _ in range(3):
        with pytest.raises(ModelLoading, match="m is loading"):
            await routing.ready("m", 0.0)
    assert cluster.placements().generation == 1
    assert routing.standing("m") == Loading(
        model="m", state="queued", progress=0, bytes_sent=0, total_bytes=0, file_index=0, total_files=0
    )


async def test_routers_that_race_make_one_placement(cluster: Cluster) -> None:
    routers = [await cluster.router() for _ in range(3)]
    for name in "abc":
        await cluster.worker(name)
        await cluster.hold(name)
    before = cluster.bus.log._sequence
    found = await asyncio.gather(*(each.place("m") for each in routers for _ in range(10)))
    assert len(set(found)) == 1
    assert cluster.bus.log._sequence == before + 1
    await agree(*cluster.trackers)


async def test_who_loses_the_race_takes_the_winner_s_wish(cluster: Cluster, routing: Router) -> None:
    other = await cluster.router()
    cluster.renew("a", "b")
    held = await routing.place("m")
    cluster.trackers[1].fold.placements.clear()
    assert await other.place("m") == held
    assert cluster.placements().generation == 1


async def test_a_dead_node_s_model_is_placed_elsewhere(cluster: Cluster, routing: Router) -> None:
    await routing.place("m")
    await cluster.report("a", "ready", 1)
    cluster.renew("a", "b")
    cluster.clock += LIFETIME
    cluster.renew("b")
    wish = await routing.place("m")
    assert (wish.nodes, wish.generation, wish.refused) == (("b",), 2, ())


async def test_a_model_that_failed_is_tried_on_another_node_and_then_left_alone_for_a_while(
    cluster: Cluster, routing: Router
) -> None:
    first = await routing.place("m")
    await cluster.report("a", "failed", 1, "out of memory")
    second = await routing.place("m")
    assert (second.nodes, second.refused, second.generation) == (("b",), ("a",), 2)
    await cluster.report("b", "failed", 2, "no such tensor")
    for _ in range(3):
        with pytest.raises(BackendFailed, match="m could not be loaded: a: out of memory; b: no such tensor"):
            await routing.ready("m", 5.0)
    assert cluster.placements() == second
    cluster.wall = second.placed_at + placement.COOL_DOWN
    third = await routing.place("m")
    assert (third.nodes, third.refused, third.generation) == (first.nodes, (), 3)


async def test_a_failure_of_before_is_no_answer_to_a_new_wish(cluster: Cluster, routing: Router) -> None:
    await routing.place("m")
    await cluster.report("a", "failed", 1, "out of memory")
    await cluster.say(subjects.placement("m"), Placement(model="m", nodes=("a",), generation=2))
    wish = await routing.place("m")
    assert (wish.nodes, wish.generation) == (("a",), 2)


async def test_a_failure_is_waited_out_by_nobody(cluster: Cluster, routing: Router) -> None:
    waiting = asyncio.create_task(routing.ready("m", 10.0))
    await cluster.trackers[0].until(lambda: "m" in cluster.trackers[0].fold.placements)
    await cluster.report("a", "failed", 1, "out of memory")
    await cluster.trackers[0].until(lambda: cluster.placements().nodes == ("b",))
    await cluster.report("b", "failed", 2, "out of memory")
    with pytest.raises(BackendFailed):
        await waiting


async def test_a_node_can_be_named(cluster: Cluster, routing: Router) -> None:
    assert (await routing.place("m", "b")).nodes == ("b",)
    assert (await routing.place("m", "b")).generation == 1, "it is asked already"
    await cluster.report("b", "failed", 1, "out of memory")
    again = await routing.place("m", "b")
    assert (again.nodes, again.generation) == (("b",), 2)
    for name in ("nobody", "replica-0"):
        with pytest.raises(Unknown, match=f"no worker '{name}' is known; known: a, b"):
            await routing.place("m", name)


async def test_nodes_that_drain_have_left_or_are_no_workers_are_not_chosen(cluster: Cluster, routing: Router) -> None:
    await cluster.worker("a", draining=True)
    await cluster.worker("c", left=True)
    await cluster.worker("d", kind="replica")
    assert (await routing.place("m")).nodes == ("b",)


async def test_without_a_worker_the_error_says_so(cluster: Cluster, routing: Router) -> None:
    cluster.kill("a")
    cluster.kill("b")
    with pytest.raises(BackendFailed, match="no living worker can load m; start one, or end a drain, then retry"):
        await routing.place("m")


async def test_without_room_the_error_says_how_much_is_needed(cluster: Cluster, routing: Router) -> None:
    await cluster.worker("r", kind="replica")
    await cluster.hold("r", "big", size=5_000_000)
    with pytest.raises(BackendFailed, match=r"no worker has room for big \(5,000,000 bytes\); free some disk"):
        await routing.place("big")


async def test_a_wish_that_was_withdrawn_can_be_made_again(cluster: Cluster, routing: Router) -> None:
    held = await routing.place("m")
    await cluster.say(subjects.placement("m"), placement.withdrawn(held, "a", cluster.wall))
    wish = await routing.place("m")
    assert (wish.nodes, wish.generation) == (("a",), 3)


async def test_a_lease_that_runs_out_is_seen_though_the_log_says_nothing(
    cluster: Cluster, routing: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router, "LOOK_AGAIN", 0.01)
    waiting = asyncio.create_task(routing.ready("m", 10.0))
    await cluster.trackers[0].until(lambda: "m" in cluster.trackers[0].fold.placements)
    cluster.kill("a")
    await cluster.trackers[0].until(lambda: cluster.placements().nodes == ("b",))
    await cluster.report("b", "ready", 2)
    assert (await waiting).node == "b"


async def test_where_a_load_stands_is_what_is_furthest_on_its_way(cluster: Cluster, routing: Router) -> None:
    tracker = cluster.trackers[0]
    await routing.place("m")

    async def under_way(kind: str, node: str, **changes: Any) -> None:
        record = a_record(kind=kind, model="m", node=node, **changes)
        await tracker.reached(await tracker.write(record, 0))

    await under_way("staging", "b", bytes_done=99, bytes_total=100)
    assert routing.standing("m").state == "queued", "that one goes where the model is not wanted loaded"
    await under_way("installation", "", bytes_done=1, bytes_total=100, phase="transferring")
    assert (routing.standing("m").state, routing.standing("m").node) == ("transferring", msgspec.UNSET)
    await under_way(
        "staging", "a", bytes_done=50, bytes_total=100, rate=25.0, phase="transferring", file_index=1, total_files=2
    )
    assert msgspec.to_builtins(routing.standing("m")) == {
        "model": "m", "state": "transferring", "node": "a", "progress": 50, "bytes_sent": 50, "total_bytes": 100,
        "file_index": 1, "total_files": 2, "eta_seconds": 2.0,
    }  # fmt: skip
    await under_way("loading", "a", bytes_total=100, state="stalled", phase="loading")
    assert routing.standing("m").state == "stalled"
