from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from stagecast import operations
from stagecast.duty import Duty
from stagecast.holders import holders
from stagecast.manifest import Manifest
from stagecast.messages import Record
from stagecast.reservation import Reservation
from stagecast.store import Store
from stagecast.verifier import Verifier
from tests.nodes import Member, Nodes
from tests.sample import contents_of, fill, manifest_of

FILES = {"a.bin": bytes(range(256)) * 20, "sub/b.bin": b"b" * 1000}
MANIFEST = manifest_of("owl", FILES, piece_size=1024)


@pytest.fixture
def nodes(tmp_path: Path) -> Nodes:
    return Nodes(tmp_path)


def stage_to(nodes: Nodes, *names: str) -> None:
    for name in names:
        with Store(nodes.folder / name / "models", nodes.folder / name).partial(MANIFEST) as partial:
            fill(partial, FILES)
            partial.publish()


def damage(member: Member, path: str, at: int) -> None:
    with (member.models / "owl" / path).open("r+b") as file:
        file.seek(at)
        file.write(b"\xff\x00\xff")


async def verified(member: Member, node: str, **parameters: str) -> Record:
    """Queue a verification and return its end."""
    record, _ = await member.tracker.open(
        "staging", "owl", node, cause="test", parameters={operations.VERIFY: "all", **parameters}
    )

    def ended() -> bool:
        held = member.tracker.fold.record(record.id)
        return held is not None and held.job == record.job and operations.is_ended(held)

    async with asyncio.timeout(60):
        await member.tracker.until(ended)
    found = member.tracker.fold.record(record.id)
    assert found is not None
    return found


@pytest.fixture
async def pair(nodes: Nodes) -> AsyncIterator[tuple[Member, Member]]:
    stage_to(nodes, "holder", "w")
    async with nodes.node("holder", kind="replica") as holder, nodes.worker("w") as member:
        await holder.until_held("owl")
        await member.until_held("owl")
        yield holder, member


async def test_a_good_copy_is_read_and_nothing_moves(pair: tuple[Member, Member]) -> None:
    holder, _ = pair
    end = await verified(holder, "w")
    assert (end.state, end.bytes_done, end.bytes_present, end.note) == (
        "succeeded", MANIFEST.size, MANIFEST.size, "undamaged",
    )  # fmt: skip
    assert holder.node.bytes_sent == 0


async def test_only_the_bad_pieces_move_and_it_is_said_which(pair: tuple[Member, Member]) -> None:
    holder, member = pair
    damage(member, "a.bin", 1500)
    damage(member, "sub/b.bin", 3)
    end = await verified(holder, "w")
    assert (end.state, end.error) == ("succeeded", "")
    assert end.note == "2 pieces repaired (2.0 kB) in a.bin, sub/b.bin"
    assert holder.node.bytes_sent == 1024 + 1000
    assert (end.bytes_done, end.bytes_present) == (MANIFEST.size, MANIFEST.size - 2024)
    assert contents_of(member.models / "owl") == FILES
    assert holder.tracker.fold.holdings["w", "owl"].digest == MANIFEST.digest


async def test_what_of_a_repair_has_landed_is_not_promised_any_more(
    pair: tuple[Member, Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    holder, member = pair
    left: list[int] = []
    landed = Reservation.landed

    def look(reservation: Reservation, count: int) -> None:
        landed(reservation, count)
        left.append(sum(promise.left for promise in member.node.store.promises()))

    monkeypatch.setattr(Reservation, "landed", look)
    damage(member, "a.bin", 1500)
    assert (await verified(holder, "w")).state == "succeeded"
    assert max(left) < len(FILES["a.bin"]), "the file that is put together beside the damaged one"
    assert left[-1] == 0
    assert member.node.store.promises() == []


async def test_also_where_the_damage_was_read_in_as_another_revision(pair: tuple[Member, Member]) -> None:
    holder, member = pair
    damage(member, "a.bin", 0)
    await member.node.adopt()
    await member.tracker.until(lambda: member.tracker.fold.holdings["w", "owl"].digest != MANIFEST.digest)
    assert (await verified(holder, "w")).note == "1 piece repaired (1.0 kB) in a.bin"
    assert contents_of(member.models / "owl") == FILES


async def test_a_replica_verifies_what_it_has_but_is_staged_nothing(pair: tuple[Member, Member]) -> None:
    holder, member = pair

    def others(model: str, digest: str) -> list[object]:
        return holders(holder.tracker, holder.presence, "holder", model, digest)  # type: ignore[return-value]

    verifier = Verifier(holder.node, others, token="token")  # type: ignore[arg-type]
    damage(holder, "a.bin", 2000)
    async with Duty(holder.tracker, "staging", verifier.perform, node="holder").running():
        assert (await verified(member, "holder")).note == "1 piece repaired (1.0 kB) in a.bin"
        record, _ = await member.tracker.open("staging", "owl", "holder", cause="test")
        await member.tracker.until(
            lambda: (held := member.tracker.fold.record(record.id)) is not None and held.state == "failed"
        )
    assert contents_of(holder.models / "owl") == FILES


async def test_without_another_holder_it_fails_and_the_copy_counts_as_good_for_nobody(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stagecast.verifier.pull", impatient)
    stage_to(nodes, "w")
    async with nodes.worker("w") as member:
        await member.until_held("owl")
        damage(member, "a.bin", 0)
        end = await verified(member, "w")
        assert end.state == "failed"
        assert end.error.startswith("1,024 bytes of owl are missing")
        assert member.node.store.manifest_by_digest(MANIFEST.digest) is None
        assert member.node.store.expected("owl") == MANIFEST


def impatient(manifest: Manifest, *arguments: object, **options: object) -> object:
    from stagecast.transfer import pull

    return pull(manifest, *arguments, **options, patience=0.1)  # type: ignore[arg-type]


async def test_what_is_not_here_cannot_be_verified(nodes: Nodes) -> None:
    async with nodes.worker("w") as member:
        end = await verified(member, "w")
        assert (end.state, end.error) == ("failed", "no model 'owl' is known")
