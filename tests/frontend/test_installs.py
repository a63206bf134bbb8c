from __future__ import annotations

import asyncio
import hashlib
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from stagecast import operations, ownership, room
from stagecast.disk import Disk, Space
from stagecast.draft import Draft, draft_bytes
from stagecast.errors import BusUnavailable, Interrupted
from stagecast.frontend import installs
from stagecast.frontend.installs import until_decided
from stagecast.keeper import Keeper
from stagecast.manifest import PIECE_SIZE
from tests.alone import WEIGHTS, Alone, alone
from tests.conftest import eventually
from tests.peers import a_record

pytestmark = pytest.mark.asyncio(loop_scope="module")


def an_index(folder: Path, *names: str) -> str:
    """Write an index whose entries all have one file; return its address."""
    folder.mkdir()
    (folder / "w.bin").write_bytes(WEIGHTS)
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    entries = [f"- {{name: {name}, files: [{{filename: w.bin, uri: w.bin, sha256: {digest}}}]}}" for name in names]
    (folder / "index.yaml").write_text("\n".join(entries))
    return (folder / "index.yaml").as_uri()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stocked(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Alone]:
    """Yield a replica with two galleries."""
    folder = tmp_path_factory.mktemp("stocked")
    galleries = (an_index(folder / "first", "a", "both"), an_index(folder / "second", "b", "both"))
    async with alone(folder / "data", galleries=galleries, rate_limit=10**9) as running:
        yield running


async def installed(here: Alone, **body: str) -> str:
    answer = await here.post("/api/models/install", body)
    assert answer.status == 202, answer.body
    end = await here.ended(answer.json["operations"][0]["id"])
    assert end["state"] == "succeeded", end
    return str(end["name"])


@pytest.mark.parametrize("name", ["a", "b", "both"])
async def test_a_name_is_looked_up_in_the_configured_galleries(stocked: Alone, name: str) -> None:
    assert await installed(stocked, ref=name) == name


async def test_a_name_in_none_of_them_is_unknown(stocked: Alone) -> None:
    status, code, message = (await stocked.post("/api/models/install", {"ref": "c"})).error
    assert (status, code) == (404, "not_found")
    assert "'c'" in message


async def test_installing_what_is_being_installed_returns_that(stocked: Alone) -> None:
    answers = await asyncio.gather(
        *(stocked.post("/api/models/install", {"ref": "a", "name": "once"}) for _ in range(5))
    )
    assert {answer.status for answer in answers} == {202}
    assert (await stocked.ended("installation:once"))["state"] == "succeeded"


async def test_what_a_dead_replica_left_behind_goes_on_here(stocked: Alone, tmp_path: Path) -> None:
    source = tmp_path / "orphan"
    source.write_bytes(WEIGHTS)
    parameters = {"reference": str(source), "gallery": "", "name": "", "sha256": ""}
    record, revision = await stocked.peer.open("installation", "orphan", cause="api", parameters=parameters, claim=True)
    await stocked.peer.reached(revision)
    await stocked.beat("peer/1", leaving=True)
    await stocked.peer.write(operations.stalled(record, "its owner does not answer", 1.0), revision.sequence)
    end = await stocked.ended("installation:orphan")
    assert (end["state"], end["attempt"]) == ("succeeded", 2)
    assert end["jobID"] == record.job


async def test_what_a_living_replica_does_is_left_alone(stocked: Alone) -> None:
    await stocked.beat("peer/1")  # an earlier test has let it leave
    identifier = await stocked.running("installation", "theirs")
    record = stocked.peer.fold.record(identifier)
    await installed(stocked, ref="b", name="marker")
    assert stocked.peer.fold.record(identifier) == record


