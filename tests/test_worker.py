from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from stagecast import operations, ownership, part_files, subjects, worker
from stagecast.commands import Commands
from stagecast.errors import TransferFailed
from stagecast.messages import Limits, NodeLimits, Record
from stagecast.store import Store
from stagecast.worker import Worker, receivers
from tests.conftest import eventually
from tests.nodes import Member, Nodes
from tests.sample import contents_of, fill, manifest_of

FILES = {"a.bin": b"a" * 5000, "sub/b.json": b"{}"}
OWL = {f"owl/{path}": content for path, content in FILES.items()}


@pytest.fixture
def nodes(tmp_path: Path) -> Nodes:
    return Nodes(tmp_path)


async def staged(member: Member, model: str, node: str, **parameters: str) -> Record:
    """Queue a staging and return its end."""
    record, _ = await member.tracker.open("staging", model, node, cause="test", parameters=parameters)
    return await ended(member, record)


async def ended(member: Member, record: Record) -> Record:
    def has_ended() -> bool:
        held = member.tracker.fold.record(record.id)
        return held is not None and held.job == record.job and operations.is_ended(held)

    async with asyncio.timeout(60):
        await member.tracker.until(has_ended)
    found = member.tracker.fold.record(record.id)
    assert found is not None
    return found


async def test_a_staging_brings_the_files_and_ends_once_the_model_is_announced(nodes: Nodes) -> None:
    async with nodes.node("holder", OWL, kind="replica") as holder, nodes.worker("w") as member:
        await holder.until_held("owl")
        end = await staged(holder, "owl", "w")
        assert (end.state, end.bytes_done, end.bytes_total, end.total_files) == ("succeeded", 5002, 5002, 2)
        assert (end.owner, end.attempt) == (member.tracker.process, 1)
        assert holder.tracker.fold.holdings["w", "owl"].state == "held"
        assert contents_of(member.models / "owl") == FILES
        assert holder.node.bytes_sent == 5002


async def test_what_is_there_already_is_not_moved(nodes: Nodes) -> None:
    async with nodes.node("holder", OWL) as holder, nodes.worker("w", OWL) as member:
        await holder.until_held("owl")
        await member.until_held("owl")
        digest = holder.tracker.fold.holdings["holder", "owl"].digest
        end = await staged(holder, "owl", "w", digest=digest)
        assert (end.state, end.bytes_done, end.bytes_total) == ("succeeded", 5002, 5002)
        assert holder.node.bytes_sent == 0


async def test_another_revision_is_replaced_where_a_digest_is_asked_for(nodes: Nodes) -> None:
    old = {"owl/a.bin": b"old", "owl/left.over": b"?"}
    async with nodes.node("holder", OWL) as holder, nodes.worker("w", old) as member:
        await holder.until_held("owl")
        await member.until_held("owl")
        assert (await staged(holder, "owl", "w")).state == "succeeded"
        assert (member.models / "owl" / "a.bin").read_bytes() == b"old", "nobody asked for a revision"
        digest = holder.tracker.fold.holdings["holder", "owl"].digest
        assert (await staged(holder, "owl", "w", digest=digest)).state == "succeeded"
        assert contents_of(member.models / "owl") == FILES


async def test_equal_files_under_different_names_keep_the_name_that_was_asked_for(nodes: Nodes) -> None:
    twin = {f"twin/{path}": content for path, content in FILES.items()}
    async with nodes.node("one", OWL) as one, nodes.node("two", twin) as two, nodes.worker("w") as member:
        await one.until_held("owl")
        await two.until_held("twin")
        holdings = one.tracker.fold.holdings
        digest = holdings["one", "owl"].digest
        assert (await staged(one, "owl", "w", digest=digest)).state == "succeeded"
        end = await staged(one, "twin", "w", digest=digest)
        assert (end.state, end.model) == ("succeeded", "twin")
        await member.until_held("owl", "twin")
        for name in ("owl", "twin"):
            assert contents_of(member.models / name) == FILES
            assert member.node.store.recorded(name).model == name  # type: ignore[union-attr]


async def test_equal_files_on_one_holder_are_two_models_there_and_on_the_worker(nodes: Nodes) -> None:
    twin = {f"twin/{path}": content for path, content in FILES.items()}
    async with nodes.node("holder", OWL | twin) as holder, nodes.worker("w") as member:
        await holder.until_held("owl", "twin")
        ends = await asyncio.gather(staged(holder, "owl", "w"), staged(holder, "twin", "w"))
        assert [end.state for end in ends] == ["succeeded", "succeeded"]
        await member.until_held("owl", "twin")
        assert contents_of(member.models / "twin") == contents_of(member.models / "owl") == FILES


