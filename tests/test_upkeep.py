"""``gc``, ``pin``, ``unpin`` and ``stage --wait``: what they ask of a replica, what they print, and how they exit."""

from __future__ import annotations

import pytest

from stagecast.cli import main
from tests.replica_stand_in import ReplicaStandIn, answering, row
from tests.test_cli import replica

__all__ = ["replica"]

FOUND = {
    "node": "w", "bytes": 7_000_001, "disk_free": 10, "disk_reserved": 0,
    "evicted": [{"model": "old", "bytes": 5_000_000, "used_at": 1.76e9}],
    "leftovers": [{"folder": "partial-1", "kind": "partial", "model": "half", "bytes": 2_000_001}],
    "kept": [{"model": "busy", "bytes": 9_000_000, "keep": "loaded"}, {"model": "spare", "bytes": 1, "keep": ""}],
    "kept_leftovers": [{"folder": "draft-x", "kind": "draft", "model": "x", "keep": "its installation is running"}],
}  # fmt: skip


def test_gc_says_what_goes_how_much_that_is_and_why_the_rest_stays(
    replica: ReplicaStandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    replica.routes["POST /api/gc"] = answering({"nodes": [FOUND], "failed": {}, "revision": "a-1"})
    assert main(["gc", "--dry-run", "--free", "20GB", "--node", "w", "--node", "v"]) == 0
    shown = capsys.readouterr().out
    for words in ("would go", "partial of half", "never", "loaded", "no need", "its installation is running"):
        assert words in shown
    assert "7.0 MB (7,000,001 bytes) would be freed" in shown
    assert main(["gc"]) == 0
    assert "7.0 MB (7,000,001 bytes) freed" in capsys.readouterr().out
    assert replica.bodies == [
        {"nodes": ["w", "v"], "free": 20_000_000_000, "dry_run": True},
        {"nodes": "all", "free": 0, "dry_run": False},
    ]


def test_a_node_that_could_not_is_told_and_the_exit_code_says_so(
    replica: ReplicaStandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = {"nodes": [], "failed": {"v": "the bus cannot be reached"}, "revision": "a-1"}
    replica.routes["POST /api/gc"] = answering(answer)
    assert main(["gc"]) == 1
    assert capsys.readouterr().err == "error: v: the bus cannot be reached\n"


def test_pins(replica: ReplicaStandIn, capsys: pytest.CaptureFixture[str]) -> None:
    for verb, models in (("pin", ["m", "n"]), ("unpin", [])):
        replica.routes[f"POST /api/models/m/{verb}"] = answering({"pinned": {"w": models}, "revision": "a-1"})
    assert main(["pin", "m"]) == 0
    assert "m, n" in capsys.readouterr().out
    assert main(["unpin", "m", "--node", "w"]) == 0
    assert replica.bodies == [{"nodes": "all"}, {"nodes": ["w"]}]


def test_a_staging_waits_for_room_only_if_told_so(replica: ReplicaStandIn) -> None:
    replica.routes["POST /api/models/m/stage"] = answering({"operations": [row()], "revision": "a-1"}, 202)
    assert main(["stage", "m", "--all", "--wait"]) == 0
    assert main(["stage", "m", "--all"]) == 0
    assert replica.bodies == [
        {"nodes": "all", "dry_run": False, "wait_for_space": True},
        {"nodes": "all", "dry_run": False},
    ]


def test_nodes_show_what_is_promised_orphaned_and_pinned(
    replica: ReplicaStandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    node = {"name": "w", "disk_total": 4_000_000, "disk_reserved": 3_000_000, "disk_orphaned": 2_000_000}
    replica.routes["GET /api/nodes"] = answering({"nodes": [node | {"pinned": ["m"]}]})
    assert main(["nodes"]) == 0
    shown = capsys.readouterr().out
    assert "of 4.0 MB, 3.0 MB reserved, 2.0 MB orphaned" in shown
    assert " m " in shown


@pytest.mark.parametrize("size", ["lots", "-1"])
def test_a_size_that_cannot_be_meant_is_a_matter_of_usage(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gc", "--free", size]) == 2
    assert "size" in capsys.readouterr().err
