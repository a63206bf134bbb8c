from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar

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


async def test_a_stop_iteration_comes_through_as_an_error_that_can_be_awaited() -> None:
    with pytest.raises(RuntimeError, match="StopIteration"):
        async with asyncio.timeout(60):
            await in_thread(threading.Event(), lambda: next(iter(())))


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


@pytest.mark.parametrize("times", [1, 2, 3])
async def test_no_thread_outlives_its_caller_however_often_that_is_cancelled(times: int) -> None:
    began, stop, may_end = asyncio.Event(), threading.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def work() -> None:
        loop.call_soon_threadsafe(began.set)
        may_end.wait()

    task = asyncio.create_task(in_thread(stop, work))
    await began.wait()
    try:
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert stop.is_set()
            assert not task.done()
    finally:
        may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_however_much_is_at_work_it_takes_no_thread_of_the_loops_pool() -> None:
    pool = ThreadPoolExecutor(1)
    asyncio.get_running_loop().set_default_executor(pool)
    together, may_end = threading.Barrier(13), threading.Event()

    def work() -> None:
        together.wait(20)
        may_end.wait()

    works = [asyncio.create_task(in_thread(may_end, work)) for _ in range(12)]
    await in_thread(threading.Event(), together.wait, 20)  # all thirteen are at it at one moment
    assert await asyncio.to_thread(lambda: "free") == "free"
    may_end.set()
    await asyncio.gather(*works)


async def test_the_thread_has_the_works_name_and_the_callers_context_and_keeps_the_process() -> None:
    who = ContextVar("who", default="nobody")
    who.set("the caller")

    def crunch() -> tuple[str, str, bool]:
        seen = who.get()
        who.set("the work")
        return threading.current_thread().name, seen, threading.current_thread().daemon

    assert await in_thread(threading.Event(), crunch) == ("stagecast-crunch", "the caller", False)
    assert who.get() == "the caller"


@pytest.mark.parametrize("fails", [False, True])
def test_a_loop_that_is_closed_meanwhile_is_not_told(fails: bool) -> None:
    began, may_end, threads = threading.Event(), threading.Event(), []

    def work() -> None:
        threads.append(threading.current_thread())
        began.set()
        may_end.wait()
        if fails:
            raise ValueError("nobody hears of it")

    async def begin() -> asyncio.Task[None]:
        task = asyncio.create_task(in_thread(threading.Event(), work))
        await asyncio.sleep(0)
        return task

    loop = asyncio.new_event_loop()
    task = loop.run_until_complete(begin())
    assert began.wait(20)
    loop.call_exception_handler = lambda _: None  # type: ignore[method-assign]  # that the task was pending
    loop.close()
    may_end.set()
    threads[0].join()  # what a thread dies of fails the test as a warning
    assert not task.done()