async def test_two_workers_on_one_folder_bring_a_model_once_and_both_have_it(nodes: Nodes) -> None:
    (nodes.folder / "one" / "models").mkdir(parents=True)
    (nodes.folder / "two").mkdir()
    (nodes.folder / "two" / "models").symlink_to(nodes.folder / "one" / "models")
    async with (
        nodes.node("holder", OWL, kind="replica") as holder, nodes.worker("one") as one, nodes.worker("two") as two
    ):  # fmt: skip
        await holder.until_held("owl")
        ends = await asyncio.gather(*(staged(holder, "owl", node) for node in ("one", "two")))
        assert [(end.state, end.bytes_done) for end in ends] == [("succeeded", 5002)] * 2
        await one.until_held("owl")
        await two.until_held("owl")
        assert holder.node.bytes_sent == 5002


async def test_a_staging_waits_for_whoever_brings_the_same_into_its_folder(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "PATIENCE", 0.3)
    async with nodes.node("holder", OWL, kind="replica") as holder, nodes.worker("w") as member:
        await holder.until_held("owl")
        manifest = holder.node.store.recorded("owl")
        assert manifest is not None
        with Store(member.models, nodes.folder / "of-another-process", "w").partial(manifest):
            record, _ = await member.tracker.open("staging", "owl", "w", cause="test")
            await eventually(lambda: (now := member.tracker.fold.record(record.id)) and now.waits_on == "target disk")
            assert holder.node.bytes_sent == 0
        assert (await ended(member, record)).state == "succeeded"


async def test_one_plain_file_stays_one(nodes: Nodes) -> None:
    async with nodes.node("holder", {"single": b"weights"}) as holder, nodes.worker("w") as member:
        await holder.until_held("single")
        assert (await staged(holder, "single", "w")).state == "succeeded"
        assert (member.models / "single").read_bytes() == b"weights"


async def test_without_a_holder_it_fails_with_that_cause(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "HOLDER_PATIENCE", 0.0)
    async with nodes.worker("w") as member:
        end = await staged(member, "owl", "w")
        assert (end.state, end.error) == ("failed", "no holder gave the manifest of owl: none is alive")


async def test_a_holder_that_comes_late_is_waited_for(nodes: Nodes) -> None:
    async with nodes.worker("w") as member:
        record, _ = await member.tracker.open("staging", "owl", "w", cause="test")
        await eventually(
            lambda: (held := member.tracker.fold.record(record.id)) is not None and held.state == "running"
        )
        async with nodes.node("holder", OWL):
            assert (await ended(member, record)).state == "succeeded"


async def test_a_staging_that_waits_for_a_holder_can_be_cancelled(nodes: Nodes) -> None:
    async with nodes.worker("w") as member, Commands(member.tracker).running() as commands:
        record, _ = await member.tracker.open("staging", "owl", "w", cause="test")
        await eventually(lambda: record.id in member.tracker.owned)
        cancelled, _ = await commands.give(record.id, "cancel")
        assert (cancelled.state, member.node.store.names(), member.node.store.partials()) == ("cancelled", [], [])


async def test_what_an_earlier_process_of_the_node_left_behind_goes_on_with_the_next(nodes: Nodes) -> None:
    async with nodes.worker("w") as member:
        record, _ = await member.tracker.open("staging", "owl", "w", cause="test")
        await eventually(lambda: record.id in member.tracker.owned)
    async with nodes.node("holder", OWL) as holder, nodes.worker("w") as member:
        left = await holder.tracker.standing(record.id, "staging", "owl", "w")
        assert left[0] is not None
        end = await ended(holder, record)
        assert (end.state, end.attempt, end.owner) == ("succeeded", 2, member.tracker.process)


async def test_another_node_s_staging_is_left_alone(nodes: Nodes) -> None:
    async with nodes.node("holder", OWL) as holder, nodes.worker("w"):
        await holder.until_held("owl")
        other, _ = await holder.tracker.open("staging", "owl", "v", cause="test")
        assert (await staged(holder, "owl", "w")).state == "succeeded"
        assert holder.tracker.fold.record(other.id).state == "queued"  # type: ignore[union-attr]


