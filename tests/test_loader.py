from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest

from stagecast import backend, ownership, subjects, supervision
from stagecast.commands import Commands
from stagecast.errors import TransferFailed
from stagecast.loader import Loader
from stagecast.messages import Instance, Placement, Verb
from tests.conftest import eventually
from tests.model_server import die, get, is_gone, server_recipe
from tests.nodes import Member, Nodes

CONTENTS = {"owl": b"weights", "cat": b"other weights"}


class Loading:
    """A worker's loader, and the wishes of the cluster."""

    def __init__(self, loader: Loader, member: Member, staged: list[tuple[str, str]]) -> None:
        self.loader = loader
        self.member = member
        self.staged = staged

    async def wish(self, *nodes: str, generation: int = 1, model: str = "owl") -> None:
        wish = Placement(model=model, nodes=nodes, generation=generation)
        await self.member.tracker.say(subjects.placement(model), msgspec.json.encode(wish))

    def instance(self, model: str = "owl") -> Instance | None:
        return self.member.tracker.fold.instance("w", model)

    async def until(self, state: str, generation: int = 1, model: str = "owl") -> Instance:
        """Return what the worker reports of its backend once it is in that state."""

        def is_so() -> bool:
            said = self.instance(model)
            return said is not None and (said.state, said.generation) == (state, generation)

        async with asyncio.timeout(60):
            await self.member.tracker.until(is_so)
        found = self.instance(model)
        assert found is not None
        return found

    def loading_is(self, state: str, attempt: int = 0) -> bool:
        record = self.member.tracker.fold.record("loading:owl@w")
        return record is not None and record.state == state and record.attempt >= attempt

    def pid(self, model: str = "owl") -> int:
        return self.loader._ready[model].pid

    def url(self, model: str = "owl") -> str:
        instance = self.instance(model)
        assert instance is not None
        url = self.loader.url(instance.instance)
        assert url is not None
        return url


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def loading(
    stack: AsyncExitStack, folder: Path, mode: str = "serve", failure: str = "", nodes: Nodes | None = None
) -> Loading:
    """Start a loader whose one recipe is the test's model server in that mode."""
    staged = []

    async def stage(model: str, cause: str) -> None:
        staged.append((model, cause))
        if failure:
            raise TransferFailed(failure)

    member = await stack.enter_async_context((nodes or Nodes(folder)).node("w", CONTENTS))
    await member.until_held("owl", "cat")
    recipes = [server_recipe(folder, mode)]
    loader = Loader(member.node, member.tracker, member.announcer, recipes, stage, logs=folder / "logs")
    await stack.enter_async_context(loader.running())
    return Loading(loader, member, staged)


async def test_what_is_placed_here_is_staged_loaded_and_served(stack: AsyncExitStack, tmp_path: Path) -> None:
    here = await loading(stack, tmp_path)
    await here.wish("w")
    ready = await here.until("ready")
    assert here.staged == [("owl", "placement")]
    assert (ready.process, ready.error) == (here.member.tracker.process, "")
    assert (await get(here.url()))[0] == 200
    await eventually(lambda: here.member.tracker.fold.record("loading:owl@w").state == "succeeded")  # type: ignore[union-attr]
    record = here.member.tracker.fold.record("loading:owl@w")
    assert record is not None
    assert (record.bytes_done, record.bytes_total, record.phase) == (7, 7, "loading")
    assert here.loader.url("another") is None


async def test_what_is_placed_elsewhere_is_not(stack: AsyncExitStack, tmp_path: Path) -> None:
    here = await loading(stack, tmp_path)
    await here.wish("v")
    await here.wish("w", model="cat")
    await here.until("ready", model="cat")
    assert here.instance() is None
    assert here.staged == [("cat", "placement")]


async def test_a_wish_that_is_repeated_changes_nothing(stack: AsyncExitStack, tmp_path: Path) -> None:
    here = await loading(stack, tmp_path)
    await here.wish("w")
    before = await here.until("ready")
    await here.wish("w", "v", generation=2)
    await here.wish("w", model="cat")
    await here.until("ready", model="cat")
    assert here.instance() == before


async def test_what_is_no_longer_wanted_ends_and_can_be_wanted_again(stack: AsyncExitStack, tmp_path: Path) -> None:
    here = await loading(stack, tmp_path)
    await here.wish("w")
    before = await here.until("ready")
    pid = here.pid()
    await here.wish(generation=2)
    await here.until("gone")
    assert is_gone(pid)
    assert here.loader.url(before.instance) is None
    await here.wish("w", generation=3)
    after = await here.until("ready", generation=3)
    assert after.instance != before.instance


async def test_a_backend_that_dies_is_started_again_as_another_instance(
    stack: AsyncExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "FIRST_DELAY", 0.01)
    here = await loading(stack, tmp_path)
    await here.wish("w")
    before = await here.until("ready")
    await die(here.loader._ready["owl"])
    restarting = await here.until("restarting")
    assert restarting.error.startswith("it ended with exit code 3: out of luck; next try in 0.01 s")
    after = await here.until("ready")
    assert after.instance != before.instance
    assert here.loader.url(before.instance) is None


