"""Each process goes by what the log allows it, at once; newcomers leave the others time to hear of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from math import inf

import msgspec
import pytest

from stagecast import operations, subjects, throttle
from stagecast.messages import Limits, NodeLimits, Record
from stagecast.throttle import Throttle
from stagecast.tracker import Tracker
from tests.conftest import eventually
from tests.peers import Peers, a_record, gathered


@pytest.fixture(params=["memory", "nats"])
async def peers(request: pytest.FixtureRequest) -> AsyncIterator[Peers]:
    async with gathered(request) as peers:
        yield peers


async def say(tracker: Tracker, generation: int, rate: int = 0, **nodes: NodeLimits) -> None:
    said = Limits(rate=rate, nodes=nodes, generation=generation)
    await tracker.say(subjects.LIMITS, msgspec.json.encode(said))


async def move(tracker: Tracker, model: str = "m") -> tuple[Record, int]:
    node = tracker.process.partition("/")[0]
    record = a_record(node=node, model=model, owner=tracker.process, phase="transferring")
    _, sequence = await tracker.standing(record.id, "staging", model, node)
    return record, (await tracker.write(record, sequence)).sequence


async def test_a_limit_is_in_force_while_transfers_run_and_the_worker_s_own_stays_an_upper_bound(
    peers: Peers,
) -> None:
    a, b = await peers.tracker("a/1"), await peers.tracker("b/1")
    async with Throttle(a).running() as free, Throttle(b, 30).running() as bound:
        assert (free.limit.rate, bound.limit.rate) == (inf, 30)
        await say(a, 1, a=NodeLimits(rate=20), b=NodeLimits(rate=50))
        await eventually(lambda: (free.limit.rate, bound.limit.rate) == (20, 30))
        await say(b, 2, b=NodeLimits(rate=10))
        await eventually(lambda: (free.limit.rate, bound.limit.rate) == (inf, 10))
        await say(b, 3)
        await eventually(lambda: (free.limit.rate, bound.limit.rate) == (inf, 30))


async def test_the_cluster_s_rate_is_divided_over_those_who_move_and_never_exceeded(
    peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throttle, "SETTLING", 0.1)
    trackers = [await peers.tracker(f"{name}/1") for name in "abc"]
    a, b, c = trackers
    await say(a, 1, 600)
    seen: list[float] = []
    async with Throttle(a).running() as one, Throttle(b).running() as two, Throttle(c).running() as three:
        rates = [each.limit for each in (one, two, three)]
        at_work = list(rates)

        async def watch() -> None:
            while True:
                seen.append(sum(limit.rate for limit in at_work))
                await asyncio.sleep(0)

        await eventually(lambda: [limit.rate for limit in rates] == [1, 1, 1])
        watching = asyncio.create_task(watch())
        moved, at = await move(a)
        await eventually(lambda: [limit.rate for limit in rates] == [600, 1, 1])
        await move(b)
        await eventually(lambda: [limit.rate for limit in rates] == [300, 300, 1])
        await move(c)
        await eventually(lambda: [limit.rate for limit in rates] == [200, 200, 200])
        at_work.remove(one.limit)  # who ends has stopped before it says so
        await a.write(operations.ended(moved, "succeeded", 9.0), at)
        await eventually(lambda: [limit.rate for limit in rates] == [1, 300, 300])
        watching.cancel()
    # Who moves nothing has a rate of 1, because it cannot be 0.
    assert max(seen) <= 602
