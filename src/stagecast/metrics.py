"""``/metrics``: the process's numbers in Prometheus's text format, read from memory when asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from stagecast.node import Node
from stagecast.tracker import Tracker

Family = CounterMetricFamily | GaugeMetricFamily


class NodeCollector(Collector):
    """What a process's tracker and node know, as metrics."""

    def __init__(self, tracker: Tracker, node: Node) -> None:
        self._tracker = tracker
        self._node = node

    def collect(self) -> Iterator[Family]:
        """Yield the metric families."""
        tracker = self._tracker
        yield _counter("stagecast_malformed_events", "Events that were dropped as malformed", tracker.malformed)
        yield _gauge("stagecast_degraded", "1 while the log cannot be heard", int(tracker.is_degraded))
        yield _gauge("stagecast_log_sequence", "Sequence of the last folded message", tracker.revision.sequence)
        yield _gauge("stagecast_owned_operations", "Operations that this process owns", len(tracker.owned))
        yield _counter("stagecast_file_bytes_sent", "Bytes of files served to others", self._node.bytes_sent)
        received = "Bytes of files that holders sent here, also in vain"
        yield _counter("stagecast_file_bytes_received", received, self._node.bytes_received)
        disk = self._node.record
        yield _gauge("stagecast_disk_free_bytes", "Bytes that were free on the models' disk", disk.disk_free)
        yield _gauge("stagecast_disk_reserved_bytes", "Of these, promised to transfers", disk.disk_reserved)
        yield _gauge("stagecast_disk_orphaned_bytes", "Left of work that nobody goes on with", disk.disk_orphaned)
        listed = GaugeMetricFamily("stagecast_operations", "Operations that have not ended", labels=["kind", "state"])
        for (kind, state), count in Counter((each.kind, each.state) for each in tracker.fold.live()).items():
            listed.add_metric([kind, state], count)
        yield listed


class Metrics:
    """The registry of one process."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self, tracker: Tracker, node: Node) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._registry.register(NodeCollector(tracker, node))

    def text(self) -> bytes:
        """Return the metrics in Prometheus's text format."""
        return generate_latest(self._registry)


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(name, text, value=value)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)