async def test_one_that_never_loads_is_given_up_at_once_and_tried_again_for_a_new_wish(
    stack: AsyncExitStack, tmp_path: Path
) -> None:
    here = await loading(stack, tmp_path, "crash")
    await here.wish("w")
    failed = await here.until("failed")
    assert "no such tensor: lm_head | and a last line" in failed.error
    await eventually(lambda: here.member.tracker.fold.record("loading:owl@w").state == "failed")  # type: ignore[union-attr]
    assert here.member.tracker.fold.record("loading:owl@w").error == failed.error  # type: ignore[union-attr]
    server_recipe(tmp_path, "serve")
    await here.wish("w", generation=2)
    again = await here.until("failed", generation=2)
    assert again.error.startswith("server ended with exit code 1")
    assert here.staged == [("owl", "placement")] * 2


async def test_what_has_failed_stays_so_after_a_restart_until_somebody_asks_anew(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path)
    async with AsyncExitStack() as stack:
        here = await loading(stack, tmp_path, "crash", nodes=nodes)
        await here.wish("w")
        failed = await here.until("failed")
        await eventually(lambda: here.loading_is("failed"))
    async with AsyncExitStack() as stack:
        there = await loading(stack, tmp_path, nodes=nodes)
        process = there.member.tracker.process
        await eventually(lambda: (said := there.instance()) is not None and said.process == process != failed.process)
        again = there.instance()
        assert again is not None
        assert (again.state, again.error, there.staged) == ("failed", failed.error, [])
        await there.wish("w", model="cat")
        await there.until("ready", model="cat")
        assert there.staged == [("cat", "placement")], "a wish that comes meanwhile changes nothing of that"
        await there.wish("w", generation=2)
        await there.until("ready", generation=2)


async def test_a_model_that_cannot_be_had_fails_with_the_staging_s_cause(stack: AsyncExitStack, tmp_path: Path) -> None:
    here = await loading(stack, tmp_path, failure="no holder is alive")
    await here.wish("w")
    assert (await here.until("failed")).error == "no holder is alive"


async def test_a_model_that_no_recipe_fits_says_what_to_do(stack: AsyncExitStack, tmp_path: Path) -> None:
    here = await loading(stack, tmp_path)
    here.loader._recipes = ()
    await here.wish("w")
    assert (await here.until("failed")).error.startswith("no backend fits owl (known: none); start the worker with")


async def test_a_load_that_hangs_can_be_cancelled(stack: AsyncExitStack, tmp_path: Path) -> None:
    here = await loading(stack, tmp_path, "hang")
    await here.wish("w")
    await here.until("loading")
    await eventually(lambda: "loading:owl@w" in here.member.tracker.owned)
    here.member.tracker.owned["loading:owl@w"].halt("cancel")
    assert (await here.until("failed")).error == "loading owl was stopped from outside"
    assert here.member.tracker.fold.record("loading:owl@w").state == "cancelled"  # type: ignore[union-attr]


@pytest.mark.parametrize(("verb", "state"), [("cancel", "cancelled"), ("pause", "paused")])
async def test_a_load_that_never_becomes_ready_is_stopped_at_once_and_can_go_on(
    stack: AsyncExitStack, tmp_path: Path, verb: Verb, state: str
) -> None:
    here = await loading(stack, tmp_path, "hang")
    commands = await stack.enter_async_context(Commands(here.member.tracker).running())
    await here.wish("w")
    await eventually(lambda: here.loading_is("running"))
    async with asyncio.timeout(8):
        record, _ = await commands.give("loading:owl@w", verb)
    assert (record.state, record.phase) == (state, "loading")
    await here.until("failed")
    here.loader._recipes = [server_recipe(tmp_path, "serve")]
    record, _ = await commands.give("loading:owl@w", "resume" if verb == "pause" else "retry")
    assert record.attempt == 2
    await here.until("ready")
    await eventually(lambda: here.loading_is("succeeded"))
    assert here.member.tracker.fold.record("loading:owl@w").job == record.job  # type: ignore[union-attr]


async def test_a_retry_of_a_load_that_is_wanted_elsewhere_now_fails_with_that_cause(
    stack: AsyncExitStack, tmp_path: Path
) -> None:
    here = await loading(stack, tmp_path, "crash")
    await here.wish("w")
    await here.until("failed")
    await eventually(lambda: here.loading_is("failed"))
    await here.wish("v", generation=2)
    await here.until("gone", generation=1)
    await Commands(here.member.tracker).give("loading:owl@w", "retry")
    await eventually(lambda: here.loading_is("failed", attempt=2))
    error = here.member.tracker.fold.record("loading:owl@w").error  # type: ignore[union-attr]
    assert error == "owl is no longer wanted on w; ask for it anew"


async def test_a_backend_that_gives_no_sign_of_life_is_stalled(
    stack: AsyncExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "PATIENCE", 0.1)
    monkeypatch.setattr(backend, "TICK", 0.05)
    here = await loading(stack, tmp_path, "hang")
    await here.wish("w")
    await eventually(lambda: here.loading_is("stalled"))
    record = here.member.tracker.fold.record("loading:owl@w")
    assert record is not None
    assert (record.waits_on, record.phase, record.owner) == ("backend", "loading", here.member.tracker.process)
    assert record.note == f"it fails after {here.loader._recipes[0].patience:g} s of silence"


async def test_no_backend_outlives_its_worker(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        here = await loading(stack, tmp_path)
        await here.wish("w")
        await here.until("ready")
        pid = here.pid()
    assert is_gone(pid)
