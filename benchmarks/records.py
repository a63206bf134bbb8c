"""Records as a staging of a large model has them, and the events that carry them."""

from __future__ import annotations

import time

import msgspec

from stagecast import broadcast, operations, subjects
from stagecast.messages import Record

OWNER = "bench/0"


def record(number: int) -> Record:
    """Return the record of one running staging."""
    model, node = f"model-{number:05}", f"worker-{number % 16}"
    now = time.time()
    return Record(
        id=operations.operation_id("staging", model, node), job=f"{number:016x}", kind="staging", model=model,
        node=node, owner=OWNER, attempt=1, seq=1, state="running", phase="transferring", bytes_total=2**63 - 1,
        file_name="model-00001-of-00002.safetensors", file_index=1, total_files=12, rate=123456789.5, cause="api",
        started_at=now, updated_at=now, parameters={"digest": "a" * 64},
    )  # fmt: skip


def ticked(held: Record) -> Record:
    """Return the next record of an operation. What it says to have moved is this moment, in ns of the machine."""
    return operations.succeeding(held, time.time(), bytes_done=time.monotonic_ns())


def event(said: Record) -> tuple[str, bytes]:
    """Return where a record stands in the log, and as which bytes."""
    return subjects.operation(said), broadcast.encode(said)


def moment(payload: bytes) -> int:
    """Return the moment that an event of `ticked` carries."""
    return int(msgspec.json.decode(payload)["op"]["bytes_done"])