async def test_a_load_can_ask_for_a_staging(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "HOLDER_PATIENCE", 0.0)
    async with nodes.node("holder", OWL) as holder, nodes.node("w") as member:
        working = Worker(member.node, member.tracker, member.presence, token="token")
        async with working.running():
            await holder.until_held("owl")
            await working.stage("owl", "placement")
            assert contents_of(member.models / "owl") == FILES
            assert member.tracker.fold.record("staging:owl@w").cause == "placement"  # type: ignore[union-attr]
            sequence = nodes.bus.log._sequence
            await working.stage("owl", "placement")
            assert nodes.bus.log._sequence == sequence, "it is there"
            with pytest.raises(TransferFailed, match="no holder gave the manifest of nope: none is alive"):
                await working.stage("nope", "placement")


async def test_a_load_s_staging_that_was_cancelled_says_so(nodes: Nodes) -> None:
    async with nodes.node("w") as member, Commands(member.tracker).running() as commands:
        working = Worker(member.node, member.tracker, member.presence, token="token")
        async with working.running():
            asked = asyncio.create_task(working.stage("owl", "placement"))
            await eventually(lambda: "staging:owl@w" in member.tracker.owned)
            await commands.give("staging:owl@w", "cancel")
            with pytest.raises(TransferFailed, match="staging:owl@w was cancelled"):
                await asked


async def test_what_lies_here_in_another_model_or_an_older_revision_is_not_moved(nodes: Nodes) -> None:
    old = {"a.bin": bytes(range(256)) * 20, "b.bin": b"b" * 3000}
    new = {"a.bin": old["a.bin"][:1024] + b"new" + old["a.bin"][1027:], "b.bin": b"b" * 3000, "c.bin": b"c" * 500}
    for node, model, contents in (("holder", "owl", new), ("w", "owl", old), ("w", "twin", {"copy": new["c.bin"]})):
        manifest = manifest_of(model, contents, piece_size=1024)
        with Store(nodes.folder / node / "models", nodes.folder / node).partial(manifest) as arriving:
            fill(arriving, contents)
            arriving.publish()
    async with nodes.node("holder") as holder, nodes.worker("w") as member:
        await holder.until_held("owl")
        await member.until_held("owl", "twin")
        digest = manifest_of("owl", new, piece_size=1024).digest
        end = await staged(holder, "owl", "w", digest=digest)
        size = sum(map(len, new.values()))
        assert (end.state, end.bytes_done, end.bytes_present) == ("succeeded", size, size - 1024)
        assert holder.node.bytes_sent == 1024
        assert contents_of(member.models / "owl") == new
        assert member.node.store.recorded("twin") is not None


