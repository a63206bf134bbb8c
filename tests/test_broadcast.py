from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagecast import broadcast
from stagecast.messages import Record
from tests.peers import a_record
from tests.test_operations import records

RUNNING = a_record(
    phase="transferring", bytes_done=30_000_000, bytes_total=90_900_000, file_name="model.safetensors", file_index=2,
    total_files=3, rate=15_000_000.0, started_at=1.7e9,
)  # fmt: skip


def test_a_staging_is_broadcast_with_every_field_of_the_wire() -> None:
    event = json.loads(broadcast.encode(RUNNING))
    assert event.keys() == {"model_id", "status", "done", "op"}
    assert (event["model_id"], event["done"]) == ("m", False)
    assert event["status"] == {
        "model_id": "m",
        "node_name": "n",
        "file_name": "model.safetensors",
        "bytes_sent": 30_000_000,
        "total_bytes": 90_900_000,
        "progress": 33.0,
        "speed": "15.0 MB/s",
        "file_index": 2,
        "total_files": 3,
        "message": "Staging m on n: 30.0 MB of 90.9 MB",
        "started_at": "2023-11-14T22:13:20.000Z",
    }


@pytest.mark.parametrize("state", ["queued", "running", "paused", "stalled", "succeeded", "failed", "cancelled"])
def test_done_says_that_it_has_ended_and_is_always_there(state: str) -> None:
    event = json.loads(broadcast.encode(a_record(state=state)))
    assert event["done"] is (state in {"succeeded", "failed", "cancelled"})


def test_an_installation_is_broadcast_as_the_gallery_does() -> None:
    record = msgspec.structs.replace(RUNNING, kind="installation", node="", id="installation:m")
    event = json.loads(broadcast.encode(record))
    assert event.keys() == {"job_id", "status", "op"}
    assert event["job_id"] == "j"
    status = event["status"]
    assert status.keys() == {
        "deletion", "file_name", "processed", "message", "progress", "phase", "current_bytes", "total_bytes",
        "gallery_element_name", "cancelled", "cancellable",
    }  # fmt: skip
    assert (status["processed"], status["cancelled"], status["cancellable"]) == (False, False, True)
    assert (status["current_bytes"], status["gallery_element_name"]) == (30_000_000, "m")


def test_an_installation_that_failed_says_why() -> None:
    failed = a_record(kind="installation", node="", state="failed", error="no disk")
    status = json.loads(broadcast.encode(failed))["status"]
    assert (status["processed"], status["error"], status["cancellable"]) == (True, "no disk", False)
    cancelled = a_record(kind="installation", node="", state="cancelled")
    assert json.loads(broadcast.encode(cancelled))["status"]["cancelled"] is True


@given(records(), st.sampled_from(["staging", "installation", "loading", "deletion"]))
def test_what_was_encoded_comes_back_whole(record: Record, kind: str) -> None:
    record = msgspec.structs.replace(record, kind=kind)
    prefix = {"staging": "staging", "installation": "gallery"}.get(kind, kind)
    assert broadcast.decode(prefix, broadcast.encode(record)).op == record


def test_fields_that_nobody_knows_are_ignored() -> None:
    payload = b'{"model_id": "m", "new": {"deep": [1]}, "status": {"model_id": "m", "newer": 1}}'
    event = broadcast.decode("staging", payload)
    assert event.op is None


@pytest.mark.parametrize(
    ("prefix", "payload"),
    [
        ("staging", b"not json"),
        ("staging", b""),
        ("staging", b"\xff\xfe"),
        ("staging", b"[]"),
        ("staging", b'{"done": true}'),
        ("staging", b'{"model_id": 5}'),
        ("staging", b'{"model_id": "m", "done": "yes"}'),
        ("staging", b'{"model_id": "m", "status": {"bytes_sent": "many"}}'),
        ("staging", b'{"model_id": "m", "status": {"progress": 1e999}}'),
        ("staging", b'{"model_id": "m", "op": {"id": "x"}}'),
        ("gallery", b'{"status": {}}'),
        ("gallery", b'{"job_id": "j", "status": {"processed": 1}}'),
        ("loading", b'{"model_id": "m"}'),
    ],
)
def test_malformed_events_are_told(prefix: str, payload: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        broadcast.decode(prefix, payload)


@given(st.integers(0, 10**15), st.integers(0, 10**15))
def test_a_percentage_is_by_bytes_and_within_its_bounds(done: int, total: int) -> None:
    found = broadcast.percentage(a_record(bytes_done=done, bytes_total=total))
    assert 0.0 <= found <= 100.0
    if total > done:
        assert found == pytest.approx(100 * done / total)


def test_a_hundred_is_said_of_what_has_succeeded_even_where_there_was_nothing_to_move() -> None:
    assert broadcast.percentage(a_record(state="succeeded", bytes_total=0)) == 100.0
    assert broadcast.percentage(a_record(state="running", bytes_total=0)) == 0.0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"state": "queued"}, "Staging m on n: queued"),
        ({"phase": "verifying"}, "Staging m on n: verifying"),
        ({"phase": "planning", "note": "reading"}, "Staging m on n: planning (reading)"),
        ({"state": "stalled", "note": "node n is silent"}, "Staging m on n: stalled (node n is silent)"),
        ({"state": "failed", "error": "no disk"}, "Staging m on n failed: no disk"),
        ({"kind": "installation", "node": "", "state": "succeeded"}, "Installing m: succeeded"),
        ({"kind": "loading", "phase": "loading"}, "Loading m on n: loading"),
        ({"kind": "deletion", "state": "cancelled"}, "Deleting m on n: cancelled"),
        ({"kind": "render", "node": "", "bytes_done": 1200, "bytes_total": 24000}, "Render m: 1,200 of 24,000"),
        ({"kind": "render", "node": "", "bytes_done": 3, "note": "encoding"}, "Render m: 3 (encoding)"),
    ],
)
def test_one_line_for_people(changes: dict[str, str], sentence: str) -> None:
    assert broadcast.sentence(a_record(**changes)) == sentence
