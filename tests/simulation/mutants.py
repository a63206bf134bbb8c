"""Four ways to break the design, each of which the invariants must catch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from unittest.mock import patch

from nats.js.api import ConsumerConfig, DeliverPolicy

from stagecast import operations, ownership
from stagecast.bus import nats
from stagecast.messages import Record
from tests.simulation.nats import JetStream


def _never(*_: object) -> bool:
    return False


def _order_without_ends(record: Record) -> tuple[int, int, int]:
    return (record.attempt, 0, record.seq)


_publish = JetStream.publish


async def _publish_in_any_case(
    self: JetStream, subject: str, payload: bytes, stream: str = "", headers: dict[str, str] | None = None
) -> Any:
    return await _publish(self, subject, payload, stream, None)


_consumer = nats._consumer


def _live_only(inbox: str, held: int) -> ConsumerConfig:
    config = _consumer(inbox, held)
    return config if held else config.evolve(deliver_policy=DeliverPolicy.NEW)


MUTANTS: Final = {
    "the fence": (
        patch.object(ownership, "_fences", _never), patch.object(ownership.Ownership, "is_taken_by", _never),
    ),
    "the compare-and-set": (patch.object(JetStream, "publish", _publish_in_any_case),),
    "the terminal rule": (patch.object(operations, "_order", _order_without_ends),),
    "the catch-up": (patch.object(nats, "_consumer", _live_only),),
}  # fmt: skip
"""What is broken -> how."""


@contextmanager
def broken(name: str) -> Iterator[None]:
    """Break one part of the production code for the block."""
    patches = MUTANTS[name]
    for each in patches:
        each.start()
    try:
        yield
    finally:
        for each in patches:
            each.stop()
