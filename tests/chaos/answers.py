"""Hand-made answers for the judge."""

from __future__ import annotations

from chaos.judge import Answer
from stagecast import rows
from stagecast.messages import Record, State
from stagecast.revision import Revision
from stagecast.rows import Row

STREAM = "a"


def row(
    job: str = "job", state: State = "running", *, done: int = 0, attempt: int = 1, owner: str = "worker-1/aa"
) -> Row:
    record = Record(
        id=f"staging:{job}@worker-1", job=job, kind="staging", model=job, node="worker-1", owner=owner,
        attempt=attempt, state=state, phase="transferring", bytes_done=done, bytes_total=100,
    )  # fmt: skip
    return rows.row(record)


def answer(
    time: float, sequence: int, *shown: Row, source: str = "browser", replica: str = "replica-1",
    stream: str = STREAM, degraded: bool = False, took: float = 0.0, body: bytes | None = None,
) -> Answer:  # fmt: skip
    """Return an answer that came at ``time``; its body is its own revision's unless another one is given."""
    at = Revision(stream, sequence)
    said = body if body is not None else str(at).encode()
    return Answer(source, replica, time - took, time, at, degraded, shown, said)
