from __future__ import annotations

import asyncio

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagecast.frontend.replica import newest_digest
from stagecast.messages import Holding, Placement
from stagecast.subjects import holding, placement
from tests.alone import Alone
from tests.conftest import eventually

HOLDINGS = st.lists(
    st.builds(
        Holding, node=st.sampled_from("abc"), model=st.just("m"), digest=st.sampled_from("xyz"),
        state=st.sampled_from(["held", "reading"]),
    )
)  # fmt: skip


@given(HOLDINGS, st.randoms(use_true_random=False))
def test_the_revision_that_most_hold_is_the_one_whatever_the_order(holdings: list[Holding], random: object) -> None:
    found = newest_digest(holdings)
    held = [each.digest for each in holdings if each.state == "held"]
    assert (found == "") == (held == [])
    assert all(held.count(found) >= held.count(other) for other in held)
    random.shuffle(holdings)  # type: ignore[attr-defined]
    assert newest_digest(holdings) == found


@pytest.mark.asyncio(loop_scope="module")
async def test_a_staging_asks_for_the_revision_that_most_hold(here: Alone) -> None:
    for name, digest in (("one", "old"), ("two", "new"), ("three", "new")):
        await here.worker(name)
        await here.say(holding(name, "m"), Holding(node=name, model="m", digest=digest, size=5, files=1))
    await here.worker("target")
    assert (await here.post("/api/models/m/stage", {"nodes": ["target"]})).status == 202
    record = here.peer.fold.record("staging:m@target")
    assert record is not None
    assert (record.parameters, record.bytes_total, record.cause) == ({"digest": "new"}, 5, "api")
    plan = (await here.post("/api/models/m/stage", {"nodes": ["one", "two"], "dry_run": True})).json["plan"]
    assert [(each["node"], each["present"]) for each in plan["nodes"]] == [("one", 0), ("two", 5)]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_deletion_that_hangs_says_where_and_takes_the_wish_back(
    here: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stagecast.frontend.replica.DELETION_TIMEOUT", 0.05)
    await here.worker("stuck")
    await here.say(holding("stuck", "heavy"), Holding(node="stuck", model="heavy", digest="d", size=5, files=1))
    await here.say(placement("heavy"), Placement(model="heavy", nodes=("other", "stuck"), generation=4))
    answer = await here.ask("DELETE", "/api/models/heavy")
    assert answer.error[:2] == (502, "transfer_failed")
    assert answer.error[2].startswith("stuck: not all deleted within 0 s; it goes on, see there")
    wish = here.peer.fold.placements["heavy"]
    assert (wish.nodes, wish.generation) == (("other",), 5)
    held = here.peer.fold.record("deletion:heavy@stuck")
    assert held is not None
    assert held.state == "queued", "the node may come to it later"


@pytest.mark.asyncio(loop_scope="module")
async def test_a_deletion_that_fails_says_where_and_why(here: Alone) -> None:
    await here.worker("locked")
    await here.say(holding("locked", "weighty"), Holding(node="locked", model="weighty", digest="d", size=5, files=1))
    asked = asyncio.create_task(here.ask("DELETE", "/api/models/weighty"))
    identifier = "deletion:weighty@locked"
    await eventually(lambda: here.peer.fold.record(identifier) is not None)
    held, sequence = await here.peer.standing(identifier, "deletion", "weighty", "locked")
    assert held is not None
    failed = msgspec.structs.replace(held, seq=held.seq + 1, state="failed", error="read-only disk")
    await here.peer.write(failed, sequence)
    said = "weighty could not be deleted everywhere: locked: read-only disk"
    assert (await asked).error == (502, "transfer_failed", said)
