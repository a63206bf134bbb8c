"""What only a real nats-server can do: stop, die, come back, come back empty, be too small a server."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from nats.errors import TimeoutError as NatsTimeout
from nats.js import JetStreamContext
from nats.js.api import AccountInfo

from stagecast.bus import Anew, CaughtUp, Lost
from stagecast.bus.nats import NatsBus, connect
from stagecast.errors import AppendConflict, BusUnavailable, BusUnsuitable
from stagecast.messages import Entry
from stagecast.settings import Bounds
from tests.bus.following import following
from tests.conftest import NatsServer, eventually, free_port

ONE, TWO = "staging.one.progress", "staging.two.progress"


@pytest.mark.parametrize("kill", [False, True])
async def test_a_follower_resumes_where_it_was_when_the_server_comes_back(nats_server: NatsServer, kill: bool) -> None:
    async with (
        connect(nats_server.url, "one") as bus,
        connect(nats_server.url, "two") as other,
        following(bus) as heard,
    ):
        await other.log.append(ONE, b"1")
        await eventually(lambda: isinstance(heard[-1], Entry))
        nats_server.stop(kill=kill)
        await eventually(lambda: isinstance(heard[-1], Lost))
        with pytest.raises(BusUnavailable):
            await bus.log.append(ONE, b"lost")
        nats_server.start()
        await eventually(lambda: isinstance(heard[-1], CaughtUp) and other.is_connected)
        await other.log.append(TWO, b"2")
        await eventually(lambda: isinstance(heard[-1], Entry))
    kinds = [type(each).__name__ for each in heard]
    assert kinds == ["Anew", "CaughtUp", "Entry", "Lost", "CaughtUp", "Entry"]


async def test_nobody_waits_for_an_answer_on_a_connection_that_is_gone(nats_server: NatsServer) -> None:
    async with connect(nats_server.url, "one") as bus:
        bus.log._stream._timeout = 1000.0
        nats_server.freeze()
        asked = [
            asyncio.create_task(bus.log.append(ONE, b"1")),
            asyncio.create_task(bus.log.last(ONE)),
            asyncio.create_task(bus.log.ensure()),
        ]
        await eventually(lambda: bus.log._questions.count == 3)
        bus.wake()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(each) for each in answers] == [BusUnavailable, BusUnavailable, ConnectionError]
        assert bus.log._questions.count == 0
        nats_server.thaw()


async def test_a_server_that_comes_back_empty_begins_anew(nats_server: NatsServer) -> None:
    async with connect(nats_server.url, "one") as bus, following(bus) as heard:
        for number in range(5):
            await bus.log.append(f"staging.{number}.progress", str(number).encode())
        await eventually(lambda: sum(isinstance(each, Entry) for each in heard) == 5)
        nats_server.stop(kill=True)
        nats_server.empty()
        nats_server.start()
        await eventually(lambda: sum(isinstance(each, Anew) for each in heard) == 2)
        await eventually(lambda: isinstance(heard[-1], CaughtUp))
        identities = [each.identity for each in heard if isinstance(each, Anew)]
        assert identities[0] != identities[1]
        caught_up = heard[-1]
        first = await bus.log.append(ONE, b"new", expected=0)
        assert caught_up == CaughtUp(first - 1)
        await eventually(lambda: isinstance(heard[-1], Entry))


async def test_a_stream_made_anew_takes_no_number_of_the_one_before(nats_server: NatsServer) -> None:
    """A writer that has not heard of the loss yet must not hit, by its last sequence, what stands there now (L6)."""
    async with connect(nats_server.url, "one") as bus:
        before = await bus.log.append(ONE, b"before", expected=0)
        nats_server.stop(kill=True)
        nats_server.empty()
        nats_server.start()
        await eventually(lambda: bus.is_connected)
        async with following(bus) as heard:
            now = await bus.log.append(ONE, b"now", expected=0)
            await eventually(lambda: isinstance(heard[-1], Entry))
        assert abs(now - before) > 1000
        with pytest.raises(AppendConflict):
            await bus.log.append(ONE, b"late", expected=before)


async def test_two_that_make_the_stream_at_once_have_the_same_one(nats_server: NatsServer) -> None:
    async with connect(nats_server.url, "one") as one, connect(nats_server.url, "two") as two:
        await one.log._stream.delete_stream("STAGECAST")
        infos = await asyncio.gather(*(bus.log.ensure() for bus in (one, two, one, two)))
        assert len({info.state.first_seq for info in infos}) == 1


async def test_thousands_of_records_are_caught_up_whole(nats_server: NatsServer) -> None:
    async with connect(nats_server.url, "one") as bus:
        subjects = [f"staging.{number}.progress" for number in range(3000)]
        # Not all at once: each has two seconds to be answered in.
        for some in (subjects[at : at + 100] for at in range(0, len(subjects), 100)):
            await asyncio.gather(*(bus.log.append(subject, subject.encode()) for subject in some))
        async with following(bus) as heard:
            assert sorted(each.subject for each in heard if isinstance(each, Entry)) == sorted(subjects)


async def test_other_bounds_of_the_history_hold_from_the_next_start_of_a_replica(nats_server: NatsServer) -> None:
    ends = [f"stagecast.history.{number}-1" for number in range(5)]

    async def standing(bus: NatsBus) -> list[str]:
        return [each for each in ends if await bus.history.last(each)]

    async def limits(bus: NatsBus) -> tuple[object, object, object]:
        config = (await bus.history.ensure()).config
        return config.max_msgs, config.max_age, config.description

    async with connect(nats_server.url, "one") as bus:
        first, *_ = [await bus.history.append(each, b"") for each in ends]
        assert await limits(bus) == (10_000, 30 * 86400.0, None)
        config = (await bus.history.ensure()).config
        await bus.history._stream.update_stream(config.evolve(description="an operator's own"))
    async with connect(nats_server.url, "replica", bounds=Bounds(count=3, age=3600.0)) as bus:
        assert await standing(bus) == ends[2:]
        assert await limits(bus) == (3, 3600.0, "an operator's own")
        async with connect(nats_server.url, "worker") as worker:
            assert await limits(worker) == (3, 3600.0, "an operator's own"), "a worker is told none, and changes none"
        assert await bus.history.append(ends[0], b"", expected=0) == first + 5
        assert await standing(bus) == [ends[0], *ends[3:]]
        info = await bus.log.ensure()
        assert (info.config.max_msgs, info.config.max_age or 0) == (-1, 0), "the log itself has none"


async def test_a_core_subscriber_follows_along(nats_server: NatsServer) -> None:
    import nats

    plain = await nats.connect(nats_server.url)
    subscription = await plain.subscribe("staging.*.progress")
    await plain.flush()
    async with connect(nats_server.url, "one") as bus:
        await bus.log.append(ONE, b"1")
        assert (await subscription.next_msg(timeout=60)).data == b"1"
    await plain.close()


async def test_no_server_is_said_plainly() -> None:
    with pytest.raises(BusUnavailable, match=r"no NATS server at .*; check the address \(--nats\)") as caught:
        async with connect(f"nats://127.0.0.1:{free_port()}", "one", patience=0.2):
            pass
    assert "what runs goes on" not in caught.value.message, "nothing runs yet"


async def test_a_server_without_jetstream_is_said_plainly(tmp_path: Path) -> None:
    server = NatsServer(tmp_path, "--no_advertise")
    try:
        with pytest.raises(BusUnsuitable, match="start nats-server with -js"):
            async with connect(server.url, "one"):
                pass
    finally:
        server.stop(kill=True)


async def test_a_server_that_is_slow_with_its_streams_is_asked_again(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, answered = [NatsTimeout(), TimeoutError(), ConnectionResetError()], JetStreamContext.account_info

    async def late(context: JetStreamContext) -> AccountInfo:
        if answers:
            raise answers.pop()
        return await answered(context)

    monkeypatch.setattr(JetStreamContext, "account_info", late)
    async with connect(nats_server.url, "one") as bus:
        assert await bus.log.append(ONE, b"1")
    assert answers == []


async def test_a_server_whose_streams_never_answer_is_said_plainly(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(_: JetStreamContext) -> AccountInfo:
        raise NatsTimeout

    monkeypatch.setattr(JetStreamContext, "account_info", never)
    monkeypatch.setattr("stagecast.bus.nats.STREAMS_PATIENCE", 0.2)
    with pytest.raises(BusUnavailable, match=r"has not answered for its streams in 0\.2 s"):
        async with connect(nats_server.url, "one"):
            pass
