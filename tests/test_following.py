"""Following operations to their ends, whatever of their story is missed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import msgspec
import pytest

from stagecast.client import Client
from stagecast.following import follow
from stagecast.rows import Row
from tests.replica_stand_in import ReplicaStandIn, answering, replica_stand_in, row, streaming


@pytest.fixture
async def replica() -> AsyncIterator[ReplicaStandIn]:
    async with replica_stand_in() as replica:
        yield replica


def as_row(**changes: object) -> Row:
    return msgspec.convert(row(**changes), Row)  # type: ignore[arg-type]


def event(name: str, data: object) -> str:
    return f"event: {name}\nid: a-1\ndata: {json.dumps(data)}\n\n"


async def told(replica: ReplicaStandIn, *rows: Row) -> list[tuple[str, str, int]]:
    async with Client(replica.url) as client:
        return [(word.job_id, word.state, word.progress) async for word in follow(client, rows)]


async def test_every_word_until_all_have_ended(replica: ReplicaStandIn) -> None:
    replica.streams.put_nowait(
        streaming(
            event("snapshot", {"operations": [row("one"), row("two"), row("other")]}),
            event("operation", row("one", progress=50)),
            event("operation", row("other", state="failed")),
            event("operation", row("two", state="failed", error="the disk is full")),
            event("operation", row("one", state="succeeded", progress=100)),
            ends=False,
        )
    )
    assert await told(replica, as_row(job="one"), as_row(job="two")) == [
        ("one", "running", 40),
        ("two", "running", 40),
        ("one", "running", 50),
        ("two", "failed", 40),
        ("one", "succeeded", 100),
    ]


async def test_what_ended_before_the_stream_began_is_looked_up(replica: ReplicaStandIn) -> None:
    replica.streams.put_nowait(streaming(event("snapshot", {"operations": []}), ends=False))
    replica.routes["GET /api/operations/job-1"] = answering(row(state="succeeded"))
    assert await told(replica, as_row()) == [("job-1", "succeeded", 40)]


async def test_what_has_ended_already_is_not_waited_for(replica: ReplicaStandIn) -> None:
    assert await told(replica, as_row(state="succeeded")) == []
