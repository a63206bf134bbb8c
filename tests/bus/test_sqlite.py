"""What only the bus of a process alone has to do: outlive that process, have its file to itself, bear a full disk."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from stagecast.bus import Anew, CaughtUp, Heard, Lost, database, sqlite
from stagecast.bus.database import Change, Database
from stagecast.bus.sqlite import SqliteBus, opened
from stagecast.errors import AppendConflict, BusUnavailable, LogNotWritten, LogUnusable
from stagecast.history import History
from stagecast.messages import Entry
from stagecast.settings import Bounds
from stagecast.tracker import Tracker
from tests.bus.following import following
from tests.conftest import eventually

ONE, TWO = "staging.one.progress", "staging.two.progress"

# Says what is acknowledged, and waits to be killed; argument: the file.
WRITER = """
import asyncio, sys
from pathlib import Path
from stagecast.bus.sqlite import opened

async def write():
    async with opened(Path(sys.argv[1])) as bus:
        number = 0
        while True:
            number += 1
            sequence = await bus.log.append(f"staging.{number % 7}.progress", str(number).encode())
            print(sequence, flush=True)

asyncio.run(write())
"""


async def picture(path: Path, **options: Any) -> list[Heard]:
    """Return what somebody who follows the log in the file hears."""
    async with opened(path, **options) as bus, following(bus) as heard:
        return heard


async def test_the_next_process_finds_the_same_stream_and_goes_on_with_it(tmp_path: Path) -> None:
    async with opened(tmp_path / "log") as bus, following(bus) as heard:
        await bus.log.append(ONE, b"1")
        await bus.log.append(TWO, b"2")
        await bus.log.append(ONE, b"3")
        await bus.history.append("stagecast.history.a-1", b"end")
        await eventually(lambda: len(heard) == 5)
    async with opened(tmp_path / "log") as bus, following(bus) as again:
        assert again == [heard[0], *heard[3:], CaughtUp(3)], "the same identity, sequences, payloads and times"
        with pytest.raises(AppendConflict):
            await bus.log.append(ONE, b"4", expected=1)
        assert await bus.log.append(ONE, b"4", expected=3) == 4
        with pytest.raises(AppendConflict):
            await bus.history.append("stagecast.history.a-1", b"another", expected=0)


@contextmanager
def writer(path: Path) -> Iterator[tuple[IO[bytes], subprocess.Popen[bytes]]]:
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield process.stdout, process
        process.kill()


async def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    with writer(tmp_path / "log") as (said, process):
        acknowledged = [int(said.readline()) for _ in range(100)]
        process.kill()
        acknowledged += [int(line) for line in said]
    identity, *entries, end = await picture(tmp_path / "log")
    assert isinstance(identity, Anew)
    assert isinstance(end, CaughtUp)
    assert end.sequence in {acknowledged[-1], acknowledged[-1] + 1}, "one may be written that nobody was told of"
    numbers = [int(entry.payload) for entry in entries if isinstance(entry, Entry)]
    assert numbers == list(range(end.sequence - 6, end.sequence + 1))


async def test_one_process_at_a_time_has_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "LOCK_PATIENCE", 0.05)
    with writer(tmp_path / "log") as (said, _):
        assert said.readline()
        with pytest.raises(LogUnusable) as refused:
            await picture(tmp_path / "log")
        assert said.readline(), "the other one goes on"
    assert refused.value.message == (
        f"the log {tmp_path}/log cannot be used: another `stagecast serve` has it; "
        "end that one, or give this one a folder of its own with --data"
    )
    assert await picture(tmp_path / "log"), "a process that died has let go"


async def test_after_a_loss_of_power_the_logs_are_other_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last commits may be gone, and clients may have seen them: they begin anew."""
    async with opened(tmp_path / "log") as bus:
        await bus.log.append(ONE, b"1")
        monkeypatch.setattr(Database, "close", lambda self: self._connection.close())
    before, *_ = await picture(tmp_path / "log")
    assert (await picture(tmp_path / "log"))[0] == before, "a process that was killed has lost nothing"
    monkeypatch.setattr(database, "_this_boot", lambda: "another")
    after, entry, end = await picture(tmp_path / "log")
    assert after != before
    assert isinstance(entry, Entry)
    assert (entry.sequence, entry.payload, end) == (1, b"1", CaughtUp(1))
    monkeypatch.undo()
    assert (await picture(tmp_path / "log"))[0] not in {before, after}


async def test_a_machine_that_was_shut_down_in_order_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await picture(tmp_path / "log")
    monkeypatch.setattr(database, "_this_boot", lambda: "another")
    assert await picture(tmp_path / "log") == before


async def test_a_copy_is_another_log(tmp_path: Path) -> None:
    """Brought back from a backup, it has not what clients have seen since."""
    before, *_ = await picture(tmp_path / "log")
    shutil.copy(tmp_path / "log", tmp_path / "copy")
    assert (await picture(tmp_path / "copy"))[0] != before
    assert (await picture(tmp_path / "log"))[0] == before


