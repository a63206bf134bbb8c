from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, nullcontext
from itertools import zip_longest

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagecast import broadcast, operations, rows, subjects
from stagecast.bus.memory import MemoryBus
from stagecast.fold import Fold
from stagecast.messages import Entry, Horizon
from stagecast.revision import Revision
from stagecast.view import OperationList, View
from tests.alone import find_again, lose
from tests.conftest import eventually
from tests.peers import Peers, a_record, agree
from tests.test_fold import SCRIPTS, Scene


class Stand:
    """Where a replica stands: all of a tracker that a view looks at."""

    def __init__(self, fold: Fold) -> None:
        self.fold = fold
        self.is_degraded = False

    @property
    def revision(self) -> Revision:
        return self.fold.revision


@settings(max_examples=300)
@given(SCRIPTS, st.lists(st.sampled_from(["", "look", "degraded", "another"]), max_size=25))
def test_what_is_kept_encoded_is_what_encoding_anew_gives(script: list[tuple[str, str, int]], does: list[str]) -> None:
    scene = Scene()
    stand = Stand(scene.full)
    view = View(stand)  # type: ignore[arg-type]
    for step, do in zip_longest(script, does):
        if step is not None:
            scene.act(*step)
        if do == "degraded":
            stand.is_degraded = not stand.is_degraded
        elif do == "another":
            # The log came back as another one: a late reader's picture of it, under another identity.
            scene.full = scene.late()
            scene.full.revision = scene.full.revision._replace(identity=f"{scene.full.revision.identity}x")
            stand.fold = scene.full
        if do:
            fold = stand.fold
            listed = OperationList(
                operations=rows.listed(fold), revision=str(fold.revision), degraded=stand.is_degraded
            )
            assert view.body == msgspec.json.encode(listed) + b"\n"
        for after in range(fold.revision.sequence + 1) if do == "look" else ():
            told = [(at, msgspec.json.encode(row)) for at, row in rows.changed(fold, after)]
            assert view.changed(after) == told


@pytest.fixture
def bus() -> MemoryBus:
    return MemoryBus()


@pytest.fixture
async def peers(bus: MemoryBus) -> AsyncIterator[Peers]:
    async with AsyncExitStack() as stack:
        yield Peers(stack, lambda _: nullcontext(bus))


async def test_two_replicas_at_one_revision_give_the_same_bytes_and_tag(peers: Peers) -> None:
    one, two = await peers.tracker("one"), await peers.tracker("two")
    views = [View(one), View(two)]
    for number in range(5):
        await one.reached(await one.write(a_record(node=f"n{number}", bytes_done=number, bytes_total=9), 0))
    await agree(one, two)
    assert views[0].body == views[1].body
    assert views[0].etag == views[1].etag == f'"{one.revision}"'
    said = json.loads(views[0].body)
    assert (len(said["operations"]), said["revision"], said["degraded"]) == (5, str(one.revision), False)


async def test_it_is_encoded_once_per_revision(peers: Peers) -> None:
    tracker = await peers.tracker("one")
    view = View(tracker)
    before = view.body
    assert view.body is before
    await tracker.reached(await tracker.write(a_record(), 0))
    after = view.body
    assert after != before
    assert view.body is after


async def test_a_log_that_cannot_be_heard_shows_in_body_and_tag(peers: Peers, bus: MemoryBus) -> None:
    tracker = await peers.tracker("one")
    view = View(tracker)
    etag, body = view.etag, view.body
    lose(bus)
    await eventually(lambda: tracker.is_degraded)
    assert view.etag == f'"{tracker.revision}-degraded"'
    assert json.loads(view.body)["degraded"] is True
    find_again(bus)
    await eventually(lambda: not tracker.is_degraded)
    assert (view.etag, view.body) == (etag, body)


async def test_of_the_parts_of_a_call_that_have_ended_it_keeps_nothing(peers: Peers) -> None:
    tracker = await peers.tracker("one")
    view = View(tracker)
    for node in ("n1", "n2", "n3"):
        await tracker.reached(await tracker.write(a_record(id=f"staging:m@{node}", node=node, call="c"), 0))
    assert len(json.loads(view.body)["operations"]) == len(view._bases) == 3
    for node in ("n1", "n2"):
        slot = tracker.fold.slots[f"staging:m@{node}"]
        end = operations.ended(slot.record, "succeeded", 1.7e9)
        await tracker.reached(await tracker.write(end, slot.sequence))
    told = [json.loads(row) for _, row in view.changed(0)]
    assert [(row["state"], len(row["nodes"])) for row in told].count(("succeeded", 3)) == 2
    assert view._bases.keys() == {"staging:m@n3"}


def test_a_row_that_ended_and_was_forgotten_between_two_looks_is_shown_no_more() -> None:
    """As a replica that slept folds it: the end was taken out of the log before it heard that."""
    stand = Stand(Fold(Revision("s", 0)))
    view = View(stand)  # type: ignore[arg-type]
    for at, record in enumerate((a_record(model="gone"), a_record(model="stays")), 1):
        stand.fold.apply(Entry(subjects.operation(record), at, broadcast.encode(record), 1.0))
    assert len(json.loads(view.body)["operations"]) == 2
    horizon = msgspec.json.encode(Horizon(number=1, through=5, kept=(3,)))
    stand.fold.apply(Entry(subjects.HORIZON, 6, horizon, 1.0))
    listed = OperationList(operations=rows.listed(stand.fold), revision="s-6", degraded=False)
    assert view.body == msgspec.json.encode(listed) + b"\n"
    assert [row.id for row in listed.operations] == ["staging:stays@n"]
