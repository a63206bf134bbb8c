from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from yarl import URL

from stagecast.client import Client
from stagecast.event_stream import EventParser
from stagecast.frontend import gate, operations_api
from stagecast.messages import GalleryCancel, GalleryEvent, GalleryStatus, StagingEvent, StagingStatus
from tests.alone import Alone, find_again, lose

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIST = "/api/operations"


async def test_the_list_has_a_tag_and_is_not_sent_twice(here: Alone) -> None:
    await here.running("staging", "listed", "there")
    answer = await here.get(LIST)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    assert answer.body.endswith(b"}\n"), "a line, as it is printed"
    assert answer.headers["ETag"] == f'"{answer.json["revision"]}"'
    assert answer.headers["Stagecast-Revision"] == answer.json["revision"]
    again = await here.get(LIST, headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status, again.body, again.headers["ETag"]) == (304, b"", answer.headers["ETag"])
    await here.running("staging", "listed-2", "there")
    later = await here.get(LIST, headers={"If-None-Match": answer.headers["ETag"]})
    assert later.status == 200
    assert later.headers["ETag"] != answer.headers["ETag"]


async def test_a_wait_ends_with_the_change(here: Alone) -> None:
    before = (await here.get(LIST)).json["revision"]
    waiting = asyncio.create_task(here.get(LIST, params={"after": before, "wait": "30"}))
    identifier = await here.running("staging", "changes", "there")
    async with asyncio.timeout(20):
        answer = await waiting
    assert identifier in {row["id"] for row in answer.json["operations"]}
    assert (await here.get(LIST, params={"after": before, "wait": "30"})).json["revision"] != before, "at once"


async def test_a_wait_without_a_change_ends_too(here: Alone) -> None:
    before = (await here.get(LIST)).json["revision"]
    answer = await here.get(LIST, params={"after": before, "wait": "0.02"})
    assert (answer.status, answer.json["revision"]) == (200, before)


async def test_a_wait_ends_when_the_replica_loses_the_log_and_when_it_hears_it_again(here: Alone) -> None:
    before = (await here.get(LIST)).json["revision"]
    for let, is_degraded in ((lose, True), (find_again, False)):
        waiting = asyncio.create_task(here.get(LIST, params={"after": before, "wait": "30"}))
        await here.get(LIST)  # it has come after the other one
        let(here.bus)
        async with asyncio.timeout(20):
            answer = await waiting
        assert (answer.json["degraded"], answer.json["revision"]) == (is_degraded, before)


async def test_a_revision_of_the_future_is_waited_for_and_never_answered_with_an_older_one(
    here: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "MIN_REVISION_WAIT", 0.02)
    identity = (await here.get(LIST)).json["revision"].rpartition("-")[0]
    answer = await here.get(LIST, params={"after": f"{identity}-999999", "wait": "30"})
    assert (answer.status, answer.error[1]) == (503, "replica_behind")


@pytest.mark.parametrize("wait", ["nan", "inf", "-inf"])
async def test_a_wait_without_measure_is_refused(here: Alone, wait: str) -> None:
    assert (await here.get(LIST, params={"wait": wait})).status == 400


@pytest.mark.parametrize("shape", ["{}", "W/{}", '"other", {}', "*"])
async def test_an_entity_tag_is_known_in_every_form(here: Alone, shape: str) -> None:
    assert operations_api.is_known('"x-1"', shape.format('"x-1"'))
    assert not operations_api.is_known('"x-1"', shape.replace("*", '"y"').format('"x-2"'))


@pytest.mark.parametrize("after", ["another-999999", "garbage", ""])
async def test_a_revision_that_is_not_ours_waits_for_nothing(here: Alone, after: str) -> None:
    async with asyncio.timeout(20):
        assert (await here.get(LIST, params={"after": after, "wait": "30"})).status == 200


async def test_a_wait_that_is_no_number_is_refused(here: Alone) -> None:
    status, code, message = (await here.get(LIST, params={"wait": "long"})).error
    assert (status, code) == (400, "bad_input")
    assert message.startswith("GET /api/operations does not take that: wait: ")


async def test_one_operation_by_id_and_by_job_also_after_its_end(here: Alone) -> None:
    identifier = await here.running("staging", "single", "there", bytes_done=1, bytes_total=4)
    row = await here.row(identifier)
    assert (row["id"], row["progress"], row["state"], row["cancellable"]) == (identifier, 25, "running", True)
    assert await here.row(row["jobID"]) == row
    await here.post(f"{LIST}/{identifier}/cancel")
    assert (await here.row(row["jobID"]))["state"] == "cancelled"
    await here.running("staging", "single", "there")
    assert (await here.row(identifier))["jobID"] != row["jobID"]
    assert (await here.row(row["jobID"]))["state"] == "cancelled", "the history knows it"


async def test_what_nobody_knows_is_not_found(here: Alone) -> None:
    missing = (404, "not_found", "no operation 'nope' is known")
    assert (await here.get(f"{LIST}/nope")).error == missing
    assert (await here.post(f"{LIST}/nope/cancel")).error == missing
    assert (await here.post(f"{LIST}/nope/explode")).error == (
        404, "not_found", "no command 'explode' is known; known: cancel, dismiss, pause, resume, retry",
    )  # fmt: skip