async def test_what_a_load_waits_for_passes_the_queue_also_where_it_was_queued_before(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two before it wait for a holder that never comes: one of them gives way."""
    monkeypatch.setattr(worker, "HOLDER_PATIENCE", 1000.0)
    async with nodes.node("holder", OWL) as holder, nodes.node("w") as member:
        await holder.until_held("owl")
        working = Worker(member.node, member.tracker, member.presence, token="token", at_once=1)
        async with working.running():
            one, _ = await holder.tracker.open("staging", "one", "w", cause="test")
            await eventually(lambda: one.id in member.tracker.owned)
            for model in ("two", "owl"):
                low = {"priority": "low"}
                await holder.tracker.open("staging", model, "w", cause="prefetch", parameters=low)
            await working.stage("owl", "placement")
            assert contents_of(member.models / "owl") == FILES
            end = member.tracker.fold.record("staging:owl@w")
            assert end is not None
            assert (end.parameters, end.cause, end.attempt) == ({"priority": "request"}, "prefetch", 1)
            await eventually(lambda: one.id in member.tracker.owned)
            await eventually(lambda: member.tracker.fold.record(one.id).attempt == 2)  # type: ignore[union-attr]
            assert member.tracker.fold.record("staging:two@w").state == "queued"  # type: ignore[union-attr]


async def test_what_runs_already_and_is_waited_for_now_does_not_give_way(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "HOLDER_PATIENCE", 1000.0)
    async with nodes.node("w") as member:
        working = Worker(member.node, member.tracker, member.presence, token="token", at_once=1)
        async with working.running():
            early, _ = await member.tracker.open("staging", "early", "w", cause="test", parameters={"priority": "low"})
            await eventually(lambda: early.id in member.tracker.owned)
            waiting = [asyncio.create_task(working.stage("early", "placement"))]
            await eventually(lambda: operations.priority(member.tracker.fold.record(early.id)) == "request")  # type: ignore[arg-type]
            waiting.append(asyncio.create_task(working.stage("other", "placement")))
            await eventually(lambda: member.tracker.fold.record("staging:other@w") is not None)
            assert early.id in member.tracker.owned
            assert member.tracker.fold.record(early.id).state == "running"  # type: ignore[union-attr]
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)


async def test_what_the_log_says_of_a_node_goes_before_what_it_was_started_with(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "HOLDER_PATIENCE", 1000.0)
    async with nodes.node("w") as member:
        working = Worker(member.node, member.tracker, member.presence, token="token", at_once=3)
        async with working.running():
            for model in "abcd":
                await member.tracker.open("staging", model, "w", cause="test")
            await eventually(lambda: len(member.tracker.owned) == 3)
            limits = Limits(nodes={"w": NodeLimits(stagings_at_once=1)}, generation=1)
            await member.tracker.say(subjects.LIMITS, msgspec.json.encode(limits))
            await eventually(lambda: set(member.tracker.owned) == {"staging:a@w"})
            await member.tracker.say(subjects.LIMITS, msgspec.json.encode(Limits(generation=2)))
            await eventually(lambda: len(member.tracker.owned) == 3)


async def test_nodes_that_are_just_getting_a_model_are_asked_for_it_too(nodes: Nodes) -> None:
    async with nodes.node("a") as member, nodes.worker("b") as other, nodes.node("idle"):
        await member.tracker.open("staging", "owl", "idle", cause="test")
        await member.tracker.open("staging", "owl", "b", cause="test")

        def found(besides: str, model: str = "owl") -> list[str]:
            return [holder.name for holder in receivers(member.tracker, member.presence, besides, model)]

        # It waits for a holder: there is none.
        async with asyncio.timeout(60):
            await member.tracker.until(lambda: found("a") == ["b"])
        assert found("b") == []
        assert found("a", "another") == []
        (holder,) = receivers(member.tracker, member.presence, "a", "owl")
        assert (holder.url, holder.is_whole) == (member.tracker.fold.nodes["b"].files, False)
        assert other.node.bytes_sent == 0


async def test_workers_that_get_a_model_at_the_same_time_all_end_well(nodes: Nodes) -> None:
    async with (
        nodes.node("holder", OWL, kind="replica") as holder,
        nodes.worker("w1") as one, nodes.worker("w2") as two, nodes.worker("w3") as three,
    ):  # fmt: skip
        await holder.until_held("owl")
        ends = await asyncio.gather(*(staged(holder, "owl", name) for name in ("w1", "w2", "w3")))
        assert [end.state for end in ends] == ["succeeded"] * 3
        assert all(contents_of(member.models / "owl") == FILES for member in (one, two, three))


@pytest.mark.parametrize(("room", "is_late"), [(0, False), (1_300_000, False), (2_500_000, False), (2_600_000, True)])
async def test_after_a_full_disk_the_row_says_what_the_status_says(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch, room: int, is_late: bool
) -> None:
    files = {"a.bin": os.urandom(2_400_000), **{f"small/{number}": os.urandom(3000) for number in range(60)}}
    real, left = os.pwrite, room
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        nonlocal left
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if "files" not in path.parts:
            return real(descriptor, data, offset)
        if left <= 0:
            raise full
        count = real(descriptor, data[:left], offset)
        left -= count
        return count

    def sync(paths: Sequence[str], call: Callable[[int], None]) -> None:
        raise full

    async with (
        nodes.node("holder", {f"owl/{path}": content for path, content in files.items()}) as holder,
        nodes.worker("w") as member,
    ):
        await holder.until_held("owl")
        digest = holder.tracker.fold.holdings["holder", "owl"].digest
        with monkeypatch.context() as patched:
            patched.setattr(os, "pwrite", pwrite)
            if is_late:
                patched.setattr(part_files, "sync_files", sync)  # the disk notices only when it is to keep it
            end = await staged(holder, "owl", "w")
        assert (end.state, "0 bytes free" in end.error or "bytes free, but" in end.error) == ("failed", True)
        arrived = member.node.store.arrived("owl", digest)
        lies = sum(arrived[1].values()) if arrived else 0
        assert end.bytes_done == lies
        end = await staged(holder, "owl", "w")
        assert (end.state, contents_of(member.models / "owl")) == ("succeeded", files)
