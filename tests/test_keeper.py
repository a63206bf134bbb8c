"""What goes from a disk, when and why, and what never does."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from stagecast import eviction, keeper, room, subjects
from stagecast.disk import Space
from stagecast.draft import Draft, drafts
from stagecast.errors import Unknown
from stagecast.eviction import GC, LEFTOVERS, Budget
from stagecast.keeper import Keeper
from stagecast.manifest import PIECE_SIZE
from stagecast.messages import Instance, Placement, Record
from stagecast.publication import WORKSHOP
from tests.conftest import eventually
from tests.nodes import Member, Nodes
from tests.test_worker import ended, staged

SIZE = 3000
ZOO = {f"{name}/a.bin": name.encode() * 1000 for name in ("ant", "bee", "cat")}


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nodes:
    monkeypatch.setattr(eviction, "JUST_USED", 0.0)
    monkeypatch.setattr(keeper, "INTERVAL", 0.01)
    monkeypatch.setattr(room, "POLL", 0.01)
    return Nodes(tmp_path)


@asynccontextmanager
async def kept(member: Member, budget: Budget | None = None, token: str = "") -> AsyncGenerator[Keeper, None]:
    async with Keeper(member.node, member.tracker, member.presence, budget or Budget(), token).running() as keeping:
        yield keeping


def used_in_order(member: Member, *models: str) -> None:
    """Let the models have been used one after the other."""
    for number, model in enumerate(models, 1):
        member.node.store.marks.use(model)
        os.utime(member.models / WORKSHOP / f"used-{model}", (0, time.time() + 1000 * number))


async def reasons(keeping: Keeper) -> dict[str, str]:
    return {copy.model: copy.keep for copy in (await keeping.inventory()).copies}


def leave_partial(member: Member, holder: Member, model: str) -> int:
    """Leave a part of a model behind, as work does that nobody goes on with; return its bytes."""
    manifest = holder.node.store.recorded(model)
    assert manifest is not None
    with member.node.store.partial(manifest) as partial:
        partial.write(partial.missing()[0], 0, b"x" * 2000)
    return 2000


async def gone(member: Member, models: Sequence[str]) -> None:
    await eventually(lambda: all(member.held.get(model) == "gone" for model in models))


async def test_what_may_go_and_why_the_rest_may_not(nodes: Nodes) -> None:
    async with nodes.node("other", {"ant/a.bin": ZOO["ant/a.bin"]}) as other, nodes.node("w", ZOO) as member:
        await member.until_held("ant", "bee", "cat")
        await other.until_held("ant")
        async with kept(other), kept(member) as keeping:
            await eventually(lambda: member.tracker.fold.nodes["other"].volume)
            assert await reasons(keeping) == {"ant": "", "bee": "the last copy", "cat": "the last copy"}
            member.node.store.marks.pin("ant")
            assert (await reasons(keeping))["ant"] == "pinned"
            member.node.store.marks.unpin("ant")
            await member.tracker.say(
                subjects.placement("ant"), msgspec.json.encode(Placement(model="ant", nodes=("w",)))
            )
            await eventually(lambda: "ant" in member.tracker.fold.placements)
            assert (await reasons(keeping))["ant"] == "loaded", "it is about to be"


async def test_a_disk_within_its_budget_stays_so_and_the_longest_unused_go_first(nodes: Nodes) -> None:
    async with nodes.node("other", ZOO) as other, nodes.node("w", ZOO) as member:
        await other.until_held("ant", "bee", "cat")
        await member.until_held("ant", "bee", "cat")
        used_in_order(member, "cat", "ant", "bee")
        async with kept(other), kept(member, Budget(limit=2 * SIZE)):
            await gone(member, ["cat"])
            record = member.tracker.fold.record("deletion:cat@w")
            assert record is not None
            await ended(member, record)
            assert sorted(member.node.store.names()) == ["ant", "bee"]
            assert record.cause == GC
        async with kept(other), kept(member, Budget(limit=1)):
            await gone(member, ["ant", "bee"])
        assert other.node.store.names() == ["ant", "bee", "cat"], "who was given no budget evicts nothing"


async def test_a_file_that_two_models_have_counts_once(nodes: Nodes) -> None:
    async with nodes.node("other", ZOO) as other, nodes.node("w", ZOO) as member:
        (member.models / "cat" / "a.bin").unlink()
        os.link(member.models / "ant" / "a.bin", member.models / "cat" / "a.bin")
        await member.node.adopt()
        await other.until_held("ant", "bee", "cat")
        await member.until_held("ant", "bee", "cat")
        used_in_order(member, "cat", "bee", "ant")
        async with kept(other), kept(member, Budget(limit=2 * SIZE)) as keeping:
            seen = await keeping.inventory()
            assert {copy.model: copy.bytes for copy in seen.copies} == {"ant": SIZE, "bee": SIZE, "cat": 0}
            assert seen.excess == 0, "nothing goes for bytes that lie there once"
            member.node.store.marks.pin("cat")
            # The file goes with the last of the two, and that is the one that stays.
            counts = {copy.model: copy.bytes for copy in (await keeping.inventory()).copies}
            assert counts == {"ant": 0, "bee": SIZE, "cat": SIZE}


async def test_a_loaded_a_pinned_and_the_last_copy_are_never_evicted(nodes: Nodes) -> None:
    there = {path: content for path, content in ZOO.items() if not path.startswith("cat")}
    zoo = ZOO | {"dog/a.bin": b"d" * SIZE}
    async with nodes.node("other", there | {"dog/a.bin": b"d" * SIZE}) as other, nodes.node("w", zoo) as member:
        await other.until_held("ant", "bee", "dog")
        await member.until_held("ant", "bee", "cat", "dog")
        runs = Instance(node="w", model="ant", process=member.tracker.process, instance="1", state="ready")
        await member.tracker.say(subjects.instance("w", "ant"), msgspec.json.encode(runs))
        member.node.store.marks.pin("bee")
        await eventually(lambda: ("w", "ant") in member.tracker.fold.instances)
        async with kept(other), kept(member, Budget(limit=1)) as keeping:
            await gone(member, ["dog"])
            assert await reasons(keeping) == {"ant": "loaded", "bee": "pinned", "cat": "the last copy"}
            assert (await keeping.inventory()).excess == 3 * SIZE - 1
        assert sorted(member.node.store.names()) == ["ant", "bee", "cat"]


async def test_two_nodes_that_are_both_over_their_budget_never_evict_both_copies(nodes: Nodes) -> None:
    async with nodes.node("one", ZOO) as one, nodes.node("two", ZOO) as two:
        for member in (one, two):
            await member.until_held("ant", "bee", "cat")
        async with kept(one, Budget(limit=1)), kept(two, Budget(limit=1)):
            for member in (one, two):
                for model in ("ant", "bee", "cat"):
                    record, _ = await member.tracker.open("deletion", model, member.node.name, cause=GC)
                    await ended(member, record)
            await eventually(lambda: len(one.node.store.names()) + len(two.node.store.names()) == 3)
        assert sorted({*one.node.store.names(), *two.node.store.names()}) == ["ant", "bee", "cat"]


async def test_what_is_wanted_by_the_time_its_turn_comes_stays(nodes: Nodes) -> None:
    async with nodes.node("other", ZOO) as other, nodes.node("w", ZOO) as member:
        await other.until_held("ant", "bee", "cat")
        await member.until_held("ant", "bee", "cat")
        async with kept(other), kept(member):
            member.node.store.marks.pin("ant")
            record, _ = await member.tracker.open("deletion", "ant", "w", cause=GC)
            end = await ended(member, record)
            assert (end.state, end.bytes_done, end.note) == ("succeeded", 0, "kept: pinned")
            assert (member.models / "ant").exists()
            asked, _ = await member.tracker.open("deletion", "ant", "w", cause="api")
            assert (await ended(member, asked)).bytes_done == SIZE, "who names it means it"
            assert member.node.store.marks.pinned() == []


async def test_nodes_with_one_folder_have_one_copy(nodes: Nodes, tmp_path: Path) -> None:
    async with nodes.node("one", ZOO) as one:
        await one.until_held("ant", "bee", "cat")
        (tmp_path / "two").mkdir()
        (tmp_path / "two" / "models").symlink_to(tmp_path / "one" / "models")
        async with nodes.node("two") as two:
            await two.until_held("ant", "bee", "cat")
            async with kept(one) as keeping, kept(two):
                await eventually(lambda: one.tracker.fold.nodes["two"].volume)
                assert set((await reasons(keeping)).values()) == {"the last copy"}


async def test_a_staging_that_finds_no_room_gets_it_where_a_budget_allows(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes.node("holder", ZOO) as holder, nodes.worker("w") as member:
        await holder.until_held("ant", "bee", "cat")
        store = member.node.store

        def space() -> Space:
            return Space(2 * SIZE + 500 - SIZE * len(store.names()), 3 * SIZE)

        monkeypatch.setattr(store._disk, "space", space)
        async with kept(holder):
            async with kept(member):
                for model in ("ant", "bee"):
                    assert (await staged(holder, model, "w")).state == "succeeded"
                used_in_order(member, "bee", "ant")
                end = await staged(holder, "cat", "w")
                assert (end.state, "3,000 more are needed" in end.error) == ("failed", True), "nobody allowed it"
            async with kept(member, Budget(keep_free=1)):
                assert (await staged(holder, "cat", "w")).state == "succeeded"
                assert sorted(store.names()) == ["ant", "cat"]


async def test_an_orphaned_partial_is_told_and_cleaned_and_a_wanted_one_is_not(nodes: Nodes) -> None:
    async with nodes.node("holder", ZOO) as holder, nodes.node("w") as member:
        await holder.until_held("ant", "bee", "cat")
        for model in ("ant", "bee"):
            leave_partial(member, holder, model)
        paused, _ = await member.tracker.open("staging", "bee", "w", cause="test")
        await eventually(lambda: member.tracker.fold.record(paused.id) is not None)
        async with kept(member) as keeping:
            seen = await keeping.inventory()
            assert {left.model: left.keep for left in seen.leftovers} == {"ant": "", "bee": "its staging is queued"}
            orphaned = next(left.bytes for left in seen.leftovers if not left.keep)
            assert orphaned >= 2000
            await eventually(lambda: member.tracker.fold.nodes["w"].disk_orphaned == orphaned)
            record, _ = await member.tracker.open("deletion", LEFTOVERS, "w", cause=GC)
            assert (await ended(member, record)).bytes_done == orphaned
            assert [partial.name for partial in member.node.store.partials()] == ["bee"]
            await eventually(lambda: member.tracker.fold.nodes["w"].disk_orphaned == 0)


async def test_a_draft_whose_installation_another_replica_ended_is_nobody_s(nodes: Nodes) -> None:
    async with nodes.node("one", kind="replica") as one, nodes.node("two", kind="replica") as two:
        with Draft(one.models, "owl") as draft, draft.file("a", "http://nowhere/a") as file:
            draft.save()
            file.write(b"x" * PIECE_SIZE)
        async with kept(one) as keeping:
            record, _ = await two.tracker.open("installation", "owl", cause="test", claim=True)
            await eventually(lambda: one.tracker.fold.record(record.id) is not None)
            [left] = (await keeping.inventory()).leftovers
            assert (left.kind, left.model, left.keep) == ("draft", "owl", "its installation is running")
            async with two.tracker.own(record) as ownership:
                assert ownership is not None
            await eventually(lambda: one.tracker.fold.nodes["one"].disk_orphaned >= PIECE_SIZE)
            cleaning, _ = await two.tracker.open("deletion", LEFTOVERS, "one", cause=GC)
            assert (await ended(one, cleaning)).bytes_done >= PIECE_SIZE
            assert drafts(one.models) == []


async def test_what_cannot_be_deleted_is_not_tried_again_and_again(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []
    async with nodes.node("other", ZOO) as other, nodes.node("w", ZOO) as member:
        await other.until_held("ant", "bee", "cat")
        await member.until_held("ant", "bee", "cat")

        def refuse(model: str) -> int:
            tried.append(model)
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(member.node.store, "remove", refuse)
        async with kept(other), kept(member, Budget(limit=1)) as keeping:
            await eventually(lambda: len(tried) == 3)
            for _ in range(3):
                assert not await keeping._make_room(0)
        assert sorted(tried) == ["ant", "bee", "cat"]
        assert member.tracker.fold.record("deletion:ant@w").state == "failed"  # type: ignore[union-attr]


async def test_orphans_go_by_themselves_only_with_a_budget_and_when_they_are_old(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes.node("holder", ZOO) as holder, nodes.node("w") as member:
        await holder.until_held("ant", "bee", "cat")
        leave_partial(member, holder, "ant")
        looked: list[Record] = []
        async with kept(member, Budget(keep_free=1)) as keeping:
            await eventually(lambda: member.tracker.fold.nodes["w"].disk_orphaned)
            assert not await keeping._make_room(0), "it is too young: should the log be lost, whose it is is told again"
            monkeypatch.setattr(keeper, "ABANDONED", -60.0)
            member.tracker.hearers.append(looked.append)
            await eventually(lambda: member.node.store.partials() == [])
        assert {record.id for record in looked} == {f"deletion:{LEFTOVERS}@w"}


async def test_pins_are_asked_for_and_shown(nodes: Nodes) -> None:
    def named(model: str) -> msgspec.Raw:
        return msgspec.Raw(msgspec.json.encode(keeper.Named(model)))

    async with nodes.node("w", ZOO) as member:
        await member.until_held("ant", "bee", "cat")
        async with kept(member) as keeping:
            assert await keeping.questions["pin"](named("bee")) == ["bee"]
            await eventually(lambda: member.tracker.fold.nodes["w"].pinned == ("bee",))
            with pytest.raises(Unknown, match="no model 'nobody' is known"):
                await keeping.questions["pin"](named("nobody"))
            assert await keeping.questions["unpin"](named("bee")) == []
            await eventually(lambda: member.tracker.fold.nodes["w"].pinned == ())


async def test_a_file_that_is_served_and_a_model_that_is_loaded_count_as_used(nodes: Nodes) -> None:
    async with nodes.node("holder", ZOO) as holder, nodes.worker("w"):
        await holder.until_held("ant", "bee", "cat")
        assert not (holder.models / WORKSHOP / "used-ant").exists()
        await staged(holder, "ant", "w")
        assert (holder.models / WORKSHOP / "used-ant").exists()
        assert not (holder.models / WORKSHOP / "used-bee").exists()
