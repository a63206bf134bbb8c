from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from stagecast import operations
from tests.alone import WEIGHTS, Alone, alone

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
    assert (await stocked.ended("installation:flaky"))["state"] == "failed"
    held, sequence = await stocked.peer.standing(record.id, "installation", "flaky", "")
    assert held is not None
    right = msgspec.structs.replace(held, parameters=parameters | {"sha256": ""}, seq=held.seq + 1)
    await stocked.peer.reached(await stocked.peer.write(right, sequence))
    answer = await stocked.post("/api/operations/installation:flaky/retry")
    assert answer.status == 200
    assert (await stocked.ended("installation:flaky"))["state"] == "succeeded"
