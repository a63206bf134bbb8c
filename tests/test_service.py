"""A program's own work, alone and on a real nats-server; what takes several processes has as many services."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

import stagecast
from stagecast import composition, subjects
from stagecast.errors import Busy, Fenced, NotReady
from stagecast.operation import PARAMETERS_LIMIT
from stagecast.settings import ReplicaSettings
from tests.conftest import NatsServer, eventually

Make = Callable[[str], stagecast.Service]


@pytest.fixture(params=["memory", "nats"])
def service(request: pytest.FixtureRequest) -> stagecast.Service:
    """Return a service whose lifespan has not begun, alone or not."""
    url = None if request.param == "memory" else request.getfixturevalue("nats_server").url
    return stagecast.Service(nats=url, name="one")


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def make(nats_server: NatsServer) -> Make:
    """Return what makes services that share a log."""
    return lambda name: stagecast.Service(nats=nats_server.url, name=name)


def endless(service: stagecast.Service, kind: str = "render", **options: Any) -> list[stagecast.Operation]:
    """Let a service perform work that never ends; return what it has begun, in order."""
    begun: list[stagecast.Operation] = []

    @service.performs(kind, **options)
    async def work(operation: stagecast.Operation) -> None:
        begun.append(operation)
        operation.advance()
        await asyncio.Event().wait()

    return begun


async def test_what_is_queued_is_done_and_counted_in_its_own_units(service: stagecast.Service) -> None:
    @service.performs("render")
    async def render(operation: stagecast.Operation) -> None:
        assert (operation.id, operation.name, operation.attempt, operation.done) == ("render:film", "film", 1, 0)
        assert operation.parameters == {"codec": "av1"}
        for _ in range(operation.total):
            operation.advance()

    async with service.lifespan():
        queued = await service.submit("render", "film", total=240, parameters={"codec": "av1"})
        assert (queued.id, queued.task_type, queued.total_bytes) == ("render:film", "render", 240)
        row = await service.ended(queued.job_id)
        assert (row.state, row.current_bytes, row.message) == ("succeeded", 240, "Render film: succeeded")
        assert (await service.ended("render:film")) == service.row(queued.job_id) == row
        assert service.operations() == []
        again = await service.submit("render", "film", total=1)
        assert again.job_id != queued.job_id, "an ended one is run anew"
        assert service.row(queued.job_id) == row, "the history knows it"
        await service.ended(again.job_id)


async def test_what_raises_has_failed_with_that_cause_and_can_be_tried_again(service: stagecast.Service) -> None:
    faults = [ValueError("no such codec")]

    @service.performs("render")
    async def render(operation: stagecast.Operation) -> None:
        for _ in range(operation.done, 4):
            operation.advance()
            if operation.done == 2 and faults:
                raise faults.pop()

    async with service.lifespan():
        failed = await service.ended((await service.submit("render", "film", total=4)).id)
        assert (failed.state, failed.error) == ("failed", "ValueError: no such codec")
        assert [row.id for row in service.operations()] == ["render:film"]
        assert (await service.command(failed.job_id, "retry")).job_id == failed.job_id
        row = await service.ended(failed.job_id)
        assert (row.state, row.attempt, row.current_bytes) == ("succeeded", 2, 4)


async def test_a_coroutine_is_cancelled_where_it_waits(service: stagecast.Service) -> None:
    begun = endless(service)
    async with service.lifespan():
        row = await service.submit("render", "film")
        await eventually(lambda: begun)
        assert (await service.command(row.id, "cancel")).state == "cancelled"
        assert begun[0].is_stopped
        with pytest.raises(stagecast.WrongState):
            await service.command(row.id, "resume")
        with pytest.raises(stagecast.Unknown):
            await service.command("render:other", "cancel")


async def test_a_plain_function_has_a_thread_and_stops_at_its_next_advance(service: stagecast.Service) -> None:
    seen: list[object] = []
    go = threading.Event()

    @service.performs("crunch")
    def crunch(operation: stagecast.Operation) -> None:
        seen.append(threading.current_thread() is threading.main_thread())
        operation.advance(5)
        operation.tell("crunching")
        go.wait(60)
        try:
            operation.advance()
        except stagecast.Interrupted as interrupted:
            seen.append(interrupted.verb)
            raise

    async with service.lifespan():
        row = await service.submit("crunch", "numbers", total=10)
        await eventually(lambda: service.row(row.id).current_bytes == 5)
        await eventually(lambda: service.row(row.id).message == "Crunch numbers: 5 of 10 (crunching)")
        cancelling = asyncio.create_task(service.command(row.id, "cancel"))
        await eventually(service._running.tracker.owned[row.id].stop.is_set)
        go.set()
        assert (await cancelling).state == "cancelled"
    assert seen == [False, "cancel"]


async def test_a_thread_is_told_too_when_its_process_ends_and_another_goes_on(
    make: Make, stack: AsyncExitStack
) -> None:
    one, two = make("one"), make("two")
    ended: list[str] = []

    @one.performs("crunch")
    def crunch(operation: stagecast.Operation) -> None:
        try:
            while True:
                operation.advance()
        except stagecast.Interrupted as interrupted:
            ended.append(interrupted.message)

    there = endless(two, "crunch")
    async with one.lifespan():
        row = await one.submit("crunch", "numbers")
        await eventually(lambda: one.row(row.id).owner)
        await stack.enter_async_context(two.lifespan())
    assert ended == ["stopped by the end of its process"]
    await eventually(lambda: there)
    assert (there[0].attempt, there[0].job) == (2, row.job_id)


async def test_what_only_turns_out_to_be_a_coroutine_is_awaited(service: stagecast.Service) -> None:
    class Renderer:
        async def __call__(self, operation: stagecast.Operation) -> None:
            operation.advance(3)

    service.performs("render")(Renderer())
    async with service.lifespan():
        row = await service.ended((await service.submit("render", "film", total=3)).id)
        assert (row.state, row.current_bytes) == ("succeeded", 3)


async def test_pause_and_resume_go_on_where_it_was(service: stagecast.Service) -> None:
    begun = endless(service)
    async with service.lifespan():
        row = await service.submit("render", "film", total=9)
        await eventually(lambda: begun and service.row(row.id).current_bytes == 1)
        assert (await service.command(row.id, "pause")).state == "paused"
        await service.command(row.id, "resume")
        await eventually(lambda: len(begun) == 2)
        assert (begun[1].attempt, begun[1].job) == (2, row.job_id)
        assert begun[1].done == 2, "one by each"


async def test_only_so_many_at_once_and_the_rest_is_for_whoever_is_free(make: Make, stack: AsyncExitStack) -> None:
    one, two = make("one"), make("two")
    here, there = endless(one), endless(two)
    await stack.enter_async_context(one.lifespan())
    await one.submit("render", "a")
    await one.submit("render", "b")
    await eventually(lambda: here)
    assert [(row.name, row.state) for row in one.operations()] == [("a", "running"), ("b", "queued")]
    await stack.enter_async_context(two.lifespan())
    await eventually(lambda: there)
    assert ([each.name for each in here], [each.name for each in there]) == (["a"], ["b"])
    await one.submit("render", "c")
    assert one.row("render:c").state == "queued"
    await two.command("render:b", "cancel")
    await eventually(lambda: len(there) == 2)
    assert there[1].name == "c"
    await two.command("render:a", "cancel")
    await two.submit("render", "d")
    await eventually(lambda: len(here) == 2)
    assert [each.name for each in here] == ["a", "d"], "what others took while it waited is not begun here"


async def test_what_a_process_leaves_behind_another_one_goes_on_with(make: Make, stack: AsyncExitStack) -> None:
    one, two, judge = make("one"), make("two"), make("judge")
    here, there = endless(one), endless(two)
    await stack.enter_async_context(judge.lifespan())
    async with one.lifespan():
        row = await judge.submit("render", "film", total=9)
        await eventually(lambda: here and judge.row(row.id).current_bytes == 1)
        await stack.enter_async_context(two.lifespan())
    await eventually(lambda: there)
    assert (there[0].attempt, there[0].job, there[0].done) == (2, row.job_id, 2)
    await eventually(lambda: judge.row(row.id).owner.startswith("two/"))


async def test_work_that_nobody_performs_stays_queued_and_can_be_cancelled(service: stagecast.Service) -> None:
    async with service.lifespan():
        row = await service.submit("render", "film")
        assert (row.state, row.is_queued, row.cancellable) == ("queued", True, True)
        assert (await service.submit("render", "film")).job_id == row.job_id, "asked for twice it is queued once"
        assert (await service.command(row.id, "cancel")).state == "cancelled"


async def test_a_block_that_returns_has_succeeded_and_one_that_raises_failed(service: stagecast.Service) -> None:
    async with service.lifespan():
        async with service.operation("index", "documents", total=3, parameters={"lang": "en"}) as operation:
            operation.advance(2)
            assert operation.parameters == {"lang": "en"}
            assert service.row(operation.id).state == "running"
        assert (await service.ended(operation.job)).current_bytes == 2
        with pytest.raises(ZeroDivisionError):
            async with service.operation("index", "documents") as operation:
                operation.advance(1 // 0)
        row = await service.ended(operation.job)
        assert (row.state, row.error) == ("failed", "ZeroDivisionError: integer division or modulo by zero")
        with pytest.raises(stagecast.BadInput, match="nothing to index"):
            async with service.operation("index", "documents"):
                raise stagecast.BadInput("nothing to index")
        assert (await service.ended("index:documents")).error == "nothing to index"


async def test_a_block_is_cancelled_from_another_replica_and_says_so(make: Make, stack: AsyncExitStack) -> None:
    one, two = make("one"), make("two")
    for each in (one, two):
        await stack.enter_async_context(each.lifespan())
    after: list[str] = []

    async def block() -> None:
        async with one.operation("index", "documents"):
            await asyncio.Event().wait()
        after.append("not reached")

    for verb, state in (("cancel", "cancelled"), ("pause", "paused")):
        working = asyncio.create_task(block())
        await eventually(lambda: two._running.fold.record("index:documents") and two.row("index:documents").owner)
        await eventually(lambda: two.row("index:documents").state == "running")
        with pytest.raises(Busy, match="index:documents is being worked on by one/"):
            async with two.operation("index", "documents"):
                pass
        assert (await two.command("index:documents", verb)).state == state  # type: ignore[arg-type]
        with pytest.raises(stagecast.Interrupted) as interrupted:
            await working
        assert interrupted.value.verb == verb
    with pytest.raises(stagecast.WrongState, match="cannot begin index:documents: it is paused"):
        await block()
    await two.command("index:documents", "resume")
    async with two.operation("index", "documents") as operation:
        assert operation.attempt > 1
    assert after == []


async def test_a_block_whose_operation_is_another_s_now_raises(make: Make, stack: AsyncExitStack) -> None:
    one, two = make("one"), make("two")
    for each in (one, two):
        await stack.enter_async_context(each.lifespan())

    async def block() -> None:
        async with one.operation("index", "documents"):
            await asyncio.Event().wait()

    working = asyncio.create_task(block())
    await eventually(lambda: one._running.tracker.owned)
    record, sequence = await two._running.tracker.standing("index:documents", "index", "documents", "")
    assert record is not None
    await two._running.tracker.write(stagecast_claimed(record, "two/1"), sequence)
    with pytest.raises(Fenced):
        await working


def stagecast_claimed(record: Any, owner: str) -> Any:
    from stagecast.operations import claimed

    return claimed(record, owner, 0.0)


async def test_one_block_at_a_time_in_one_process_too(service: stagecast.Service) -> None:
    async with service.lifespan(), service.operation("index", "documents"):
        with pytest.raises(Busy):
            async with service.operation("index", "documents"):
                pass


@pytest.mark.parametrize(
    ("kind", "name", "options", "said"),
    [
        ("staging", "a", {}, "'staging' cannot be the name of a kind of work: it is one of Stagecast's own"),
        ("", "a", {}, "'' cannot be the name of a kind of work: write 1 to 40 of a-z"),
        ("Re.nder", "a", {}, "'Re.nder' cannot be"),
        ("render\n", "a", {}, "cannot be the name of a kind of work"),
        ("render", "", {}, "'' cannot be the name of a piece of work: it needs 1 to 200 bytes"),
        ("render", "a/b", {}, "'a/b' cannot be the name of a piece of work"),
        ("render", "a\n", {}, "cannot be the name of a piece of work"),
        ("render", "a", {"total": -1}, "total is -1; it cannot be negative"),
        ("render", "a", {"total": 1.5}, "total is 1.5; it counts whole units"),
        ("render", "a", {"parameters": {"frames": 1}}, "parameters hold text only"),
        ("render", "a", {"parameters": {"x": "y" * PARAMETERS_LIMIT}}, "65,536 at most"),
    ],
)
async def test_what_cannot_be_meant_is_said_at_once(kind: str, name: str, options: Any, said: str) -> None:
    service = stagecast.Service()
    async with service.lifespan():
        for asked in (service.submit(kind, name, **options), entered(service, kind, name, options)):
            with pytest.raises(stagecast.BadInput) as refused:
                await asked
            assert said in refused.value.message
        assert service.operations() == []


async def entered(service: stagecast.Service, kind: str, name: str, options: Any) -> None:
    async with service.operation(kind, name, **options):
        pass


async def test_a_kind_is_performed_by_one_function_that_is_known_from_the_start() -> None:
    service = stagecast.Service()
    endless(service)
    for kind, said in (("render", "is performed already"), ("loading", "one of Stagecast's own"), ("R", "a-z")):
        with pytest.raises(stagecast.BadInput, match=said):
            service.performs(kind)
    with pytest.raises(stagecast.BadInput, match="at_once is -1"):
        service.performs("crunch", at_once=-1)
    async with service.lifespan():
        with pytest.raises(stagecast.BadInput, match="comes after the lifespan has begun"):
            service.performs("crunch")
        with pytest.raises(stagecast.BadInput, match="takes part already"):
            async with service.lifespan():
                pass


async def test_outside_its_lifespan_a_service_says_what_is_missing_and_it_can_begin_again() -> None:
    service = stagecast.Service(name="one")
    for _ in range(2):
        with pytest.raises(NotReady, match="the service's lifespan has not begun"):
            service.operations()
        async with service.lifespan():
            assert service.operations() == []
            assert service.revision.endswith("-0")
    with pytest.raises(stagecast.BadInput):
        stagecast.Service(name="a/b")


async def test_alone_with_a_folder_the_next_process_goes_on_at_once(tmp_path: Path) -> None:
    begun: list[stagecast.Operation] = []
    for attempt in (1, 2):
        service = stagecast.Service(data=tmp_path, name=f"one-{attempt}")
        begun = endless(service)
        async with service.lifespan():
            row = await service.submit("render", "film", total=9) if attempt == 1 else service.row("render:film")
            await eventually(lambda begun=begun: begun)
            assert begun[0].attempt == attempt
            with pytest.raises(stagecast.StagecastError):
                async with stagecast.Service(data=tmp_path).lifespan():
                    pass
    assert begun[0].job == row.job_id
    assert begun[0].done == 2, "one by each"


async def test_who_waits_for_an_end_hears_that_the_process_ends(service: stagecast.Service) -> None:
    async with service.lifespan():
        with pytest.raises(stagecast.Unknown):
            await service.ended("render:nothing")
        row = await service.submit("render", "film")
        waiting = asyncio.create_task(service.ended(row.id))
        await asyncio.sleep(0)
    with pytest.raises(NotReady, match="one ends; wait for render:film on another replica"):
        await waiting


async def test_a_nats_server_that_is_not_there_is_an_error_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    from stagecast.bus import nats as bus

    dial = bus._dial
    monkeypatch.setattr(bus, "_dial", lambda url, _, **options: dial(url, 0.3, **options))
    with pytest.raises(stagecast.BusError, match=r"no NATS server at nats://127\.0\.0\.1:1"):
        async with stagecast.Service(nats="nats://127.0.0.1:1").lifespan():
            pass


async def test_a_row_is_a_dict_as_the_api_has_it(service: stagecast.Service) -> None:
    async with service.lifespan():
        row = await service.submit("render", "film", total=3)
        assert json.loads(json.dumps(dict(row)))["totalBytes"] == 3  # type: ignore[call-overload]
        assert dict(row)["jobID"] == row.job_id  # type: ignore[call-overload]


async def test_a_program_and_a_cluster_share_one_log_and_each_shows_both(make: Make, tmp_path: Path) -> None:
    program = make("program")
    begun = endless(program)
    nats = program._nats
    settings = ReplicaSettings(listen="127.0.0.1:0", data=tmp_path, name="replica", nats=nats)
    async with program.lifespan(), composition.replica(settings) as url, aiohttp.ClientSession() as http:
        row = await program.submit("render", "film", total=9)
        await eventually(lambda: begun)
        staging, at = await program._running.tracker.open("staging", "owl", "there", cause="test")
        await program._running.tracker.reached(at)
        assert [each.id for each in program.operations()] == ["render:film", staging.id]
        async with http.get(f"{url}/api/operations", params={"min_revision": program.revision}) as response:
            shown = {each["id"]: each for each in (await response.json())["operations"]}
        assert shown.keys() == {"render:film", staging.id}
        assert shown["render:film"]["taskType"] == "render"
        async with http.post(f"{url}/api/operations/{row.job_id}/cancel") as response:
            assert (response.status, (await response.json())["state"]) == (200, "cancelled")
        assert (await program.ended(row.job_id)).state == "cancelled"
        async with http.get(f"{url}/api/operations/history", params={"kind": "render"}) as response:
            assert [each["jobID"] for each in (await response.json())["operations"]] == [row.job_id]
        async with http.get(f"{url}/api/nodes") as response:
            assert [each["name"] for each in (await response.json())["nodes"]] == ["replica"]


async def test_every_work_of_a_program_has_a_subject_of_its_own_kind(make: Make, nats_server: NatsServer) -> None:
    service = make("one")
    async with service.lifespan():
        row = await service.submit("render", "film.v1 *")
        record = service._running.fold.record(row.id)
        assert record is not None
        assert subjects.operation(record).startswith("task.film-v1---")


async def test_told_to_end_it_ends_its_streams_and_leaves_the_signals_as_they_were() -> None:
    told: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    try:
        held = signal.getsignal(signal.SIGTERM)
        service = stagecast.Service()
        async with service.lifespan():
            signal.raise_signal(signal.SIGTERM)
            await eventually(lambda: service._running.tracker.is_closing)
        assert told == [signal.SIGTERM], "whoever heard it before hears it still"
        assert signal.getsignal(signal.SIGTERM) is held
    finally:
        signal.signal(signal.SIGTERM, before)


async def test_a_service_that_is_cancelled_leaves_its_work_to_others(make: Make, stack: AsyncExitStack) -> None:
    one, two = make("one"), make("two")
    begun = endless(one)
    await stack.enter_async_context(two.lifespan())

    async def serve() -> None:
        async with one.lifespan():
            await asyncio.Event().wait()

    serving = asyncio.create_task(serve())
    row = await two.submit("render", "film")
    await eventually(lambda: begun)
    serving.cancel()
    with suppress(asyncio.CancelledError):
        await serving
    await eventually(lambda: two.row(row.id).state == "stalled")
    assert "its process is stopping" in two.row(row.id).message
