"""What one byte tick costs its caller, against a bare call that takes a lock and adds."""

from __future__ import annotations

import asyncio
import threading
import time
import timeit

import nats
from nats.aio.client import Client

from load import alive
from records import event, record, ticked
from stagecast.bus.nats import connect
from stagecast.ownership import Ownership

CALLS = 200_000
REPEATS = 7
PUBLISHED = 1500


class Counter:
    """The least that a counter for several threads can be."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.count = 0

    def add(self, count: int) -> None:
        """Add."""
        with self._lock:
            self.count += count


async def measure(url: str) -> tuple[float, float, float, float]:
    """Return the seconds of a debounced tick and of a bare call; of a tick that publishes, and of a bare publish."""
    async with connect(url, "counting") as bus:
        client = await nats.connect(url)
        async with alive(client):
            held = record(90_000)
            sequence = await bus.log.append(*event(held))
            ownership = Ownership(bus.log, held, sequence)
            counter = Counter()
            ownership.advance(1)
            debounced, bare = [], []
            for _ in range(REPEATS):
                debounced.append(timeit.timeit(lambda: ownership.advance(65536), number=CALLS) / CALLS)
                bare.append(timeit.timeit(lambda: counter.add(65536), number=CALLS) / CALLS)
            published = await _published(bus, client)
        await client.close()
    return min(debounced), min(bare), *published


async def _published(bus: object, client: Client) -> tuple[float, float]:
    """Return the processor seconds of this process for a tick that goes out, and for the client's own publish of it."""
    held = record(90_001)
    sequence = await bus.log.append(*event(held))  # type: ignore[attr-defined]
    ownership = Ownership(bus.log, held, sequence)  # type: ignore[attr-defined]
    began = time.process_time()
    for number in range(PUBLISHED):
        await ownership.change(bytes_done=number)
    ours = (time.process_time() - began) / PUBLISHED
    stream = client.jetstream(timeout=10)
    subject, payload = event(ticked(held))
    began = time.process_time()
    for _ in range(PUBLISHED):
        await stream.publish(subject, payload)
    await asyncio.sleep(0)
    return ours, (time.process_time() - began) / PUBLISHED