async def damage_header(path: Path) -> None:
    path.write_bytes(b"nonsense" * 1000)


async def damage_page(path: Path) -> None:
    async with opened(path) as bus:
        for number in range(50):
            await bus.log.append(f"staging.{number}.progress", b"x" * 1000)
    with path.open("r+b") as file:
        file.seek(4096 * 5)
        file.write(b"\xff" * 4096 * 3)


@pytest.mark.parametrize("damage", [damage_header, damage_page])
async def test_a_damaged_file_is_set_aside_with_a_warning(
    tmp_path: Path, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "log"
    await damage(path)
    was = path.read_bytes()
    async with opened(path) as bus, following(bus) as heard:
        assert heard[1:] == [CaughtUp(0)]
        assert await bus.log.append(ONE, b"1", expected=0) == 1
    [aside] = tmp_path.glob("log.damaged-*")
    assert aside.read_bytes() == was
    assert f"{path} is damaged" in caplog.text
    assert f"it is now {aside.name}, and a new one is begun" in caplog.text


async def test_a_file_of_a_later_version_is_left_as_it_is(tmp_path: Path) -> None:
    await picture(tmp_path / "log")
    connection = sqlite3.connect(tmp_path / "log")
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    was = (tmp_path / "log").read_bytes()
    with pytest.raises(LogUnusable, match=r"a later version of Stagecast wrote it \(schema 2, this one knows 1\); run"):
        await picture(tmp_path / "log")
    assert (tmp_path / "log").read_bytes() == was


async def test_a_file_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LogUnusable, match=r"file/log cannot be used: .*; give another folder with --data"):
        await picture(tmp_path / "file" / "log")
    (tmp_path / "folder").mkdir()
    with pytest.raises(LogUnusable, match="unable to open database file; make it writable or move it away"):
        await picture(tmp_path / "folder")


async def limit(bus: SqliteBus, pages: int) -> None:
    """Let the file have no more than so many pages: SQLite then says what it says of a full disk."""
    pen = bus._pen
    await sqlite._in_thread(pen._thread, lambda: pen._database._connection.execute(f"PRAGMA max_page_count = {pages}"))


async def test_a_full_disk_is_said_and_ridden_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "PROBE_INTERVAL", 0.01)
    async with opened(tmp_path / "log") as bus, following(bus) as heard:
        await bus.log.append(ONE, b"1")
        await limit(bus, 1)
        with pytest.raises(LogNotWritten) as refused:
            await bus.log.append(ONE, b"x" * 100_000)
        assert refused.value.message == (
            f"the log {tmp_path}/log cannot be written (database or disk is full); "
            "what runs goes on: free some space, it is tried again"
        )
        assert isinstance(refused.value, BusUnavailable), "whoever waits for the bus waits for the disk"
        assert not bus.is_connected
        with pytest.raises(LogNotWritten):
            await bus.history.append("stagecast.history.a-1", b"end")
        await eventually(lambda: isinstance(heard[-1], Lost))
        await limit(bus, 1_000_000)
        await eventually(lambda: isinstance(heard[-1], CaughtUp) and len(heard) > 3)
        assert bus.is_connected
        assert await bus.log.append(ONE, b"2", expected=1) == 2
        await eventually(lambda: isinstance(heard[-1], Entry))
    assert [type(each).__name__ for each in heard] == ["Anew", "CaughtUp", "Entry", "Lost", "CaughtUp", "Entry"]
    assert caplog.text.count("cannot be written") == 1
    assert (await picture(tmp_path / "log"))[1:] == [heard[-1], CaughtUp(2)]


async def test_an_operation_that_ends_on_a_full_disk_ends_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "PROBE_INTERVAL", 0.01)
    async with opened(tmp_path / "log") as bus, Tracker(bus, "one").running() as tracker, History(tracker).running():
        await eventually(tracker.caught_up.is_set)
        record, _ = await tracker.open("staging", "m", "n", cause="asked", bytes_total=10)
        async with tracker.own(record) as ownership:
            assert ownership is not None
            await limit(bus, 1)
            with pytest.raises(LogNotWritten):
                await bus.log.append(TWO, b"x" * 100_000)
            ownership.advance(10)
            ending = asyncio.create_task(ownership.end("failed", error="no space"))
            await eventually(lambda: tracker.is_degraded)
            held = tracker.fold.record(record.id)
            assert held is not None
            assert held.state == "running", "what is not written, nobody is told"
            await limit(bus, 1_000_000)
            await ending
        await eventually(lambda: not tracker.is_degraded and not list(tracker.fold.live()))
    async with opened(tmp_path / "log") as bus, Tracker(bus, "two").running() as tracker:
        await eventually(tracker.caught_up.is_set)
        held = tracker.fold.record(record.id)
        assert held is not None
        assert (held.state, held.error, held.bytes_done) == ("failed", "no space", 10)


