from __future__ import annotations

import asyncio
import threading

import pytest

from stagecast.work import in_thread


async def test_it_returns_what_the_work_returns_from_another_thread() -> None:
    def work(one: int, *, two: int) -> tuple[int, int]:
        return one + two, threading.get_ident()

    total, thread = await in_thread(threading.Event(), work, 1, two=2)
    assert total == 3
    assert thread != threading.get_ident()


async def test_what_the_work_raises_comes_through() -> None:
    def work() -> None:
        raise ValueError("no such tensor")

    stop = threading.Event()
    with pytest.raises(ValueError, match="no such tensor"):
        await in_thread(stop, work)
    assert not stop.is_set()


@pytest.mark.parametrize("fails", [False, True])
async def test_cancelling_stops_the_work_and_outlives_it(fails: bool) -> None:
    began, stop, ended = asyncio.Event(), threading.Event(), []
    loop = asyncio.get_running_loop()

    def work() -> None:
        loop.call_soon_threadsafe(began.set)
        stop.wait()
        ended.append("ended")
        if fails:
            raise ValueError("it was in the middle of something")

    task = asyncio.create_task(in_thread(stop, work))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["ended"]