async def test_a_failed_one_can_be_tried_again(stocked: Alone, tmp_path: Path) -> None:
    source = tmp_path / "flaky"
    source.write_bytes(WEIGHTS)
    parameters = {"reference": str(source), "gallery": "", "name": "", "sha256": "0" * 64}
    record, revision = await stocked.peer.open("installation", "flaky", cause="api", parameters=parameters)
    await stocked.peer.reached(revision)
    failed = await stocked.ended("installation:flaky")
    assert failed["state"] == "failed"
    assert f"but {'0' * 64} was given; the source serves another file: check that SHA-256" in failed["error"]
    assert "gallery" not in failed["error"], "none was named"
    held, sequence = await stocked.peer.standing(record.id, "installation", "flaky", "")
    assert held is not None
    right = msgspec.structs.replace(held, parameters=parameters | {"sha256": ""}, seq=held.seq + 1)
    await stocked.peer.reached(await stocked.peer.write(right, sequence))
    answer = await stocked.post("/api/operations/installation:flaky/retry")
    assert answer.status == 200
    assert (await stocked.ended("installation:flaky"))["state"] == "succeeded"


@contextmanager
def mute(where: str) -> Iterator[str]:
    """Yield the address of a file whose server hangs: in the connection, before the head, or after the first bytes."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        port = listener.getsockname()[1]
        if where == "connection":
            for _ in range(4):  # the kernel takes no more of them
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(("127.0.0.1", port))
        else:
            head = b'HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\nETag: "one"\r\n\r\n'
            body = bytes(2 * PIECE_SIZE) if where == "body" else b""
            threading.Thread(target=_serve, args=(listener, head + body if body else b"", stack)).start()
            stack.callback(listener.shutdown, socket.SHUT_RDWR)
        yield f"http://127.0.0.1:{port}/file"


def _serve(listener: socket.socket, said: bytes, stack: ExitStack) -> None:
    with suppress(OSError):
        while True:
            connection, _ = listener.accept()
            stack.callback(connection.close)
            request = connection.recv(65536)
            with suppress(OSError):
                connection.sendall(said.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if b"HEAD" in request[:4] else said)


@pytest.mark.parametrize("where", ["connection", "head"])
async def test_an_index_that_hangs_is_told_in_the_answer_within_seconds(
    stocked: Alone, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(installs, "_PATIENCE", 0.3)
    with mute(where) as url:
        answer = await stocked.post("/api/models/install", {"gallery": url, "name": "owl"})
    status, code, message = answer.error
    assert (status, code) == (502, "holder_failed")
    assert url in message


async def begun(here: Alone, name: str, url: str) -> str:
    """Begin to install and return the operation's id."""
    answer = await here.post("/api/models/install", {"url": url, "name": name})
    assert answer.status == 202, answer.body
    return str(answer.json["operations"][0]["id"])


async def commanded(here: Alone, identifier: str, verb: str, body: object = None) -> Any:
    """Return the row that a command is answered with, long before an upstream that hangs is given up."""
    async with asyncio.timeout(8):
        answer = await here.post(f"/api/operations/{identifier}/{verb}", body)
    assert answer.status == 200, answer.body
    return answer.json


@pytest.mark.parametrize("where", ["connection", "head", "body"])
@pytest.mark.parametrize(("verb", "state"), [("cancel", "cancelled"), ("pause", "paused")])
async def test_an_upstream_that_hangs_stops_nobody(stocked: Alone, where: str, verb: str, state: str) -> None:
    name = f"mute-{where}-{verb}"
    with mute(where) as url:
        identifier = await begun(stocked, name, url)
        phase = "transferring" if where == "body" else "planning"
        await eventually(lambda: (held := stocked.peer.fold.record(identifier)) is not None and held.phase == phase)
        row = await commanded(stocked, identifier, verb)
        assert (row["state"], row["phase"], row["cancellable"]) == (state, phase, verb == "pause")
        again = await commanded(stocked, identifier, verb)
        assert again == row
        if verb == "pause":
            await commanded(stocked, identifier, "cancel")


