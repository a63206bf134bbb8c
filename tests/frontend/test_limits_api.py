from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from stagecast import broadcast, operations, revision, subjects
from stagecast.frontend import limits_api
from stagecast.messages import Limits
from tests.alone import Alone, alone

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def put(here: Alone, change: object) -> dict[str, object]:
    answer = await here.ask("PUT", "/api/limits", json=change)
    assert answer.status == 200, answer.body
    assert answer.json["revision"] == answer.headers["Stagecast-Revision"]
    return {key: value for key, value in answer.json.items() if key != "revision"}


async def test_nothing_is_limited_until_somebody_says_so(here: Alone) -> None:
    answer = await here.get("/api/limits")
    assert answer.json == {"rate": 0, "nodes": [], "generation": 0, "revision": answer.headers["Stagecast-Revision"]}


async def test_an_answer_says_where_the_change_stands_also_where_this_replica_has_yet_to_hear_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the next poll, on a replica that is behind as well, would show the limits before (law L5)."""
    monkeypatch.setattr(limits_api, "_SEEN_WITHIN", 0.01)
    async with alone(tmp_path) as deaf:
        await deaf.get("/api/limits")
        monkeypatch.setattr(deaf.bus.log, "_followers", set())
        changed = await deaf.ask("PUT", "/api/limits", json={"rate": 5})
        shown = await deaf.get("/api/limits")
    told, folded = (revision.parse(answer.headers["Stagecast-Revision"]) for answer in (changed, shown))
    assert told is not None
    assert folded is not None
    assert told.sequence > folded.sequence
    assert shown.json["rate"] == 0, "what a reader is shown is never dated later than it is"


async def test_what_is_named_changes_and_the_rest_stays(here: Alone) -> None:
    await here.worker("w")
    first = await put(here, {"rate": "20MB/s", "nodes": {"w": {"rate": 5_000_000}}})
    assert first["rate"] == 20_000_000
    assert first["nodes"] == [{"node": "w", "rate": 5_000_000}]
    second = await put(here, {"nodes": {"w": {"stagings_at_once": 2}}})
    assert second["nodes"] == [{"node": "w", "rate": 5_000_000, "stagings_at_once": 2}]
    assert second["generation"] == first["generation"] + 1  # type: ignore[operator]
    assert await put(here, {"nodes": {"w": {"stagings_at_once": 2}}}) == second, "said twice is said once"
    shown = (await here.get("/api/limits")).json["revision"]
    await here.peer.until(lambda: str(here.peer.revision) == shown, 5)
    assert here.peer.fold.limits.rate == 20_000_000, "any process knows it"
    last = await put(here, {"rate": 0, "nodes": {"w": {"rate": "0", "stagings_at_once": 0}}})
    assert (last["rate"], last["nodes"]) == (0, [])


async def test_who_moves_bytes_is_shown_with_its_share(here: Alone) -> None:
    for name in ("x", "y"):
        await here.worker(name)
    await put(here, {"rate": 1000, "nodes": {"x": {"rate": 100}}})
    moving = [await here.running("staging", "owl", name, phase="transferring", owner=f"{name}/1") for name in "xy"]
    shown = (await here.get("/api/limits")).json["nodes"]
    assert shown == [
        {"node": "x", "rate": 100, "moving": True, "share": 100}, {"node": "y", "moving": True, "share": 900},
    ]  # fmt: skip
    for operation in moving:
        held = here.peer.fold.record(operation)
        assert held is not None
        await here.say(subjects.operation(held), broadcast.event(operations.ended(held, "succeeded", 9.0)))
    await put(here, {"rate": 0, "nodes": {"x": {"rate": 0}}})


async def test_two_changes_at_once_are_both_made(here: Alone) -> None:
    for name in ("p", "q"):
        await here.worker(name)
    await asyncio.gather(*(put(here, {"nodes": {name: {"rate": 7}}}) for name in ("p", "q")))
    assert [each["node"] for each in (await here.get("/api/limits")).json["nodes"]] == ["p", "q"]
    await put(here, {"nodes": {"p": {"rate": 0}, "q": {"rate": 0}}})
    entry = await here.bus.log.last(subjects.LIMITS)
    assert entry is not None
    assert msgspec.json.decode(entry.payload, type=Limits).nodes == {}


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"rate": "fast"}, 400, "fast"),
        ({"rate": -1}, 400, "a limit is -1; it cannot be negative, and 0 takes it away"),
        ({"nodes": {"here": {"stagings_at_once": -2}}}, 400, "a limit is -2"),
        ({"rate": "1" + "0" * 30 + "GB"}, 400, "is more than anything holds or moves"),
        ({"rate": 10**15 + 1}, 400, "a limit is too high; it can be 1,000,000,000,000,000 at most, and 0"),
        ({"rate": 10**400}, 400, "it can be 1,000,000,000,000,000 at most"),
        ({"nodes": {"here": {"rate": "nan"}}}, 400, "'nan' is not a size or rate"),
        ({"nodes": {"here": {"stagings_at_once": 10**9}}}, 400, "it can be 10,000 at most"),
        ({"nodes": {"nobody": {"rate": 1}}}, 404, "no node 'nobody' is known"),
        ({"speed": 1}, 400, "speed"),
    ],
)
async def test_what_cannot_be_meant_is_refused(here: Alone, change: object, status: int, said: str) -> None:
    answer = await here.ask("PUT", "/api/limits", json=change)
    assert answer.status == status
    assert said in answer.error[2]


async def test_a_staging_has_a_priority_and_its_row_says_which(here: Alone) -> None:
    await here.worker("late")
    [row] = (await here.post("/api/models/owl/stage", {"nodes": ["late"], "priority": "low"})).json["operations"]
    assert row["priority"] == "low"
    refused = await here.post("/api/models/owl/stage", {"nodes": ["late"], "priority": "request"})
    assert refused.status == 400, "that is for who waits for a model"
    await here.post(f"/api/operations/{row['id']}/cancel")