@pytest.mark.parametrize("by", ["id", "jobID"])
async def test_every_verb_by_id_and_by_job(here: Alone, by: str) -> None:
    row = await here.row(await here.running("staging", f"verbs-{by}", "there"))
    path = f"{LIST}/{row[by]}"
    for verb, state in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled"), ("retry", "queued")):
        answer = await here.post(f"{path}/{verb}")
        assert (answer.status, answer.json["state"], answer.json["id"]) == (200, state, row["id"])
        assert (await here.row(row["id"])) == answer.json, "read your writes"


@pytest.mark.parametrize(("run", "slash"), [("a", "/"), ("b", "%2F"), ("c", "%2f")])
@pytest.mark.parametrize(
    "name", ["org/x.v1", "org/cancel", "a/b/c/pause", "100%/a%2Fb", "stream/history", "a//b", "https://host//x?y#z%"]
)
async def test_an_id_with_slashes_is_one_id_however_it_is_sent(here: Alone, name: str, run: str, slash: str) -> None:
    identifier = await here.running("render", run + name)
    outer = await here.running("render", run + name.rpartition("/")[0])
    sent = quote(identifier, safe="/:").replace("/", slash)

    async def asked(method: str, verb: str = "") -> tuple[int, Any]:
        async with here.http.request(method, URL(f"{here.url}{LIST}/{sent}{verb}", encoded=True)) as response:
            return response.status, await response.json()

    status, row = await asked("GET")
    assert (status, row["id"], row["state"]) == (200, identifier, "running")
    for verb, state in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled"), ("retry", "queued")):
        status, row = await asked("POST", f"/{verb}")
        assert (status, row["id"], row["state"]) == (200, identifier, state)
    status, answer = await asked("POST", "/explode")
    assert (status, answer["error"]["code"]) == (404, "not_found")
    assert (await here.row(quote(outer, safe="")))["state"] == "running", "what it is named after has not heard of it"


@pytest.mark.parametrize("name", ["ends/", "ends//"])
async def test_an_id_that_ends_in_a_slash_is_told_from_one_that_does_not(here: Alone, name: str) -> None:
    outer, identifier = await here.running("render", "ends"), await here.running("render", name)
    for sent, found in ((quote(identifier, safe=""), identifier), (outer, outer), (f"{outer}/", outer)):
        async with here.http.get(URL(f"{here.url}{LIST}/{sent}", encoded=True)) as response:
            assert (await response.json())["id"] == found
    async with Client(here.url) as client:
        assert (await client.command(identifier, "cancel")).id == identifier


async def test_an_id_that_ends_in_a_verb_is_not_taken_apart(here: Alone) -> None:
    outer = await here.running("staging", "whole", "")
    assert (await here.post(f"{LIST}/{outer}%2Fcancel")).status == 405
    assert (await here.row(outer))["state"] == "running"


async def test_a_state_that_forbids_it_is_a_conflict(here: Alone) -> None:
    identifier = await here.running("staging", "refused", "there")
    for verb in ("resume", "retry", "dismiss"):
        said = (409, "wrong_state", f"cannot {verb} {identifier}: it is running")
        assert (await here.post(f"{LIST}/{identifier}/{verb}")).error == said


async def test_a_failed_one_stays_until_it_is_dismissed(here: Alone) -> None:
    identifier = await here.running("staging", "failed", "there", state="failed", error="disk on fire")

    async def listed() -> dict[str, str]:
        return {row["id"]: row.get("error", "") for row in (await here.get(LIST)).json["operations"]}

    assert (await listed())[identifier] == "disk on fire"
    answer = await here.post(f"{LIST}/{identifier}/dismiss")
    assert (answer.status, answer.json["dismissed"]) == (200, True)
    assert identifier not in await listed()
    again = await here.post(f"{LIST}/{identifier}/dismiss")
    assert (again.status, again.body) == (200, answer.body)


async def test_the_history_is_newest_first_and_can_be_narrowed(here: Alone) -> None:
    for number in range(3):
        await here.running("staging", "past", f"n{number}", state="succeeded", updated_at=1000.0 + number)
    await here.running("deletion", "past", "n0", state="failed", updated_at=1003.0)

    async def found(**query: str) -> list[str]:
        answer = await here.get(f"{LIST}/history", params={"model": "past"} | query)
        return [row["id"] for row in answer.json["operations"]]

    stagings = [f"staging:past@n{number}" for number in (2, 1, 0)]
    assert await found() == ["deletion:past@n0", *stagings]
    assert await found(kind="staging") == stagings
    assert await found(kind="staging", limit="2") == stagings[:2]
    assert await found(before="1970-01-01T00:16:42Z") == stagings[1:]
    assert await found(model="nobody") == []