@pytest.mark.parametrize(("where", "on"), [("connection", "network"), ("head", "source"), ("body", "source")])
async def test_an_installation_that_gets_no_byte_says_on_what_it_waits(
    stocked: Alone, monkeypatch: pytest.MonkeyPatch, where: str, on: str
) -> None:
    monkeypatch.setattr(ownership, "PATIENCE", 0.3)
    with mute(where) as url:
        identifier = await begun(stocked, f"quiet-{where}", url)
        await eventually(lambda: (held := stocked.peer.fold.record(identifier)) and held.state == "stalled")
        row = await stocked.row(identifier)
        assert (row["stalledOn"], row["state"]) == (on, "stalled")
        assert row["stalledSince"] <= row["updatedAt"]
        assert row["message"].endswith("UTC; it asks again, and fails after 120 s without one)")
        assert "bytesPerSecond" not in row
        await commanded(stocked, identifier, "cancel")


@pytest.mark.parametrize("keep_partial", [True, False])
async def test_a_cancel_keeps_or_frees_the_draft(stocked: Alone, keep_partial: bool) -> None:
    name = f"draft-{keep_partial}"
    with mute("body") as url:
        identifier = await begun(stocked, name, url)
        await eventually(lambda: (held := stocked.peer.fold.record(identifier)) and held.bytes_done >= 2 * PIECE_SIZE)
        row = await commanded(stocked, identifier, "cancel", {"keep_partial": keep_partial})
    assert row.get("keptBytes") == (2 * PIECE_SIZE if keep_partial else None)
    assert row["message"].endswith(f"cancelled; 33.6 MB {'kept' if keep_partial else 'freed'}")
    assert draft_bytes(stocked.folder / "models", name) == 2 * PIECE_SIZE * keep_partial


@pytest.mark.parametrize("keep_partial", [True, False])
async def test_what_a_dead_owner_left_is_freed_by_whoever_shares_the_folder(
    stocked: Alone, tmp_path: Path, keep_partial: bool
) -> None:
    name, models = f"left-{keep_partial}", stocked.folder / "models"
    record, revision = await stocked.peer.open("installation", name, cause="test", claim=True)
    with Draft(models, name) as draft, draft.file("w.bin", "http://upstream/w.bin") as file:
        file.begin("one", 3 * PIECE_SIZE)
        file.write(bytes(PIECE_SIZE))
    moved = msgspec.structs.replace(record, seq=record.seq + 1, bytes_done=PIECE_SIZE)
    await stocked.peer.reached(await stocked.peer.write(moved, revision.sequence))
    row = await commanded(stocked, record.id, "cancel", {"keep_partial": keep_partial})
    assert row["state"] == "cancelled"
    if keep_partial:
        assert row["keptBytes"] == PIECE_SIZE
        await installed(stocked, ref="b", name=f"marker-{name}")
        assert draft_bytes(models, name) == PIECE_SIZE
    else:
        assert row["message"].endswith("cancelled; 16.8 MB freed")
        await eventually(lambda: not (models / ".stagecast" / f"draft-{name}").exists())


