from __future__ import annotations

import asyncio

import pytest

from stagecast.bus.asking import Interruptions, cancellable


async def test_a_cancellation_that_comes_together_with_the_answer_is_not_lost() -> None:
    async def swallowing() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "the answer"
        return ""

    async def ask() -> None:
        await cancellable(swallowing())

    asking = asyncio.create_task(ask())
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.wait([asking])
    assert asking.cancelled()


async def test_a_connection_that_changes_ends_what_is_waited_for() -> None:
    """An answer that was asked for on a connection that is gone never comes; its time-out need not be waited for."""
    interruptions, ended = Interruptions(), []

    async def ask(name: str) -> None:
        try:
            async with interruptions.watched():
                await asyncio.Event().wait()
        except TimeoutError:
            ended.append(name)

    asking = [asyncio.create_task(ask(name)) for name in "ab"]
    await asyncio.sleep(0)
    interruptions.interrupt()
    await asyncio.wait(asking)
    assert sorted(ended) == ["a", "b"]


async def test_what_has_its_answer_is_left_alone() -> None:
    interruptions = Interruptions()
    async with interruptions.watched():
        await asyncio.sleep(0)
    interruptions.interrupt()
    await asyncio.sleep(0)


async def test_cancelling_whoever_waits_is_no_time_out() -> None:
    interruptions = Interruptions()

    async def ask() -> None:
        async with interruptions.watched():
            await asyncio.Event().wait()

    asking = asyncio.create_task(ask())
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