async def test_the_history_is_paged_with_each_entry_exactly_once(here: Alone) -> None:
    for number in range(7):  # as many calls of one moment end
        await here.running("staging", "paged", f"n{number}", state="succeeded", updated_at=2000.0 + number // 5)
    seen, before = [], ""
    for limit in ("3", "3", "3"):
        query = {"model": "paged", "limit": limit} | ({"before": before} if before else {})
        answer = (await here.get(f"{LIST}/history", params=query)).json
        seen += [row["id"] for row in answer["operations"]]
        before = answer.get("next", "")
    assert before == "", "there is no next page"
    assert len(seen) == 7
    assert set(seen) == {f"staging:paged@n{number}" for number in range(7)}
    assert set(seen[:2]) == {"staging:paged@n5", "staging:paged@n6"}


async def test_the_history_is_narrowed_by_node_outcome_job_and_any_kind(here: Alone) -> None:
    ends = {"n0": "succeeded", "n1": "failed", "n2": "cancelled"}
    for node, state in ends.items():
        await here.running("baking", "cake", node, state=state, updated_at=1000.0, error="burnt")
    job = (await here.row("baking:cake@n1"))["jobID"]

    async def found(**query: str) -> set[str]:
        answer = await here.get(f"{LIST}/history", params={"model": "cake"} | query)
        return {row["nodeName"] for row in answer.json["operations"]}

    assert await found(kind="baking") == set(ends)
    assert await found(kind="staging") == set()
    assert await found(node="n2") == {"n2"}
    assert await found(state="failed") == await found(job=job) == {"n1"}
    assert await found(state="failed", node="n0") == set()


async def test_each_attempt_of_a_job_is_a_row_of_the_history_and_tells_of_those_before(here: Alone) -> None:
    identifier = await here.running("staging", "tried", "there", state="failed", error="no space")
    await here.post(f"{LIST}/{identifier}/retry")
    await here.post(f"{LIST}/{identifier}/cancel")
    job = (await here.row(identifier))["jobID"]
    rows = (await here.get(f"{LIST}/history", params={"job": job})).json["operations"]
    assert [(row["attempt"], row["state"], row["cause"], row.get("begunBy")) for row in rows] == [
        (2, "cancelled", "test", "retry"),
        (1, "failed", "test", None),
    ]
    assert [(each["attempt"], each["state"]) for each in rows[0]["attempts"]] == [(1, "failed"), (2, "cancelled")]
    assert "durationSeconds" in rows[1]
    assert "durationSeconds" not in rows[0], "nobody had begun it"
    assert await here.row(identifier) == await here.row(job) == rows[0], "after its end it is the same"


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"limit": "0"}, "limit is 0; it must be at least 1"),
        ({"before": "yesterday"}, "before is 'yesterday'; write a time like 2026-11-24T01:48:00Z, or a page's next"),
        ({"limit": "ten"}, "GET /api/operations/history does not take that: limit: "),
        ({"kind": "frying"}, "GET /api/operations/history does not take that: kind: "),
        ({"state": "baking"}, "state is 'baking'; it is one of succeeded, failed, cancelled"),
    ],
)
async def test_a_question_to_the_history_that_cannot_be_meant(here: Alone, query: dict[str, str], said: str) -> None:
    status, code, message = (await here.get(f"{LIST}/history", params=query)).error
    assert (status, code) == (400, "bad_input")
    assert message.startswith(said)


async def test_foreign_operations_are_shown_and_only_an_installation_can_be_cancelled(here: Alone) -> None:
    await here.say("staging.alien.progress", StagingEvent(model_id="alien", status=StagingStatus(model_id="alien")))
    status = GalleryStatus(gallery_element_name="ufo", cancellable=True)
    await here.say("gallery.ufo.progress", GalleryEvent(job_id="job-ufo", status=status))
    assert (await here.row("staging:alien"))["owner"] == ""
    assert (await here.post(f"{LIST}/staging:alien/cancel")).status == 409
    asked: list[str] = []
    await here.bus.subscribe(
        "gallery.*.cancel", lambda _, payload: asked.append(msgspec.json.decode(payload, type=GalleryCancel).id)
    )
    assert (await here.post(f"{LIST}/job-ufo/cancel")).json["id"] == "installation:ufo"
    assert asked == ["job-ufo"]
    assert (await here.post(f"{LIST}/job-ufo/pause")).status == 409


async def test_the_stream_is_one_of_events_and_resumes(here: Alone) -> None:
    await here.running("staging", "streamed", "there")
    async with here.http.get(f"{here.url}{LIST}/stream") as response:
        assert (response.status, response.headers["Content-Type"]) == (200, "text/event-stream; charset=utf-8")
        assert response.headers["Cache-Control"] == "no-store"
        parser = EventParser()
        seen = parser.feed(await response.content.readany())
        while not any(event.event == "snapshot" for event in seen):
            seen += parser.feed(await response.content.readany())
    last = seen[-1].id
    await here.running("staging", "streamed-later", "there")
    async with here.http.get(f"{here.url}{LIST}/stream", headers={"Last-Event-ID": last}) as response:
        data = await response.content.readany()
        while b"event: operation" not in data:
            data += await response.content.readany()
    assert b"event: snapshot" not in data
    assert b"staging:streamed-later@there" in data
    assert b"staging:streamed@there" not in data
