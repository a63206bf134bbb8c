"""From an owner's append to a waiter on another replica, against core NATS with the same bytes and processes."""

from __future__ import annotations

import asyncio
import random
import statistics
from dataclasses import dataclass

import nats
from nats.aio.client import Client

from load import alive
from processes import child
from records import event, moment, record, ticked
from served import BARE
from stagecast.bus.nats import connect

ROUNDS = 3000
WARM_UP = 200


@dataclass(frozen=True)
class Spread:
    """Of some durations, in seconds."""

    p50: float
    p99: float
    count: int


def spread(nanoseconds: list[int]) -> Spread:
    """Return what is typical, and what is exceeded once in a hundred times."""
    cuts = statistics.quantiles(nanoseconds, n=100)
    return Spread(cuts[49] / 1e9, cuts[98] / 1e9, len(nanoseconds))


async def measure(url: str) -> tuple[Spread, Spread, Spread, Spread]:
    """Return how long ours took and how long the bare one did, each to be visible there and to be acknowledged here."""
    with child("served.py", url) as peer:
        async with connect(url, "owner") as bus:
            client = await nats.connect(url)
            async with alive(client):
                held = record(0)
                sequence = await bus.log.append(*event(held))
                await asyncio.to_thread(peer.ask, "watch", id=held.id)
                acknowledged: list[int] = []
                for number in range(ROUNDS + WARM_UP):
                    if number == WARM_UP:
                        await asyncio.to_thread(peer.ask, "latencies")
                    await asyncio.sleep(random.uniform(0.0, 0.004))
                    held = ticked(held)
                    subject, payload = event(held)
                    sequence = await bus.log.append(subject, payload, expected=sequence)
                    acknowledged.append(ticked(held).bytes_done - held.bytes_done)
                    await asyncio.sleep(random.uniform(0.0, 0.004))
                    _, payload = event(ticked(held))
                    await client.publish(BARE, payload)
                await asyncio.sleep(0.2)
                visible, bare = await asyncio.to_thread(peer.ask, "latencies")
                published = await _acknowledged(client, held.id)
            await client.close()
    return spread(visible), spread(bare), spread(acknowledged[WARM_UP:]), spread(published)


async def _acknowledged(client: Client, identifier: str) -> list[int]:
    """Return how long the client's own publish to JetStream takes, with the same bytes."""
    stream, held = client.jetstream(timeout=10), record(0)
    assert held.id == identifier
    found = []
    for _ in range(ROUNDS // 3):
        held = ticked(held)
        await stream.publish(*event(held))
        found.append(ticked(held).bytes_done - held.bytes_done)
    assert moment(event(held)[1]) == held.bytes_done
    return found
