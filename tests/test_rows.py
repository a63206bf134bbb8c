from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagecast import broadcast, operations, rows, subjects
from stagecast.fold import Fold, Slot
from stagecast.messages import Entry, GalleryStatus, Record, StagingStatus
from stagecast.mirror import Mirror
from tests.peers import a_record
from tests.test_operations import records

WIRE_FIELDS = {
    "id", "jobID", "name", "fullName", "taskType", "state", "phase", "progress", "currentBytes", "totalBytes",
    "fileName", "fileIndex", "totalFiles", "nodeName", "nodeID", "owner", "attempt", "isDeletion", "isBackend",
    "isQueued", "cancellable", "message", "startedAt", "updatedAt",
}  # fmt: skip


records_that_began_together = st.builds(
    lambda node, start: a_record(node=node, started_at=start),
    st.sampled_from("abcdef"),
    st.floats(1.7e9, 1.7e9 + 0.003),
)


def as_json(record: Record) -> dict[str, object]:
    return json.loads(msgspec.json.encode(rows.row(record)))  # type: ignore[no-any-return]


@given(records())
def test_every_row_has_the_fields_of_the_wire(record: Record) -> None:
    row = as_json(record)
    optional = {
        "error", "dismissed", "bytesPerSecond", "etaSeconds", "stalledSince", "stalledOn", "keptBytes", "callID",
        "nodes", "priority", "limitedBy", "verification",
    }  # fmt: skip
    assert WIRE_FIELDS <= row.keys() <= WIRE_FIELDS | optional
    assert ("error" in row) == (record.state == "failed")
    assert ("priority" in row) == (record.kind == "staging")
    assert ("verification" in row) == operations.is_verification(record)
    assert ("limitedBy" in row) == bool(operations.bottleneck(record))
    assert ("stalledOn" in row) == ("stalledSince" in row) == (record.state == "stalled")
    assert 0 <= row["progress"] <= 100  # type: ignore[operator]
    assert isinstance(row["progress"], int)


def test_a_verification_is_told_apart_and_says_what_it_found_once_it_has_succeeded() -> None:
    running = a_record(kind="staging", state="running", parameters={operations.VERIFY: "all"})
    assert as_json(running)["verification"] == ""
    ended = msgspec.structs.replace(running, state="succeeded", note="undamaged")
    assert as_json(ended)["verification"] == "undamaged"
    assert as_json(ended)["message"].startswith("Verifying ")  # type: ignore[attr-defined]
    cancelled = msgspec.structs.replace(running, state="cancelled", note="once w is back")
    assert as_json(cancelled)["verification"] == ""


@given(records())
def test_what_has_ended_tells_more_and_what_has_not_tells_the_same(record: Record) -> None:
    plain, detailed = as_json(record), json.loads(msgspec.json.encode(rows.detailed(record)))
    assert plain.items() <= detailed.items()
    assert ("attempts" in detailed) == (record.state in {"succeeded", "failed", "cancelled"})


def test_what_limits_a_transfer_is_told_while_it_runs_and_its_parts_by_name_and_afterwards() -> None:
    spent = {"network": 3.0, "hash": 0.5, "target disk": 0.5}
    moving = a_record(phase="transferring", bytes_total=9, limited_by="network", spent=spent)
    assert (as_json(moving)["limitedBy"], "timeSpent" in as_json(moving)) == ("network", False)
    assert as_json(moving)["message"] == "Staging m on n: 0 B of 9 B, limited by the network"
    end = operations.ended(moving, "succeeded", 9.0)
    assert "limitedBy" not in as_json(end)
    assert rows.detailed(moving).time_spent == rows.detailed(end).time_spent
    assert rows.detailed(end).time_spent == {"network": 0.75, "hash": 0.125, "target disk": 0.125}
    assert rows.detailed(operations.claimed(moving, "b", 9.0)).time_spent is msgspec.UNSET, "of this attempt alone"


