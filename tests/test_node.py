from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from stagecast import subjects
from stagecast.messages import Holding, NodeRecord
from stagecast.pieces import pieces_of
from stagecast.transfer import Holder, fetch_manifest
from tests.conftest import eventually
from tests.nodes import Member, Nodes
from tests.sample import lay_out, manifest_of

CONTENTS = {"owl/a.bin": b"a" * 3000, "owl/b.json": b"{}", "single": b"weights"}


@pytest.fixture
def nodes(tmp_path: Path) -> Nodes:
    return Nodes(tmp_path)


def record_of(member: Member) -> NodeRecord:
    return member.tracker.fold.nodes[member.node.name]


def state_of(member: Member, operation: str) -> str:
    record = member.tracker.fold.record(operation)
    return record.state if record else ""


async def test_it_announces_itself_and_what_lies_there(nodes: Nodes) -> None:
    async with nodes.node("n", CONTENTS) as member:
        await member.until_held("owl", "single")
        said = record_of(member)
        assert (said.name, said.kind, said.process, said.left) == ("n", "worker", member.tracker.process, False)
        assert 0 < said.disk_free <= said.disk_total
        owl = member.tracker.fold.holdings["n", "owl"]
        assert (owl.size, owl.files, owl.state) == (3002, 2, "held")
        manifest = await asyncio.to_thread(fetch_manifest, Holder("n", said.files), owl.digest, "token")
        assert [file.path for file in manifest.files] == ["a.bin", "b.json"]


async def test_it_is_surveyed_once_every_model_is_known_if_only_as_one_being_read(nodes: Nodes) -> None:
    async with nodes.node("n", CONTENTS) as member:
        await member.node.surveyed.wait()
        assert member.held.keys() == {"owl", "single"}
        assert set(member.held.values()) <= {"reading", "held"}
        await member.until_held("owl", "single")


async def test_an_empty_folder_is_surveyed_too(nodes: Nodes) -> None:
    async with nodes.node("n") as member, asyncio.timeout(60):
        await member.node.surveyed.wait()
        assert member.held == {}


async def test_it_says_that_it_left(nodes: Nodes) -> None:
    async with nodes.node("n") as member:
        await member.node.surveyed.wait()
    entry = await nodes.bus.log.last(subjects.node("n"))
    assert entry is not None
    assert msgspec.json.decode(entry.payload, type=NodeRecord).left


async def test_a_drain_is_said_and_taken_back(nodes: Nodes) -> None:
    async with nodes.node("n") as member:
        for draining in (True, False):
            member.node.drain(draining)
            await member.node.settled()
            await eventually(lambda draining=draining: record_of(member).draining == draining)


async def test_what_an_earlier_process_announced_and_the_disk_has_no_more_is_taken_back(nodes: Nodes) -> None:
    async with nodes.node("n", CONTENTS) as member:
        await member.until_held("owl", "single")
    (nodes.folder / "n" / "models" / "single").unlink()
    async with nodes.node("n") as member:
        await member.until_held("owl")
        assert member.held["single"] == "gone"


async def test_a_look_at_the_folder_finds_what_is_new_changed_and_gone(nodes: Nodes) -> None:
    async with nodes.node("n", CONTENTS) as member:
        await member.until_held("owl", "single")
        before = member.tracker.fold.holdings["n", "owl"].digest
        (member.models / "single").unlink()
        lay_out(member.models, {"owl/a.bin": b"A" * 3001, "new": b"n"})
        await member.node.adopt()
        await member.node.settled()
        await member.until_held("owl", "new")
        assert member.tracker.fold.holdings["n", "owl"].digest != before


async def test_another_node_s_word_of_an_unknown_model_makes_it_look(nodes: Nodes) -> None:
    async with nodes.node("n", CONTENTS) as member:
        await member.until_held("owl", "single")
        lay_out(member.models, {"shared": b"installed by another replica on this folder"})
        said = Holding(node="other", model="shared", digest="d", size=1, files=1)
        await nodes.bus.log.append(subjects.holding("other", "shared"), msgspec.json.encode(said))
        await member.until_held("owl", "shared", "single")