async def test_nobody_else_reads_the_file(tmp_path: Path) -> None:
    async with opened(tmp_path / "log") as bus:
        await bus.log.append(ONE, b"a URL with a key")
        assert {path.stat().st_mode & 0o077 for path in tmp_path.glob("log*")} == {0}


async def test_a_process_ends_though_its_disk_is_full(tmp_path: Path) -> None:
    async with opened(tmp_path / "log") as bus:
        await limit(bus, 1)
        with pytest.raises(LogNotWritten):
            await bus.log.append(ONE, b"x" * 100_000)
    with pytest.raises(BusUnavailable, match="this process is ending"):
        await bus.log.append(ONE, b"1")


async def test_a_slow_disk_holds_up_only_who_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop goes on, nobody hears of what is not written, and what was said meanwhile is one transaction."""
    commits: list[int] = []
    begun, may_go_on = threading.Event(), threading.Event()
    really = Database.commit

    def commit(self: Database, changes: Mapping[str, Change]) -> None:
        commits.append(len(changes["log"].entries))
        begun.set()
        may_go_on.wait()
        really(self, changes)

    async with opened(tmp_path / "log") as bus, following(bus) as heard:
        monkeypatch.setattr(Database, "commit", commit)
        first = asyncio.create_task(bus.log.append(ONE, b"1"))
        await eventually(begun.is_set)
        others = [asyncio.create_task(bus.log.append(f"staging.{number}.progress", b"")) for number in range(20)]
        late = asyncio.create_task(bus.log.append(ONE, b"2", expected=0))
        given_up = asyncio.create_task(bus.log.append(TWO, b"2"))
        await asyncio.sleep(0)
        given_up.cancel()
        assert await bus.log.last(ONE) is None
        assert len(heard) == 2
        assert not first.done()
        may_go_on.set()
        assert [await each for each in (first, *others)] == list(range(1, 22))
        with pytest.raises(AppendConflict):
            await late
        await asyncio.wait([given_up])
        await eventually(lambda: len(heard) == 24)
    assert commits == [1, 21]


async def test_the_history_is_bounded_in_the_file_too(tmp_path: Path) -> None:
    now = 1000.0
    bounds = Bounds(count=3, age=10.0)
    options: dict[str, Any] = {"bounds": bounds, "clock": lambda: now}
    subjects = [f"stagecast.history.{number}-1" for number in range(5)]

    async def standing(bus: SqliteBus) -> list[str]:
        return [each for each in subjects if await bus.history.last(each)]

    async with opened(tmp_path / "log", **options) as bus:
        for each in subjects:
            await bus.history.append(each, b"")
        assert await standing(bus) == subjects[2:]
        assert await bus.history.append(subjects[0], b"again", expected=0) == 6
        assert await standing(bus) == [subjects[0], *subjects[3:]]
    async with opened(tmp_path / "log", **options) as bus:
        assert await standing(bus) == [subjects[0], *subjects[3:]]
        assert [entry.subject for entry in database_entries(bus)] == [subjects[3], subjects[4], subjects[0]]
        now += 10.0
        assert await standing(bus) == []
        assert await bus.history.append(subjects[1], b"", expected=0) == 7, "sequences go on"
    async with opened(tmp_path / "log", **options) as bus:
        assert await standing(bus) == [subjects[1]]
        await bus.log.append(ONE, b"so that there is something to write")
    connection = sqlite3.connect(tmp_path / "log")
    assert connection.execute("SELECT subject FROM word WHERE log = 'history'").fetchall() == [(subjects[1],)]
    connection.close()


async def test_what_was_driven_out_and_came_back_at_once_stays(tmp_path: Path) -> None:
    """All of it in one transaction: the file must not lose the word that it has just got."""
    bounds = Bounds(count=3)
    subjects = [f"stagecast.history.{number}-1" for number in (1, 2, 3, 4, 1)]
    async with opened(tmp_path / "log", bounds) as bus:
        await asyncio.gather(*(bus.history.append(subject, b"") for subject in subjects))
        await bus.history.append(subjects[3], b"so that something is written after it")
        stood = database_entries(bus)
        assert [entry.subject for entry in stood] == [subjects[2], subjects[0], subjects[3]]
    async with opened(tmp_path / "log", bounds) as bus:
        assert database_entries(bus) == stood


def database_entries(bus: SqliteBus) -> list[Entry]:
    return list(bus.history._last.values())


async def test_what_is_removed_leaves_the_file_with_what_is_written_next(tmp_path: Path) -> None:
    path = tmp_path / "log"
    async with sqlite.opened(path) as bus:
        one = await bus.log.append("staging.one.progress", b"1")
        again = await bus.log.append("staging.again.progress", b"1")
        await bus.log.remove("staging.one.progress", one)
        await bus.log.remove("staging.again.progress", again)
        await bus.log.append("staging.again.progress", b"2", expected=0)
    async with sqlite.opened(path) as bus:
        assert await bus.log.last("staging.one.progress") is None
        standing = await bus.log.last("staging.again.progress")
        assert standing is not None
        assert (standing.payload, standing.sequence) == (b"2", again + 1)
