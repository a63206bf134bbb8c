"""Two stagings that each fit, but not both; and what becomes of one whose holder of room is gone."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from stagecast import room
from stagecast.commands import Commands
from stagecast.disk import Space
from stagecast.messages import Record
from tests.conftest import eventually
from tests.nodes import Member, Nodes
from tests.test_worker import ended, staged

OWL = {"owl/a.bin": b"a" * 5000}


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nodes:
    monkeypatch.setattr(room, "POLL", 0.01)
    return Nodes(tmp_path)


def with_room(member: Member, monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(member.node.store._disk, "space", lambda: Space(free, 100_000))


def note_of(member: Member, record: Record) -> str:
    found = member.tracker.fold.record(record.id)
    return found.note if found else ""


async def test_room_that_is_promised_already_is_refused_with_both_numbers(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes.node("holder", OWL) as holder, nodes.worker("w") as member:
        await holder.until_held("owl")
        with_room(member, monkeypatch, 8000)
        with member.node.store.reserve(4000, 0, "staging:other@w"):
            end = await staged(holder, "owl", "w")
        assert (end.state, end.bytes_done) == ("failed", 0)
        assert "has 8,000 bytes free, of which 4,000 are promised to other transfers, but 5,000 more" in end.error


async def test_who_waits_begins_once_the_room_is_there(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    async with nodes.node("holder", OWL) as holder, nodes.worker("w") as member:
        await holder.until_held("owl")
        with_room(member, monkeypatch, 8000)
        with member.node.store.reserve(4000, 0, "staging:other@w"):
            record, _ = await holder.tracker.open(
                "staging", "owl", "w", cause="test", parameters={"wait_for_space": "yes"}
            )
            await eventually(lambda: "waiting for room" in note_of(holder, record))
            said = member.tracker.owned[record.id]._waits
            assert said is not None
            assert said.on == "room"
            assert said.then == (
                "it begins once 5,000 bytes are free and promised to nobody; 8,000 are free, 4,000 of them promised"
            )
        assert (await ended(holder, record)).state == "succeeded"


async def test_a_wait_for_room_can_be_cancelled_and_leaves_nothing(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes.node("holder", OWL) as holder, nodes.worker("w") as member:
        await holder.until_held("owl")
        with_room(member, monkeypatch, 10)
        record, _ = await holder.tracker.open("staging", "owl", "w", cause="test", parameters={"wait_for_space": "yes"})
        await eventually(lambda: "waiting for room" in note_of(holder, record))
        async with Commands(member.tracker).running() as commands:
            cancelled, _ = await commands.give(record.id, "cancel")
        assert (cancelled.state, member.node.store.partials()) == ("cancelled", [])
        assert member.node.store.promises() == []


async def test_nobody_waits_for_room_that_the_disk_never_had(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    async with nodes.node("holder", OWL) as holder, nodes.worker("w") as member:
        await holder.until_held("owl")
        monkeypatch.setattr(member.node.store._disk, "space", lambda: Space(10, 4999))
        end = await staged(holder, "owl", "w", wait_for_space="yes")
        assert (end.state, "5,000 more are needed" in end.error) == ("failed", True)


async def test_the_plan_is_the_first_word_of_a_staging(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    words: list[Record] = []
    async with nodes.node("holder", OWL) as holder, nodes.worker("w") as member:
        await holder.until_held("owl")
        with_room(member, monkeypatch, 8000)
        holder.tracker.hearers.append(words.append)
        await staged(holder, "owl", "w")
        await asyncio.to_thread(member.node.store.remove, "owl")
        await staged(holder, "owl", "w")
    plans = [word for word in words if word.phase == "planning" and "to move" in word.note]
    assert [(plan.bytes_total, plan.bytes_done, plan.total_files) for plan in plans] == [(5000, 0, 1)] * 2
    assert plans[0].note == "5.0 kB to move from holder; 8.0 kB free"
    assert plans[1].note.startswith("5.0 kB to move from holder; 8.0 kB free, about "), "one was measured by now"


async def test_what_has_arrived_is_not_promised_any_more(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    async with nodes.node("holder", OWL) as holder, nodes.worker("w") as member:
        await holder.until_held("owl")
        landed = room.Reservation.landed

        def look(reservation: room.Reservation, count: int) -> None:
            landed(reservation, count)
            left.append(sum(promise.left for promise in member.node.store.promises()))

        monkeypatch.setattr(room.Reservation, "landed", look)
        assert (await staged(holder, "owl", "w")).state == "succeeded"
        assert left[-1] == 0
        assert member.node.store.promises() == []
