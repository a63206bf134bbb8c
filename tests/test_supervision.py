from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from stagecast.backend import Backend, running
from stagecast.supervision import Deaths, State, delay, keep_running
from tests.conftest import eventually
from tests.model_server import die, is_gone, server_recipe, silent


def test_the_delay_doubles_up_to_half_a_minute() -> None:
    assert [delay(deaths) for deaths in range(9)] == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert delay(10**9) == 30.0


def test_deaths_are_forgotten_after_serving_steadily_and_only_then() -> None:
    thrice = Deaths().after(0.0, 1.0).after(2.0, 3.0).after(None, 4.0)
    assert thrice.next_delay() == 2.0
    assert thrice.after(100.0, 159.9).next_delay() == 4.0
    assert thrice.after(100.0, 160.0).next_delay() == 0.5


def test_what_never_got_ready_is_given_up() -> None:
    deaths = Deaths()
    delays = []
    for _ in range(5):
        deaths = deaths.after(None, 1000.0)
        delays.append(deaths.next_delay())
    assert delays == [0.5, 1.0, 2.0, 4.0, None]


def test_what_has_served_is_never_given_up() -> None:
    deaths = Deaths().after(0.0, 1.0)
    for _ in range(20):
        deaths = deaths.after(None, 1000.0)
    assert deaths.next_delay() == 30.0


async def test_one_that_dies_is_reported_and_started_again(tmp_path: Path) -> None:
    recipe = server_recipe(tmp_path)
    said: list[tuple[State, str]] = []
    started: list[Backend] = []

    async def run(ready: Callable[[], None]) -> str:
        async with running(recipe, "m", tmp_path, tmp_path) as one:
            await one.until_ready(recipe, silent)
            started.append(one)
            ready()
            return await one.ended()

    keeper = asyncio.create_task(keep_running(run, lambda state, detail: said.append((state, detail))))
    await eventually(lambda: len(started) == 1)
    await die(started[0])
    await eventually(lambda: len(started) == 2)
    assert said == [
        ("loading", ""),
        ("ready", ""),
        ("restarting", "it ended with exit code 3: out of luck; next try in 0.5 s"),
        ("loading", ""),
        ("ready", ""),
    ]
    keeper.cancel()
    with pytest.raises(asyncio.CancelledError):
        await keeper
    assert all(is_gone(one.pid) for one in started)


async def test_one_that_cannot_load_is_given_up_with_its_cause(tmp_path: Path) -> None:
    recipe = server_recipe(tmp_path, "crash")
    said: list[tuple[State, str]] = []

    async def run(ready: Callable[[], None]) -> str:
        async with running(recipe, "m", tmp_path, tmp_path) as one:
            await one.until_ready(recipe, silent)
            return await one.ended()

    await keep_running(run, lambda state, detail: said.append((state, detail)), tries=2)
    assert [state for state, _ in said] == ["loading", "restarting", "loading", "failed"]
    assert "no such tensor" in said[-1][1]