def test_an_ended_attempt_has_its_time_its_bytes_its_rate_and_those_before_it() -> None:
    before = a_record(claimed_at=1.0, updated_at=3.0, state="failed", error="no space")
    record = a_record(
        attempt=2, state="succeeded", claimed_at=10.0, updated_at=14.5, bytes_done=1000, bytes_present=100,
        bytes_total=1000, cause="placement", begun_by="retry", earlier=operations.told(before),
    )  # fmt: skip
    row = json.loads(msgspec.json.encode(rows.detailed(record)))
    assert row.items() >= {
        "cause": "placement", "begunBy": "retry", "durationSeconds": 4.5, "bytesMoved": 900,
        "meanBytesPerSecond": 200.0, "currentBytes": 1000, "totalBytes": 1000,
    }.items()  # fmt: skip
    assert row["attempts"] == [
        {"attempt": 1, "state": "failed", "owner": "a", "error": "no space",
         "startedAt": "1970-01-01T00:00:01.000Z", "endedAt": "1970-01-01T00:00:03.000Z"},
        {"attempt": 2, "state": "succeeded", "owner": "a",
         "startedAt": "1970-01-01T00:00:10.000Z", "endedAt": "1970-01-01T00:00:14.500Z"},
    ]  # fmt: skip


def test_an_attempt_that_nobody_took_up_has_no_time_and_no_rate() -> None:
    row = json.loads(msgspec.json.encode(rows.detailed(a_record(state="cancelled", owner="", bytes_done=5))))
    assert not {"durationSeconds", "bytesMoved", "meanBytesPerSecond", "cause", "begunBy"} & row.keys()
    assert "startedAt" not in row["attempts"][0]


@given(records())
def test_a_row_depends_on_the_record_alone(record: Record) -> None:
    assert msgspec.json.encode(rows.row(record)) == msgspec.json.encode(rows.row(msgspec.structs.replace(record)))


def test_rate_and_time_left_are_absent_rather_than_guessed() -> None:
    moving = {"phase": "transferring", "bytes_done": 40, "bytes_total": 100, "rate": 10.0}
    assert as_json(a_record(**moving)).items() >= {"bytesPerSecond": 10.0, "etaSeconds": 6.0}.items()
    for unlike in ({"rate": None}, {"rate": 0.0}, {"state": "stalled"}, {"state": "paused"}):
        assert not {"bytesPerSecond", "etaSeconds"} & as_json(a_record(**(moving | unlike))).keys()
    for unlike in ({"phase": "verifying"}, {"bytes_done": 100}):
        row = as_json(a_record(**(moving | unlike)))
        assert "etaSeconds" not in row
        assert row["bytesPerSecond"] == 10.0


@pytest.mark.parametrize("state", ["queued", "running", "paused", "stalled", "succeeded", "failed", "cancelled"])
def test_cancellable_is_what_has_not_ended(state: str) -> None:
    row = as_json(a_record(state=state))
    assert row["cancellable"] is (state not in {"succeeded", "failed", "cancelled"})
    assert row["isQueued"] is (state == "queued")


def test_times_are_rfc_3339_in_utc() -> None:
    row = as_json(a_record(started_at=1.7e9, updated_at=1.7e9 + 0.5))
    assert (row["startedAt"], row["updatedAt"]) == ("2023-11-14T22:13:20.000Z", "2023-11-14T22:13:20.500Z")


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 2)), unique_by=lambda pair: pair[0]), st.data())
def test_the_list_is_sorted_by_start_then_id(some: list[tuple[str, int]], data: st.DataObject) -> None:
    found = [a_record(node=node, started_at=float(start), bytes_done=start) for node, start in some]
    fold = Fold(slots={each.id: Slot(each, 1) for each in data.draw(st.permutations(found))})
    listed = rows.listed(fold)
    assert [row.id for row in listed] == [each.id for each in sorted(found, key=lambda r: (r.started_at, r.id))]


def test_what_has_ended_leaves_the_list_but_for_what_failed() -> None:
    states = ("queued", "running", "paused", "stalled", "succeeded", "failed", "cancelled")
    slots = {state: Slot(a_record(node=state, state=state), 1) for state in states}
    shown = {row.state for row in rows.listed(Fold(slots=slots))}
    assert shown == {"queued", "running", "paused", "stalled", "failed"}


def test_what_changed_has_ended_rows_too_oldest_change_first_each_with_its_place() -> None:
    slots = {
        "a": Slot(a_record(node="a", state="succeeded"), 9),
        "b": Slot(a_record(node="b"), 7),
        "c": Slot(a_record(node="c"), 3),
    }
    found = [(at, row.id, row.state) for at, row in rows.changed(Fold(slots=slots), 3)]
    assert found == [(7, "staging:m@b", "running"), (9, "staging:m@a", "succeeded")]


@pytest.mark.parametrize(("progress", "shown"), [(-5.0, 0), (50.9, 50), (100.0, 100), (250.0, 100), (float("nan"), 0)])
def test_what_a_foreign_publisher_says_of_its_progress_is_kept_in_bounds(progress: float, shown: int) -> None:
    mirror = Mirror("staging:m", "job-m", "m", "s", 1, 5.0, done=False, status=StagingStatus(progress=progress))
    assert rows.mirror_row(mirror).progress == shown


