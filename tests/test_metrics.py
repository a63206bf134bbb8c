from __future__ import annotations

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from stagecast.metrics import Metrics
from tests.conftest import eventually
from tests.nodes import Nodes
from tests.peers import a_record


def read(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Return the samples by name and label values."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }


async def test_it_tells_what_the_process_knows(tmp_path: Path) -> None:
    async with Nodes(tmp_path).node("n", {"owl": b"weights"}) as member:
        await member.until_held("owl")
        metrics = Metrics(member.tracker, member.node)
        before = read(metrics)
        assert before["stagecast_malformed_events_total",] == 0
        assert before["stagecast_degraded",] == 0
        assert before["stagecast_log_sequence",] == member.tracker.revision.sequence
        assert before["process_resident_memory_bytes",] > 0
        assert not any(name == "stagecast_operations" for name, *_ in before)
        for number, state in enumerate(["running", "running", "succeeded"]):
            await member.tracker.write(a_record(node=f"n{number}", state=state), 0)
        await member.tracker.bus.log.append("staging.x.progress", b"nonsense")
        record, _ = await member.tracker.open("installation", "m", cause="test")
        async with member.tracker.own(record):
            await eventually(lambda: member.tracker.fold.record(record.id) is not None)
            await eventually(lambda: member.tracker.fold.record(record.id).state == "running")  # type: ignore[union-attr]
            after = read(metrics)
        assert after["stagecast_operations", "staging", "running"] == 2
        assert after["stagecast_operations", "installation", "running"] == 1
        assert ("stagecast_operations", "staging", "succeeded") not in after
        assert after["stagecast_malformed_events_total",] == 1
        assert after["stagecast_owned_operations",] == 1
        assert after["stagecast_file_bytes_sent_total",] == after["stagecast_file_bytes_received_total",] == 0
        assert after["stagecast_disk_free_bytes",] == member.node.record.disk_free > 0
        member.node.tell(disk_orphaned=7)
        assert read(metrics)["stagecast_disk_orphaned_bytes",] == 7
        with member.node.store.reserve(5):
            member.node.tell()
        assert read(metrics)["stagecast_disk_reserved_bytes",] == 5
        member.tracker.is_degraded = True
        assert read(metrics)["stagecast_degraded",] == 1


async def test_two_in_one_process_do_not_meet(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path)
    async with nodes.node("one") as one, nodes.node("two") as two:
        both = [Metrics(each.tracker, each.node) for each in (one, two)]
        assert all(read(each)["stagecast_degraded",] in {0, 1} for each in both)
        assert Metrics.content_type.startswith("text/plain; version=0.0.4")
