"""One process that takes part in the log: what it knows, and what it leaves to those who judge."""

from __future__ import annotations

import msgspec
import pytest

from stagecast import rows, subjects
from stagecast.bus.memory import MemoryBus
from stagecast.errors import NameTaken, Unknown
from stagecast.messages import Beat, GalleryEvent, GalleryStatus, NodeRecord
from stagecast.operations import commanded
from stagecast.participant import participating
from tests.conftest import eventually


async def test_it_knows_the_kinds_that_are_ours_and_those_that_it_saw() -> None:
    async with participating(MemoryBus(), "one", judges=True) as one:
        assert [one.knows(kind) for kind in ("staging", "deletion", "render")] == [True, True, False]
        record, at = await one.tracker.open("render", "film", cause="test")
        await one.tracker.reached(at)
        assert one.knows("render")
        await one.tracker.write(commanded(record, "cancel", 1.0), at.sequence)
        await eventually(lambda: one.history.find(record.job))
        one.fold.slots.clear()
        assert one.knows("render"), "the history has it still"
        assert not one.knows("crunch")


async def test_it_knows_the_kinds_that_are_performed_before_there_was_any_work() -> None:
    bus = MemoryBus()
    async with (
        participating(bus, "one", judges=True, performs=("render",)) as one,
        participating(bus, "two", judges=True) as two,
    ):
        assert one.knows("render")
        await eventually(lambda: two.knows("render"))
        assert not one.knows("crunch")
        assert not two.knows("crunch")


async def test_a_row_is_found_by_id_and_job_also_of_what_ended_and_of_what_is_foreign() -> None:
    async with participating(MemoryBus(), "one", judges=True) as one:
        record, at = await one.tracker.open("render", "film", cause="test")
        await one.tracker.reached(at)
        assert one.row(record.id) == one.row(record.job)
        event = GalleryEvent(job_id="j", status=GalleryStatus(gallery_element_name="ufo"))
        await one.tracker.reached(await one.tracker.say("gallery.j.progress", msgspec.json.encode(event)))
        assert one.row("j").id == "installation:ufo"
        with pytest.raises(Unknown):
            one.row("nothing")


async def test_where_ours_has_ended_an_id_means_the_foreign_operation_that_is_listed() -> None:
    async with participating(MemoryBus(), "one", judges=True) as one:
        record, _ = await one.tracker.open("installation", "ufo", cause="test")
        event = GalleryEvent(job_id="j", status=GalleryStatus(gallery_element_name="ufo"))

        async def foreign(**changes: object) -> None:
            status = msgspec.structs.replace(event.status, **changes)
            said = msgspec.json.encode(msgspec.structs.replace(event, status=status))
            await one.tracker.reached(await one.tracker.say("gallery.j.progress", said))

        await foreign()
        assert one.row(record.id).job_id == record.job, "ours is the truth while it goes on"
        await one.commands.give(record.id, "cancel")
        await foreign()
        assert [row.job_id for row in rows.listed(one.fold)] == ["j"]
        assert one.row(record.id).job_id == "j"
        assert one.row(record.job).state == "cancelled"
        await foreign(processed=True)
        assert one.row(record.id).job_id == record.job, "of two that have ended ours is the one that is known"


async def test_who_does_not_judge_keeps_no_history() -> None:
    async with participating(MemoryBus(), "one", judges=False) as one:
        assert not one.history.caught_up.is_set()
        assert not one.tracker.is_degraded


async def test_its_lease_says_what_it_performs() -> None:
    bus = MemoryBus()
    beats: list[Beat] = []
    await bus.subscribe(subjects.BEAT, lambda _, payload: beats.append(msgspec.json.decode(payload, type=Beat)))
    async with participating(bus, "one", judges=True, performs=("render",)) as one:
        assert beats[0] == Beat(process=one.tracker.process, performs=("render",))
    assert beats[-1].leaving


async def test_the_name_of_a_living_node_is_taken() -> None:
    bus = MemoryBus()
    async with participating(bus, "one", judges=True) as one:
        said = NodeRecord(name="one", kind="worker", process=one.tracker.process)
        await one.tracker.say(subjects.node("one"), msgspec.json.encode(said))
        with pytest.raises(NameTaken):
            async with participating(bus, "one", judges=True):
                pass
