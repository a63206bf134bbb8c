"""The simulated server and client are true to the real ones: the bus on them passes the same contract."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import Any

import pytest

from stagecast.bus import Anew, CaughtUp, Heard, Lost
from stagecast.bus.nats import NatsBus
from stagecast.errors import AppendConflict, BusUnavailable, NobodyListens
from stagecast.messages import Entry
from tests.bus import test_contract
from tests.simulation.client import Client
from tests.simulation.loop import Loop
from tests.simulation.network import Noise
from tests.simulation.server import Server

CONTRACT = [
    test for name, test in vars(test_contract).items() if name.startswith("test_") and inspect.iscoroutinefunction(test)
]
ONE, TWO = "staging.one.progress", "staging.two.progress"


class Bench:
    """A server, and processes with a bus on it."""

    def __init__(self, seed: int = 0, noise: Noise | None = None) -> None:
        self.loop = Loop(seed)
        self.server = Server(self.loop, noise=noise)
        self.clients: list[Client] = []
        self.heard: list[Heard] = []

    async def bus(self) -> NatsBus:
        client = Client(self.server, self.loop.current)
        self.clients.append(client)
        await client.connect()
        bus = NatsBus(client, chance=self.loop.random)  # type: ignore[arg-type]
        client.changed = bus.wake
        await bus.log.ensure()
        await bus.history.ensure()
        return bus

    async def follow(self, bus: NatsBus) -> None:
        async with aclosing(bus.log.follow()) as follower:
            async for each in follower:
                self.heard.append(each)

    def run(self, work: Callable[[], Coroutine[Any, Any, None]], limit: float = 600.0) -> None:
        """Run work as a process of its own, and let what it found wrong be seen."""
        task = self.loop.process("test").spawn(work())
        assert self.loop.run(task.done, limit), "it hangs"
        try:
            task.result()
        finally:
            self.loop.destroy()
        assert self.loop.failures == []

    def entries(self) -> list[tuple[str, bytes]]:
        return [(each.subject, each.payload) for each in self.heard if isinstance(each, Entry)]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("test", CONTRACT, ids=lambda test: test.__name__)
def test_the_contract_of_the_bus(test: Callable[[NatsBus], Coroutine[Any, Any, None]], seed: int) -> None:
    bench = Bench(seed)

    async def work() -> None:
        await test(await bench.bus())

    bench.run(work)


@pytest.mark.parametrize("empty", [False, True])
def test_a_follower_goes_on_where_it_was_or_begins_anew(empty: bool) -> None:
    bench = Bench()

    async def work() -> None:
        bus = await bench.bus()
        asyncio.get_running_loop().create_task(bench.follow(bus))
        before = await bus.log.append(ONE, b"1")
        await until(lambda: bench.entries() == [(ONE, b"1")])
        bench.server.kill()
        await until(lambda: isinstance(bench.heard[-1], Lost))
        with pytest.raises(BusUnavailable):
            await bus.log.append(ONE, b"lost")
        bench.server.start(empty=empty)
        await until(lambda: isinstance(bench.heard[-1], CaughtUp))
        assert sum(isinstance(each, Anew) for each in bench.heard) == 1 + empty
        if empty:
            with pytest.raises(AppendConflict):
                await bus.log.append(ONE, b"late", expected=before)
        await bus.log.append(TWO, b"2", expected=0)
        await until(lambda: bench.entries() == [(ONE, b"1"), (TWO, b"2")])

    bench.run(work)


def test_a_silent_cut_is_noticed_late_and_what_was_sent_meanwhile_may_arrive() -> None:
    arrived = set()
    for seed in range(20):
        bench = Bench(seed)

        async def work(bench: Bench = bench) -> None:
            bus = await bench.bus()
            loop = asyncio.get_running_loop()
            bench.clients[0].cut()
            cut_at = loop.time()
            with pytest.raises(BusUnavailable):
                await bus.log.append(ONE, b"1", expected=0)
            assert bus.is_connected, "it is noticed by missing pongs only"
            await until(lambda: not bus.is_connected)
            assert 4.0 <= loop.time() - cut_at <= 6.1
            bench.clients[0].heal()
            await until(lambda: bus.is_connected)
            await asyncio.sleep(1)
            arrived.add(await bus.log.last(ONE) is not None)

        bench.run(work)
    assert arrived == {True, False}


def test_a_server_that_hangs_answers_everything_once_it_goes_on() -> None:
    bench = Bench()

    async def work() -> None:
        bus = await bench.bus()
        bench.server.process.pause()
        with pytest.raises(BusUnavailable):
            await bus.log.append(ONE, b"1", expected=0)
        bench.server.process.wake()
        await asyncio.sleep(0.5)
        standing = await bus.log.last(ONE)
        assert standing is not None
        assert standing.payload == b"1"

    bench.run(work)


@pytest.mark.parametrize("noise", [Noise(drop_delivery=0.1), Noise(repeat_delivery=0.3), Noise(lag=0.5)])
def test_deliveries_that_are_dropped_or_repeated_or_late_are_made_good(noise: Noise) -> None:
    bench = Bench(3, noise)

    async def work() -> None:
        bus = await bench.bus()
        asyncio.get_running_loop().create_task(bench.follow(bus))
        for number in range(60):
            await bus.log.append(f"staging.{number % 20}.progress", str(number).encode())
        await until(lambda: bench.entries()[-1:] == [("staging.19.progress", b"59")])

    bench.run(work)
    sequences = [each.sequence for each in bench.heard if isinstance(each, Entry)]
    assert sequences == sorted(set(sequences))
    assert dict(bench.entries()) == {f"staging.{number % 20}.progress": str(number).encode() for number in range(60)}


@pytest.mark.parametrize("noise", [Noise(), Noise(drop_delivery=0.02), Noise(repeat_delivery=0.1), Noise(lag=0.1)])
def test_a_busy_log_is_followed_with_rests_and_nothing_is_lost(noise: Noise, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, rests, rest = Bench(5, noise), list[float](), Client.rest

    def noted(client: Client, seconds: float) -> None:
        rests.append(seconds)
        rest(client, seconds)

    monkeypatch.setattr(Client, "rest", noted)

    async def write(number: int) -> None:
        other = await bench.bus()
        for turn in range(40):
            await other.log.append(f"staging.{number}.progress", str(turn).encode())

    async def work() -> None:
        asyncio.get_running_loop().create_task(bench.follow(await bench.bus()))
        writing = [bench.loop.process(f"writer {number}").spawn(write(number)) for number in range(8)]
        await until(lambda: all(each.done() for each in writing))
        await until(lambda: dict(bench.entries()) == {f"staging.{number}.progress": b"39" for number in range(8)})

    bench.run(work)
    assert rests
    sequences = [each.sequence for each in bench.heard if isinstance(each, Entry)]
    assert sequences == sorted(set(sequences))


def test_an_answer_that_is_lost_leaves_the_message_there() -> None:
    bench = Bench()

    async def work() -> None:
        bus = await bench.bus()
        bench.server.noise.drop_answer = 1.0
        with pytest.raises(BusUnavailable):
            await bus.log.append(ONE, b"1", expected=0)
        bench.server.noise.drop_answer = 0.0
        with pytest.raises(AppendConflict):
            await bus.log.append(ONE, b"1", expected=0)

    bench.run(work)


def test_whoever_dies_answers_nobody() -> None:
    bench = Bench()

    async def work() -> None:
        bus = await bench.bus()
        other = bench.loop.process("other")

        async def echo(payload: bytes) -> bytes:
            return payload

        async def answer() -> None:
            theirs = await bench.bus()
            await theirs.answer("stagecast.command.x", echo)

        answering = other.spawn(answer())
        await until(answering.done)
        assert await bus.request("stagecast.command.x", b"hello", 1.0) == b"hello"
        bench.clients[1].die()
        other.kill()
        await asyncio.sleep(0.1)
        with pytest.raises(NobodyListens):
            await bus.request("stagecast.command.x", b"hello", 1.0)

    bench.run(work)