def test_starts_that_read_the_same_are_sorted_by_id() -> None:
    """What two stagings of one call began within a millisecond has one start to whoever reads the rows."""
    first, second = a_record(node="b", started_at=1.7e9 + 0.0001), a_record(node="a", started_at=1.7e9 + 0.0009)
    shown = rows.listed(Fold(slots={each.id: Slot(each, at) for at, each in enumerate((first, second), 1)}))
    assert [row.id for row in shown] == ["staging:m@a", "staging:m@b"]
    assert len({row.started_at for row in shown}) == 1


@given(st.lists(records_that_began_together, max_size=6, unique_by=lambda record: record.id))
def test_the_list_is_sorted_by_what_its_rows_say(some: list[Record]) -> None:
    shown = rows.listed(Fold(slots={each.id: Slot(each, at) for at, each in enumerate(some, 1)}))
    assert shown == sorted(shown, key=lambda row: (row.started_at, row.id))


def test_a_foreign_deletion_is_a_deletion() -> None:
    mirror = Mirror("installation:m", "job-m", "m", "s", 1, 5.0, done=False, status=GalleryStatus(deletion=True))
    row = rows.mirror_row(mirror)
    assert (row.task_type, row.is_deletion) == ("deletion", True)


def test_a_foreign_installation_yields_to_ours() -> None:
    ours = a_record(kind="installation", node="")
    mirror = Mirror("installation:m", "job-m", "m", "s", 2, 5.0, done=False, status=GalleryStatus(progress=99.0))
    fold = Fold(slots={ours.id: Slot(ours, 1)}, mirrors={mirror.id: mirror})
    assert rows.listed(fold) == [rows.row(ours)]
    assert [row for _, row in rows.changed(fold, 0)] == [rows.row(ours)]


def test_the_end_of_an_echo_does_not_take_our_row_away() -> None:
    ours = a_record(kind="installation", node="")
    status = GalleryStatus(processed=True)
    mirror = Mirror("installation:m", "job-m", "m", "s", 2, 5.0, done=True, status=status)
    fold = Fold(slots={ours.id: Slot(ours, 1)}, mirrors={mirror.id: mirror})
    assert rows.changed(fold, 1) == [(2, rows.row(ours))]
    ended = msgspec.structs.replace(ours, state="succeeded")
    fold = Fold(slots={ours.id: Slot(ended, 1)}, mirrors={mirror.id: mirror})
    assert rows.changed(fold, 1) == [(2, rows.mirror_row(mirror))]


def a_call(*records: Record) -> Fold:
    """Return a fold in which these were said, one after the other."""
    fold = Fold()
    for sequence, record in enumerate(records, 1):
        fold.apply(Entry(subjects.operation(record), sequence, broadcast.encode(record), 1.7e9))
    return fold


def part(node: str, **changes: object) -> Record:
    return a_record(**({"node": node, "job": node, "call": "c", "bytes_total": 200, "file_name": "f"} | changes))


def nodes_of(fold: Fold, record: Record) -> list[dict[str, object]] | None:
    return json.loads(msgspec.json.encode(rows.row_of(fold, record))).get("nodes")  # type: ignore[no-any-return]


def test_each_row_of_a_call_tells_of_all_its_operations_by_node() -> None:
    two, one = part("b", bytes_done=50, state="failed", error="no disk"), part("a", bytes_done=67)
    fold = a_call(two, one, part("z", call="another"), part("y", call=""))
    expected = [
        {
            "node_name": "a", "status": "running", "percentage": 33.5, "bytes_sent": 67, "total_bytes": 200,
            "file_name": "f", "phase": "planning",
        },
        {
            "node_name": "b", "status": "failed", "percentage": 25.0, "bytes_sent": 50, "total_bytes": 200,
            "file_name": "f", "phase": "planning", "error": "no disk",
        },
    ]  # fmt: skip
    assert nodes_of(fold, one) == nodes_of(fold, two) == expected
    assert [nodes_of(fold, slot.record) for slot in fold.slots.values()] == [expected, expected, None, None]