async def test_an_installation_that_publishes_is_past_stopping(
    stocked: Alone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, publish = threading.Event(), Draft.publish
    monkeypatch.setattr(Draft, "publish", lambda draft, *given: (go.wait(60), publish(draft, *given)))
    (tmp_path / "w.bin").write_bytes(WEIGHTS)
    identifier = await begun(stocked, "published", (tmp_path / "w.bin").as_uri())
    await eventually(lambda: (held := stocked.peer.fold.record(identifier)) and held.phase == "publishing")
    try:
        status, code, message = (await stocked.post(f"/api/operations/{identifier}/cancel")).error
    finally:
        go.set()
    assert (status, code) == (409, "wrong_state")
    assert message == f"cannot cancel {identifier}: it is publishing, past stopping"
    assert (await stocked.ended(identifier))["state"] == "succeeded"


async def test_a_stop_is_heeded_while_the_log_is_away_and_nothing_can_be_decided() -> None:
    class Away:
        async def append(self, *_: object, **__: object) -> int:
            raise BusUnavailable("stopped")

    owned = ownership.Ownership(Away(), a_record(kind="installation", node=""), 1)  # type: ignore[arg-type]
    deciding = asyncio.create_task(asyncio.to_thread(until_decided, owned, asyncio.get_running_loop()))
    await asyncio.sleep(0)
    owned.stop.set()
    with pytest.raises(Interrupted):
        await deciding


async def test_room_that_a_budget_allows_is_made_for_an_installation_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    space = Space(0, 10**12)

    async def make_room(_: Keeper, needed: int) -> bool:
        nonlocal space
        asked.append(needed)
        space = Space(10**12, 10**12)
        return len(asked) == 1

    monkeypatch.setattr(Keeper, "_make_room", make_room)
    monkeypatch.setattr(Disk, "space", lambda _: space)
    source = tmp_path / "bulky"
    source.write_bytes(WEIGHTS)
    async with alone(tmp_path / "data", keep_free=1) as here:
        assert await installed(here, ref=str(source)) == "bulky"
        assert asked == [len(WEIGHTS)]
        space = Space(0, 10**12)
        answer = await here.post("/api/models/install", {"ref": str(source), "name": "refused"})
        end = await here.ended(answer.json["operations"][0]["id"])
        assert (end["state"], f"{len(WEIGHTS):,} more are needed" in end["error"]) == ("failed", True)
        assert len(asked) == 2, "nothing could be freed"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "PATIENCE", 0.2)
    monkeypatch.setattr(room, "POLL", 0.02)


async def test_who_waits_for_room_begins_once_it_is_there(
    stocked: Alone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    space = Space(0, 10**12)
    monkeypatch.setattr(Disk, "space", lambda _: space)
    (tmp_path / "patient").write_bytes(WEIGHTS)
    answer = await stocked.post("/api/models/install", {"ref": str(tmp_path / "patient"), "wait_for_space": True})
    identifier = answer.json["operations"][0]["id"]
    await eventually(lambda: (held := stocked.peer.fold.record(identifier)) and held.state == "stalled")
    row = await stocked.row(identifier)
    assert (row["stalledOn"], row["currentBytes"]) == ("room", 0)
    assert f"it begins once {len(WEIGHTS):,} bytes are free and promised to nobody; 0 are free" in row["message"]
    space = Space(10**12, 10**12)
    end = await stocked.ended(identifier)
    assert (end["state"], end["attempt"], end["currentBytes"]) == ("succeeded", 1, len(WEIGHTS))
    assert set(end["timeSpent"]) <= {"source", "hash", "target disk", "limit"}
    assert 0.99 < sum(end["timeSpent"].values()) < 1.01
    [kept] = (await stocked.get("/api/operations/history", params={"model": "patient"})).json["operations"]
    assert kept["timeSpent"] == end["timeSpent"]


async def test_a_wait_for_room_can_be_cancelled_and_leaves_nothing(
    stocked: Alone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    monkeypatch.setattr(Disk, "space", lambda _: Space(0, 10**12))
    (tmp_path / "given-up").write_bytes(WEIGHTS)
    answer = await stocked.post("/api/models/install", {"ref": str(tmp_path / "given-up"), "wait_for_space": True})
    identifier = answer.json["operations"][0]["id"]
    await eventually(lambda: (held := stocked.peer.fold.record(identifier)) and held.waits_on == "room")
    assert (await commanded(stocked, identifier, "cancel"))["state"] == "cancelled"
    assert not (stocked.folder / "models" / ".stagecast" / "draft-given-up").exists()


async def test_nobody_waits_for_room_that_the_disk_never_had(
    stocked: Alone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    monkeypatch.setattr(Disk, "space", lambda _: Space(0, len(WEIGHTS) - 1))
    (tmp_path / "hopeless").write_bytes(WEIGHTS)
    answer = await stocked.post("/api/models/install", {"ref": str(tmp_path / "hopeless"), "wait_for_space": True})
    end = await stocked.ended(answer.json["operations"][0]["id"])
    assert (end["state"], f"{len(WEIGHTS):,} more are needed" in end["error"]) == ("failed", True)
