from __future__ import annotations

import asyncio
import gc

import pytest

from tests.simulation.loop import Loop, Process, Violation


async def count(told: list[str], name: str, times: int) -> None:
    for number in range(times):
        told.append(f"{name}{number}")
        await asyncio.sleep(0)


def interleaved(seed: int) -> list[str]:
    loop, told = Loop(seed), []
    for name in "ab":
        loop.process(name).spawn(count(told, name, 5))
    loop.run(lambda: False, 1.0)
    return told


def test_within_a_process_asyncios_order_holds() -> None:
    loop, told = Loop(0), []
    process = loop.process("p")
    for number in range(5):
        process.post(told.append, number)
    loop.run(lambda: False, 1.0)
    assert told == [0, 1, 2, 3, 4]


def test_between_processes_the_seed_decides_and_nothing_else() -> None:
    found = {tuple(interleaved(seed)) for seed in range(30)}
    assert len(found) > 10
    assert all([name for name in told if name[0] == "a"] == [f"a{number}" for number in range(5)] for told in found)
    assert interleaved(7) == interleaved(7)


def test_time_passes_only_where_nobody_has_anything_to_do() -> None:
    loop, seen = Loop(0), []

    async def sleep() -> None:
        for seconds in (3600.0, 0.5):
            await asyncio.sleep(seconds)
            seen.append(asyncio.get_running_loop().time())

    loop.process("p").spawn(sleep())
    assert not loop.run(lambda: False, 7200.0)
    assert seen == [3600.0, 3600.5]
    assert loop.time() == 7200.0


def test_of_timers_for_one_moment_the_first_comes_first_and_a_cancelled_one_never() -> None:
    loop, told = Loop(0), []
    process = loop.process("p")
    process.post_at(1.0, told.append, "first")
    process.post_at(1.0, told.append, "cancelled").cancel()
    process.post_at(1.0, told.append, "second")
    loop.run(lambda: False, 2.0)
    assert told == ["first", "second"]


def test_a_paused_process_takes_no_step_and_then_goes_on_in_order() -> None:
    loop, told = Loop(0), []
    sleeper, other = loop.process("sleeper"), loop.process("other")
    sleeper.spawn(count(told, "s", 3))
    loop.world.post_at(0.0, sleeper.pause)
    sleeper.pause()
    for at in (1.0, 2.0):
        sleeper.post_at(at, told.append, f"at {at}")
        other.post_at(at, told.append, f"other {at}")
    loop.world.post_at(3.0, sleeper.wake)
    loop.run(lambda: False, 4.0)
    assert told == ["other 1.0", "other 2.0", "s0", "at 1.0", "at 2.0", "s1", "s2"]


def test_a_killed_process_takes_no_further_step() -> None:
    loop, told = Loop(0), []
    process = loop.process("p")
    process.spawn(count(told, "p", 1000))
    process.countdown, process.trigger = 5, process.kill
    loop.run(lambda: False, 1.0)
    process.post(told.append, "late")
    process.post_at(2.0, told.append, "later")
    loop.run(lambda: False, 3.0)
    assert told == [f"p{number}" for number in range(5)]


@pytest.mark.parametrize("steps", range(1, 9))
def test_a_fault_lands_between_any_two_steps(steps: int) -> None:
    loop, told = Loop(0), []
    process = loop.process("p")
    process.spawn(count(told, "p", 20))
    process.countdown, process.trigger = steps, lambda: told.append("fault")
    loop.run(lambda: False, 1.0)
    assert told.index("fault") == steps


def test_what_is_alive_at_the_end_is_closed_without_a_word() -> None:
    """Also what waits again on its way out. Warnings are errors here, of finalizers too."""
    loop, reached = Loop(0), []

    async def stubborn(process: Process) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(1)
            process.post(reached.append, "the outside")

    for name in "ab":
        process = loop.process(name)
        process.spawn(stubborn(process))
    loop.run(lambda: False, 1.0)
    loop.destroy()
    gc.collect()
    loop.run(lambda: False, 10.0)
    assert reached == []


def test_a_violation_inside_of_a_task_stops_the_run() -> None:
    loop = Loop(0)

    async def find() -> None:
        loop.violation = Violation("L0: broken")

    loop.process("p").spawn(find())
    with pytest.raises(Violation, match="L0"):
        loop.run(lambda: False, 1.0)


def test_what_asyncio_offers_works_in_virtual_time() -> None:
    loop = Loop(0)

    async def work() -> str:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await asyncio.Event().wait()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 5)
        queue: asyncio.Queue[int] = asyncio.Queue()
        asyncio.get_running_loop().call_later(5, queue.put_nowait, 7)
        results = await asyncio.gather(asyncio.sleep(1, "slept"), queue.get())
        return f"{results} {asyncio.get_running_loop().time()}"

    assert loop.run_until_complete(work()) == "['slept', 7] 15.0"
