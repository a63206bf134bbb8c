"""From an owner's append to a waiter on another replica, against core NATS with the same bytes and processes."""

from __future__ import annotations

import asyncio
import random
import statistics
from dataclasses import dataclass

import nats
from nats.aio.client import Client

from load import alive
from plain import BARE
from processes import Child, child
from records import event, record, ticked
from stagecast.bus import Log
from stagecast.bus.nats import connect

ROUNDS = 3000
WARM_UP = 200
PAUSE = 0.004
SETTLE = 0.2


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


@dataclass(frozen=True)
class Latencies:
    """From the moment something is said: ours until a waiter there goes on, the bare ones until the callback there."""

    visible: Spread
    core: Spread
    stream: Spread
    bare: Spread
    """A consumer of JetStream and core NATS, nats-py alone at both ends: what a log costs whoever keeps one."""


async def measure(url: str) -> Latencies:
    """Return how long ours took and how long the bare ones did, between the same two processes."""
    async with connect(url, "owner") as bus:
        client = await nats.connect(url)
        async with alive(client):
            with child("served.py", url) as peer:
                await _say(bus.log, client, peer)
                visible, core = map(spread, await asyncio.to_thread(peer.ask, "latencies"))
            with child("plain.py", url) as plain:
                await _say_bare(client)
                bare, stream = map(spread, await asyncio.to_thread(plain.ask, "latencies"))
        await client.close()
    return Latencies(visible, core, stream, bare)


async def _say(log: Log, client: Client, peer: Child) -> None:
    """Write to the log and publish bare, by turns, each at a moment that nothing else sets."""
    held = record(0)
    sequence = await log.append(*event(held))
    await asyncio.to_thread(peer.ask, "watch", id=held.id)
    for number in range(ROUNDS + WARM_UP):
        if number == WARM_UP:
            await asyncio.to_thread(peer.ask, "latencies")
        await asyncio.sleep(random.uniform(0.0, PAUSE))
        held = ticked(held)
        sequence = await log.append(*event(held), expected=sequence)
        await asyncio.sleep(random.uniform(0.0, PAUSE))
        await client.publish(BARE, event(ticked(held))[1])
    await asyncio.sleep(SETTLE)


async def _say_bare(client: Client) -> None:
    """Publish to JetStream and to nobody's keeping by turns, as nats-py does by itself."""
    stream, held = client.jetstream(timeout=10), record(1)
    for _ in range(ROUNDS):
        await asyncio.sleep(random.uniform(0.0, PAUSE))
        held = ticked(held)
        await stream.publish(*event(held))
        await asyncio.sleep(random.uniform(0.0, PAUSE))
        await client.publish(BARE, event(ticked(held))[1])
    await asyncio.sleep(SETTLE)
