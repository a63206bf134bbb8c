"""A follower of a log that keeps what it hears."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

from stagecast.bus import Bus, CaughtUp, Heard
from tests.conftest import eventually


@asynccontextmanager
async def following(bus: Bus) -> AsyncIterator[list[Heard]]:
    """Yield what a follower of the log has heard so far, from when it has caught up."""
    heard: list[Heard] = []

    async def follow() -> None:
        async with aclosing(bus.log.follow()) as follower:
            async for each in follower:
                heard.append(each)

    task = asyncio.create_task(follow())
    try:
        await eventually(lambda: heard and isinstance(heard[-1], CaughtUp))
        yield heard
    finally:
        task.cancel()
        await asyncio.wait([task])