def test_a_change_of_one_operation_is_a_change_of_its_whole_call() -> None:
    one, two, other = part("a"), part("b"), part("z", call="another")
    moved = msgspec.structs.replace(one, seq=1, bytes_done=100)
    fold = a_call(one, two, other, moved)
    told = rows.changed(fold, 3)
    assert [(at, row.id) for at, row in told] == [(3, "staging:m@b"), (4, "staging:m@a")]
    assert [row for _, row in told] == [rows.row_of(fold, two), rows.row_of(fold, moved)]


def test_an_operation_that_another_call_asks_for_anew_leaves_the_rows_of_the_first() -> None:
    one, two = part("a"), part("b")
    anew = msgspec.structs.replace(one, attempt=2, job="anew", call="another")
    fold = a_call(one, two, anew)
    assert nodes_of(fold, two) is nodes_of(fold, anew) is None
    assert [(at, row.id, row.nodes) for at, row in rows.changed(fold, 2)] == [
        (2, "staging:m@b", msgspec.UNSET),
        (3, "staging:m@a", msgspec.UNSET),
    ]


def test_what_has_ended_is_told_once_however_its_call_goes_on() -> None:
    one, two = part("a"), part("b", state="succeeded")
    moved = msgspec.structs.replace(one, seq=1, bytes_done=100)
    fold = a_call(one, two, moved)
    assert [row.id for _, row in rows.changed(fold, 2)] == ["staging:m@a"]


def test_what_was_under_way_before_a_call_is_among_its_parts_and_keeps_its_own() -> None:
    running, late = part("a", call="", bytes_done=67), part("b", beside=("a",))
    moved = msgspec.structs.replace(running, seq=1, bytes_done=100)
    for said in ((running, late, moved), (late, running, moved)):
        fold = a_call(*said)
        found = nodes_of(fold, late)
        assert found is not None
        assert [(node["node_name"], node["bytes_sent"]) for node in found] == [("a", 100), ("b", 0)]
        assert nodes_of(fold, moved) is None
        assert [(at, row.id) for at, row in rows.changed(fold, 2)] == [(2, "staging:m@b"), (3, "staging:m@a")]
        assert [row.id for _, row in rows.changed(fold, 3)] == []


def test_a_new_run_in_its_place_is_no_part_of_the_call() -> None:
    running, late = part("a", call="", bytes_done=67), part("b", beside=("a",))
    anew = msgspec.structs.replace(running, attempt=2, job="anew", bytes_done=0)
    fold = a_call(running, late, anew)
    assert nodes_of(fold, late) is None
    assert [(at, row.id) for at, row in rows.changed(fold, 2)] == [(2, "staging:m@b"), (3, "staging:m@a")]


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["", "c", "d"]), st.lists(st.integers(1, 12), max_size=2)),
        min_size=1,
        max_size=12,
    )
)
def test_the_roll_up_does_not_depend_on_how_the_fold_came_to_be(said: list[tuple[str, str, list[int]]]) -> None:
    records = [
        part(node, job=f"j{attempt}", call=call, attempt=attempt, beside=tuple(f"j{job}" for job in jobs if call))
        for attempt, (node, call, jobs) in enumerate(said, 1)
    ]
    whole = a_call(*records)
    late = a_call(*(slot.record for slot in whole.slots.values()))
    assert msgspec.json.encode(rows.listed(whole)) == msgspec.json.encode(rows.listed(late))
    assert whole._besides == late._besides
    view: dict[str, bytes] = {}
    fold = Fold()
    for sequence, record in enumerate(records, 1):
        fold.apply(Entry(subjects.operation(record), sequence, broadcast.encode(record), 1.7e9))
        view |= {row.id: msgspec.json.encode(row) for _, row in rows.changed(fold, sequence - 1)}
        assert view == {row.id: msgspec.json.encode(row) for row in rows.listed(fold)}, "who is told sees the same"


def test_a_stalled_row_says_since_when_on_what_and_what_follows() -> None:
    row = as_json(operations.stalled(a_record(rate=3.0), "it fails after 30 s", 1.7e9, "network", since=1.7e9 - 5))
    assert (row["stalledOn"], row["stalledSince"]) == ("network", "2023-11-14T22:13:15.000Z")
    assert row["message"] == (
        "Staging m on n: stalled (no connection to the source since 22:13:15 UTC; it fails after 30 s)"
    )
    assert "bytesPerSecond" not in row


def test_a_cancelled_row_says_what_was_kept() -> None:
    held = a_record(state="paused", bytes_done=12_000_000)
    assert as_json(operations.commanded(held, "cancel", 9.0, keep_partial=True))["keptBytes"] == 12_000_000
    assert "keptBytes" not in as_json(operations.commanded(held, "cancel", 9.0))
