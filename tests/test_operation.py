"""What the code that does a program's work sees and says, on the memory bus."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from stagecast.bus.memory import MemoryBus
from stagecast.errors import BadInput, Fenced, Interrupted
from stagecast.operation import Operation
from stagecast.ownership import Ownership, Stop
from stagecast.tracker import Tracker
from tests.conftest import eventually


@pytest.fixture
async def tracker() -> AsyncIterator[Tracker]:
    async with Tracker(MemoryBus(), "p/1", interval=0.0).running() as tracker:
        await tracker.caught_up.wait()
        yield tracker


@pytest.fixture
async def ownership(tracker: Tracker) -> AsyncIterator[Ownership]:
    """Yield the right to write an operation of 100 units, within a task of its own so that a halt stops no test."""
    record, _ = await tracker.open("render", "film", cause="test", bytes_total=100, claim=True)
    given: asyncio.Future[Ownership] = asyncio.get_running_loop().create_future()

    async def body() -> None:
        async with tracker.own(record) as ownership:
            assert ownership is not None
            given.set_result(ownership)
            await asyncio.Event().wait()

    working = asyncio.create_task(body())
    yield await given
    working.cancel()
    await asyncio.wait([working])


async def test_it_counts_from_any_thread_and_everybody_hears_of_it(tracker: Tracker, ownership: Ownership) -> None:
    operation = Operation(ownership)

    def count() -> None:
        for _ in range(10):
            operation.advance(2)

    threads = [threading.Thread(target=count) for _ in range(3)]
    for thread in threads:
        thread.start()
    await asyncio.to_thread(lambda: [thread.join() for thread in threads])
    assert (operation.done, operation.total) == (60, 100)
    await eventually(lambda: tracker.fold.slots["render:film"].record.bytes_done == 60)


async def test_a_correction_is_a_transition_and_less_than_was_told_is_a_new_attempt(
    tracker: Tracker, ownership: Ownership
) -> None:
    operation = Operation(ownership)
    await operation.update(total=50, done=20, phase="verifying")
    record = ownership.record
    assert (record.bytes_total, record.bytes_done, record.phase, record.attempt) == (50, 20, "verifying", 1)
    operation.advance(5)
    assert operation.done == 25
    await operation.update(done=0)
    assert (operation.done, operation.attempt) == (0, 2), "within an attempt progress never falls"
    await operation.update()
    assert (operation.done, operation.attempt, operation.total) == (0, 2, 50)


async def test_what_cannot_be_counted_is_refused(ownership: Ownership) -> None:
    operation = Operation(ownership)
    with pytest.raises(BadInput, match="progress never falls"):
        operation.advance(-1)
    with pytest.raises(TypeError):
        operation.advance(0.5)  # type: ignore[arg-type]
    for wrong in (-1, 1.5, "many"):
        with pytest.raises(BadInput):
            await operation.update(done=wrong)  # type: ignore[arg-type]
        with pytest.raises(BadInput):
            await operation.update(total=wrong)  # type: ignore[arg-type]
    assert operation.done == 0


async def test_parameters_are_to_be_read(ownership: Ownership) -> None:
    with pytest.raises(TypeError):
        Operation(ownership).parameters["x"] = "y"  # type: ignore[index]


@pytest.mark.parametrize(("by", "error"), [("cancel", Interrupted), ("pause", Interrupted), ("fence", Fenced)])
async def test_once_it_is_stopped_the_next_advance_says_so(
    ownership: Ownership, by: Stop, error: type[Exception]
) -> None:
    operation = Operation(ownership)
    operation.advance()
    assert not operation.is_stopped
    ownership.halt(by)
    assert operation.is_stopped
    with pytest.raises(error):
        operation.advance()
    assert operation.done == 1