async def test_what_cannot_be_read_in_is_taken_back_and_the_rest_is_held(
    nodes: Nodes, caplog: pytest.LogCaptureFixture
) -> None:
    lay_out(nodes.folder / "n" / "models", {"broken/a.bin": b"a"})
    (nodes.folder / "n" / "models" / "broken" / "dangling").symlink_to("nowhere")
    async with nodes.node("n", CONTENTS) as member:
        await eventually(lambda: member.held.get("owl") == member.held.get("single") == "held")
        await eventually(lambda: member.held["broken"] != "reading")
        if member.held["broken"] == "gone":
            assert "broken cannot be adopted" in caplog.text


async def test_a_copy_that_was_cut_off_is_told_once_and_held_when_it_is_whole(
    nodes: Nodes, caplog: pytest.LogCaptureFixture
) -> None:
    head = b'{"w":{"dtype":"U8","shape":[9],"data_offsets":[0,9]}}'
    whole = len(head).to_bytes(8, "little") + head + b"123456789"
    async with nodes.node("n", CONTENTS) as member:
        await member.until_held("owl", "single")
        lay_out(member.models, {"cut/w.safetensors": whole[:-3]})
        for _ in range(3):
            await member.node.adopt()
        await eventually(lambda: member.held.get("cut") == "gone")
        said = [record.getMessage() for record in caplog.records if "cut cannot be adopted" in record.getMessage()]
        assert len(said) == 1
        assert said[0].endswith("bytes that its own header tells of; copy it again, or delete it")
        lay_out(member.models, {"cut/w.safetensors": whole})
        await member.node.adopt()
        await member.until_held("owl", "single", "cut")


async def test_a_deletion_takes_the_files_and_tells_what_was_freed(nodes: Nodes) -> None:
    async with nodes.node("n", CONTENTS) as member:
        await member.until_held("owl", "single")
        record, _ = await member.tracker.open("deletion", "owl", "n", cause="test")
        await eventually(lambda: state_of(member, record.id) == "succeeded")
        ended = member.tracker.fold.record(record.id)
        assert ended is not None
        assert (ended.bytes_done, ended.bytes_total) == (3002, 3002)
        assert not (member.models / "owl").exists()
        assert (member.models / "single").exists()
        assert member.held == {"owl": "gone", "single": "held"}, "gone before the deletion ended"


async def test_a_deletion_frees_what_had_arrived_in_part_too(nodes: Nodes) -> None:
    async with nodes.node("n", CONTENTS) as member:
        await member.until_held("owl", "single")
        newer = manifest_of("owl", {"config.json": b"newer"})
        [piece] = pieces_of(newer)
        with member.node.store.partial(newer) as partial:
            partial.write(piece, 0, memoryview(b"new"))
        record, _ = await member.tracker.open("deletion", "owl", "n", cause="test")
        await eventually(lambda: state_of(member, record.id) == "succeeded")
        assert member.tracker.fold.record(record.id).bytes_done == 3002 + 3  # type: ignore[union-attr]
        assert member.node.store.partials() == []


async def test_deleting_what_is_not_there_frees_nothing_and_ends(nodes: Nodes) -> None:
    async with nodes.node("n") as member:
        record, _ = await member.tracker.open("deletion", "never", "n", cause="test")
        await eventually(lambda: state_of(member, record.id) == "succeeded")
        assert member.tracker.fold.record(record.id).bytes_done == 0  # type: ignore[union-attr]


async def test_a_deletion_elsewhere_is_left_alone(nodes: Nodes) -> None:
    async with nodes.node("n", CONTENTS) as member:
        await member.until_held("owl", "single")
        other, _ = await member.tracker.open("deletion", "owl", "other", cause="test")
        own, _ = await member.tracker.open("deletion", "single", "n", cause="test")
        await eventually(lambda: state_of(member, own.id) == "succeeded")
        assert state_of(member, other.id) == "queued"
        assert (member.models / "owl").exists()


async def test_a_disk_that_fails_is_looked_at_again(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    async with nodes.node("one") as here, nodes.node("two") as there:
        await here.node.surveyed.wait()
        names, failures = here.node.store.names, []

        def broken() -> list[str]:
            failures.append(1)
            raise OSError("gone")

        monkeypatch.setattr(here.node.store, "names", broken)
        lay_out(there.models, {"first/x": b"1"})
        await there.node.adopt()
        await eventually(lambda: failures)
        monkeypatch.setattr(here.node.store, "names", names)
        lay_out(here.models, {"mine/x": b"2"})
        lay_out(there.models, {"second/x": b"3"})
        await there.node.adopt()
        await eventually(lambda: here.held.get("mine") == "held")
