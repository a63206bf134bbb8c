"""A small disk: what fits is begun, what does not is refused with its numbers or waits, and nobody's room is lost."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from stagecast import answers
from stagecast.client import Client
from stagecast.cluster import Cluster
from stagecast.rows import Row
from tests.sample import contents_of
from tests.system.deployment import (
    MB,
    deployment,
    lay_out_random,
    until_ended,
    until_known,
    until_percent,
    write_backends,
)
from tests.system.test_errors import fill

pytestmark = [pytest.mark.system, pytest.mark.asyncio(loop_scope="module")]

SIZE = 20 * MB
ROOM = 32
"""MiB of the worker's disk: each of the models fits, two do not."""
_HOLDER = """
import sys
from pathlib import Path
from stagecast.store import Store
models = Path(sys.argv[1])
with Store(models, models.parent / "other").reserve(int(sys.argv[2]), 0, "another process"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def disk(data: Path) -> Iterator[Path]:
    """Give worker-1 a disk of its own."""
    models = data / "worker-1" / "models"
    models.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}m", "tmpfs", str(models)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a small disk needs a tmpfs of its own, and mounting one needs root")
    yield models
    subprocess.run(["umount", str(models)], check=True)


@pytest.fixture(scope="module")
def contents(data: Path) -> dict[str, dict[str, bytes]]:
    sizes = {"one": SIZE, "two": SIZE, "small": 5 * MB, "tiny": MB}
    return {name: lay_out_random(data / "models" / name, {"a.bin": size}) for name, size in sizes.items()}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(data: Path, contents: dict[str, dict[str, bytes]], disk: Path) -> AsyncIterator[Cluster]:
    backends = write_backends(data / "backends.yaml", small=())
    async with deployment(data, replicas=2, workers=1, rate_limit=5 * MB, backends=backends) as running:
        async with Client(running.url) as client:
            for model in contents:
                await until_known(client, model, "replica-1", "replica-2")
        yield running


async def test_two_that_each_fit_but_not_both(
    client: Client, disk: Path, contents: dict[str, dict[str, bytes]]
) -> None:
    for model in ("one", "two"):
        plan = await planned(client, model)
        assert (plan.fits, plan.present, plan.to_move, plan.disk_reserved) == (True, 0, SIZE, 0)
        assert (plan.holders, plan.seconds) == (["replica-1", "replica-2"], None), "nothing was measured yet"
    first = await client.stage("one", ["worker-1"])
    [half] = await until_percent(client, 20, *first)
    plan = await planned(client, "two")
    assert not plan.fits
    assert plan.to_move == SIZE <= plan.disk_free, "it would fit, were it not for what is promised"
    assert SIZE - half.current_bytes - 16 * MB < plan.disk_reserved < SIZE, "what has landed is promised no more"

    [refused] = await until_ended(client, *await client.stage("two", ["worker-1"]))
    assert refused.state == "failed"
    assert f"worker-1: {disk} has " in error_of(refused)
    assert " are promised to other transfers, but " in error_of(refused)
    assert f"{SIZE:,} more are needed (0 are there already)" in error_of(refused)
    await client.command(refused.id, "dismiss")

    [waiting] = await client.stage("two", ["worker-1"], wait_for_space=True)
    stalled = await until_stalled(client, waiting)
    assert stalled.stalled_on == "room"
    assert f"it begins once {SIZE:,} bytes are free and promised to nobody" in stalled.message
    [ended] = await until_ended(client, *first)
    assert ended.state == "succeeded"
    assert (await client.operation(waiting.id)).state == "stalled", "the disk holds the first one now"
    await client.remove("one", "worker-1")
    [ended] = await until_ended(client, waiting)
    assert (ended.state, ended.attempt) == ("succeeded", waiting.attempt)
    assert contents_of(disk / "two") == contents["two"]
    plan = await planned(client, "two")
    assert (plan.present, plan.to_move, plan.seconds) == (SIZE, 0, 0.0)
    assert (await planned(client, "one")).seconds is not None, "by now something was"
    await client.remove("two", "worker-1")


async def test_what_has_arrived_is_counted_by_the_plan_and_not_promised_again(client: Client) -> None:
    rows = await client.stage("one", ["worker-1"])
    await until_percent(client, 40, *rows)
    kept = await client.command(rows[0].id, "cancel", keep_partial=True)
    assert kept.current_bytes >= SIZE * 0.4
    plan = await planned(client, "one")
    assert (plan.present, plan.to_move) == (kept.current_bytes, SIZE - kept.current_bytes)
    assert plan.fits
    [ended] = await until_ended(client, *await client.stage("one", ["worker-1"]))
    assert ended.state == "succeeded"
    await client.remove("one", "worker-1")


async def test_a_disk_that_fills_meanwhile_tells_what_there_was_then_and_the_retry_moves_the_rest(
    client: Client, disk: Path, contents: dict[str, dict[str, bytes]]
) -> None:
    rows = await client.stage("one", ["worker-1"])
    await until_percent(client, 20, *rows)
    fill(disk / ".ballast")
    [failed] = await until_ended(client, *rows)
    numbers = re.search(r"but ([\d,]+) more are needed \(([\d,]+) are there already\)", error_of(failed))
    assert numbers is not None, failed
    needed, there = (int(number.replace(",", "")) for number in numbers.groups())
    assert SIZE * 0.2 <= failed.current_bytes <= there < SIZE
    assert needed == SIZE - there
    (disk / ".ballast").unlink()
    await until_ended(client, await client.command(failed.id, "retry"))
    [ended] = await client.history(model="one", node="worker-1", kind="staging", limit=1)
    assert (ended.state, ended.bytes_moved) == ("succeeded", needed)
    assert contents_of(disk / "one") == contents["one"]
    await client.remove("one", "worker-1")


async def test_a_killed_process_s_promise_dies_with_it(client: Client, disk: Path) -> None:
    other = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _HOLDER, str(disk), str(6 * SIZE // 4), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert other.stdout is not None
        assert await other.stdout.readline() == b"held\n"
        assert (await planned(client, "small")).disk_reserved == 6 * SIZE // 4
        [refused] = await until_ended(client, *await client.stage("small", ["worker-1"]))
        assert f"of which {6 * SIZE // 4:,} are promised to other transfers" in error_of(refused)
    finally:
        other.kill()
        await other.wait()
    assert (await planned(client, "small")).fits
    [ended] = await until_ended(client, await client.command(refused.id, "retry"))
    assert ended.state == "succeeded"
    await client.remove("small", "worker-1")


async def test_what_nobody_goes_on_with_is_shown_and_cleaned_to_the_byte(client: Client, disk: Path) -> None:
    rows = await client.stage("one", ["worker-1"])
    await until_percent(client, 40, *rows)
    fill(disk / ".ballast")
    [failed] = await until_ended(client, *rows)
    assert failed.state == "failed"
    (disk / ".ballast").unlink()
    left = (await client.collect(["worker-1"])).nodes[0]
    assert (left.bytes, left.leftovers) == (0, [])
    assert [each.keep for each in left.kept_leftovers] == ["its staging failed and can be retried"]
    await client.command(failed.id, "dismiss")
    async with asyncio.timeout(30):
        while not (orphaned := (await worker(client)).disk_orphaned):
            await asyncio.sleep(0.1)
    assert SIZE * 0.4 <= orphaned <= SIZE
    before = free_of(disk)
    for is_dry in (True, False):
        found = await client.collect(["worker-1"], dry_run=is_dry)
        [node], failures = found.nodes, found.failed
        assert (node.bytes, [(each.kind, each.model) for each in node.leftovers]) == (orphaned, [("partial", "one")])
        assert failures == {}
        assert free_of(disk) >= before + (0 if is_dry else orphaned)
    assert list((disk / ".stagecast").iterdir()) == []
    assert (await worker(client)).disk_orphaned == 0
    assert (await planned(client, "one")).present == 0


async def test_a_loaded_model_is_never_evicted_nor_a_pinned_one_nor_the_last(client: Client, disk: Path) -> None:
    for model in ("small", "tiny"):
        [ended] = await until_ended(client, *await client.stage(model, ["worker-1"]))
        assert ended.state == "succeeded"
    await client.embeddings("small", ["a cat"])
    assert await client.pin("tiny", ["worker-1"]) == {"worker-1": ["tiny"]}
    assert (await worker(client)).pinned == ["tiny"]
    [node] = (await client.collect(["worker-1"], free=10**12)).nodes
    assert {copy.model: copy.keep for copy in node.kept} == {"small": "loaded", "tiny": "pinned"}
    await client.pin("tiny", ["worker-1"], is_pinned=False)
    found = await client.collect(free=10**12)
    assert {each.node: [copy.model for copy in each.evicted] for each in found.nodes} == {
        "replica-1": [], "worker-1": ["tiny"],
    }  # fmt: skip
    kept = {each.node: {copy.model: copy.keep for copy in each.kept} for each in found.nodes}
    assert kept["worker-1"] == {"small": "loaded"}
    assert set(kept["replica-1"].values()) <= {"the last copy", "used just now"}, "two replicas share one folder"
    assert [path.name for path in disk.iterdir() if not path.name.startswith(".")] == ["small"]
    [deletion] = await client.history(kind="deletion", model="tiny", limit=1)
    assert (deletion.cause, deletion.state) == ("gc", "succeeded")
    assert len(await client.embeddings("small", ["a dog"])) == 1, "it serves on"


async def worker(client: Client) -> answers.Node:
    [node] = [each for each in await client.nodes() if each.name == "worker-1"]
    return node


def free_of(disk: Path) -> int:
    return os.statvfs(disk).f_bfree * os.statvfs(disk).f_frsize


async def planned(client: Client, model: str) -> answers.PlannedNode:
    [node] = (await client.plan(model, ["worker-1"])).nodes
    return node


async def until_stalled(client: Client, row: Row) -> Row:
    async with asyncio.timeout(30):
        while True:
            found = await client.operation(row.id)
            if found.state == "stalled":
                return found
            answer = await client.operations()
            await client.operations(after=answer.revision, wait=2)


def error_of(row: Row) -> str:
    assert isinstance(row.error, str)
    return row.error
