from __future__ import annotations

import pytest

from stagecast.fold import Fold, Slot
from stagecast.leftovers import abandoned, arrived
from stagecast.messages import NodeRecord, Record
from tests.peers import a_record

NODES = {name: NodeRecord(name=name, kind="worker", process=f"{name}/1") for name in ("n", "r")}


def a_fold(*records: Record) -> Fold:
    return Fold(slots={record.id: Slot(record, at) for at, record in enumerate(records, 1)}, nodes=NODES)


def a_part(**changes: object) -> Record:
    return a_record(**({"bytes_done": 60, "bytes_total": 100, "parameters": {"digest": "d"}} | changes))


@pytest.mark.parametrize(
    ("changes", "there", "is_abandoned"),
    [
        ({"state": "running"}, 60, False),
        ({"state": "paused"}, 60, False),
        ({"state": "failed"}, 60, True),
        ({"state": "cancelled"}, 0, False),
        ({"state": "cancelled", "keep_partial": True, "bytes_kept": 40}, 40, True),
        ({"state": "succeeded"}, 0, False),
        ({"state": "failed", "bytes_done": 0}, 0, False),
    ],
)
def test_what_a_record_says_that_lies_there(changes: dict[str, object], there: int, is_abandoned: bool) -> None:
    fold = a_fold(a_part(**changes))
    assert arrived(fold, "m", "n", "d") == there
    assert abandoned(fold, "m") == (["n"] if is_abandoned else [])


def test_another_revision_another_node_and_another_model_have_nothing_of_it() -> None:
    fold = a_fold(a_part(state="failed"))
    assert (arrived(fold, "m", "n", "e"), arrived(fold, "m", "r", "d"), arrived(fold, "x", "n", "d")) == (0, 0, 0)
    assert abandoned(fold, "x") == []


def test_a_deletion_that_came_later_has_freed_it() -> None:
    part, deletion = a_part(state="failed"), a_record(kind="deletion", state="succeeded")
    assert (arrived(a_fold(part, deletion), "m", "n", "d"), abandoned(a_fold(part, deletion), "m")) == (0, [])
    assert (arrived(a_fold(deletion, part), "m", "n", "d"), abandoned(a_fold(deletion, part), "m")) == (60, ["n"])


def test_a_part_of_an_installation_lies_with_whoever_brought_it() -> None:
    part = a_part(kind="installation", node="", owner="r/1", state="cancelled", keep_partial=True, bytes_kept=1)
    assert abandoned(a_fold(part), "m") == ["r"]
