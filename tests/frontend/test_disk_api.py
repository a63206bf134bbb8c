from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from stagecast import eviction
from stagecast.messages import Holding
from stagecast.publication import WORKSHOP
from stagecast.store import Store
from stagecast.subjects import holding
from tests.alone import OWL, Alone, alone
from tests.conftest import eventually
from tests.sample import lay_out

pytestmark = pytest.mark.asyncio(loop_scope="module")

SIZE = sum(map(len, OWL.values()))


def orphan(here: Alone, name: str) -> int:
    """Leave something behind that nobody goes on with; return its bytes."""
    lay_out(here.folder / "models" / WORKSHOP / f"partial-0-{name}", {"files/a": bytes(range(256)) * 64})
    return 64 * 256


async def copied(here: Alone, model: str, digest: str, node: str = "there", volume: str = "elsewhere") -> None:
    """Let another node hold a model, too."""
    await here.worker(node, volume=volume)
    await here.say(holding(node, model), Holding(node=node, model=model, digest=digest, size=SIZE, files=2))


async def test_a_dry_run_says_what_would_go_and_does_nothing(here: Alone) -> None:
    count = orphan(here, "dry")
    answer = await here.post("/api/gc", {"nodes": ["here"], "dry_run": True})
    assert answer.status == 200
    [node] = answer.json["nodes"]
    assert (node["node"], node["evicted"], [left["folder"] for left in node["leftovers"]]) == (
        "here", [], ["partial-0-dry"],
    )  # fmt: skip
    assert node["bytes"] == node["leftovers"][0]["bytes"] >= count
    assert [(copy["model"], copy["bytes"], copy["keep"]) for copy in node["kept"]] == [("owl", SIZE, "the last copy")]
    assert (here.folder / "models" / WORKSHOP / "partial-0-dry").exists()


async def test_leftovers_are_gone_when_it_answers(here: Alone) -> None:
    orphan(here, "wet")
    answer = (await here.post("/api/gc", {"nodes": ["here"]})).json
    assert answer["failed"] == {}
    assert "partial-0-wet" in {left["folder"] for left in answer["nodes"][0]["leftovers"]}
    assert list((here.folder / "models" / WORKSHOP).glob("partial-*")) == []
    row = await here.row("deletion:.leftovers@here")
    assert (row["state"], row["cause"], row["currentBytes"]) == ("succeeded", "gc", answer["nodes"][0]["bytes"])
    again = (await here.post("/api/gc", {"nodes": ["here"]})).json
    assert (again["nodes"][0]["bytes"], again["nodes"][0]["leftovers"]) == (0, [])


async def test_a_model_goes_where_room_is_wanted_and_another_disk_has_it(
    here: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eviction, "JUST_USED", 0.0)
    lay_out(here.folder / "models", {"hen/a": b"h" * 10, "hen/b": b"h"})
    await copied(here, "hen", "of another revision")  # so the node looks what it has itself
    async with asyncio.timeout(60):
        await here.peer.until(lambda: bool(here.peer.fold.holdings.get(("here", "hen"))))
        await here.peer.until(lambda: here.peer.fold.holdings["here", "hen"].state == "held")
    digest = here.peer.fold.holdings["here", "hen"].digest
    await copied(here, "hen", digest, volume=here.peer.fold.nodes["here"].volume)
    [node] = (await here.post("/api/gc", {"nodes": ["here"], "free": 10**18})).json["nodes"]
    assert node["evicted"] == [], "there it is the very same folder"
    await copied(here, "hen", digest)
    [node] = (await here.post("/api/gc", {"nodes": ["here"], "free": 1})).json["nodes"]
    assert node["evicted"] == [], "so much is free"
    assert {copy["model"]: copy["keep"] for copy in node["kept"]} == {"hen": "", "owl": "the last copy"}
    [node] = (await here.post("/api/gc", {"nodes": ["here"], "free": 10**18})).json["nodes"]
    assert ([copy["model"] for copy in node["evicted"]], node["bytes"]) == (["hen"], 11)
    assert not (here.folder / "models" / "hen").exists()


async def test_from_a_replicas_own_folder_a_model_goes_only_where_it_is_named(
    here: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eviction, "JUST_USED", 0.0)
    await copied(here, "owl", here.peer.fold.holdings["here", "owl"].digest)
    await here.worker("frontend", kind="replica", volume=here.peer.fold.nodes["here"].volume)
    answer = (await here.post("/api/gc", {"free": 10**18, "dry_run": True})).json
    [node] = [node for node in answer["nodes"] if node["node"] == "here"]
    assert {copy["model"]: copy["keep"] for copy in node["kept"]}["owl"] == "in a replica's own folder: name its node"
    assert (node["evicted"], node["missing"]) == (
        [],
        10**18 - node["disk_free"] + node["disk_reserved"] - node["bytes"],
    )
    [node] = (await here.post("/api/gc", {"nodes": ["here"], "free": 1})).json["nodes"]
    assert node["missing"] == 0


async def test_a_pin_is_shown_and_holds_until_it_is_taken_away(here: Alone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eviction, "JUST_USED", 0.0)
    await copied(here, "owl", here.peer.fold.holdings["here", "owl"].digest)
    answer = await here.post("/api/models/owl/pin", {"nodes": ["here"]})
    assert (answer.status, answer.json["pinned"]) == (200, {"here": ["owl"]})
    nodes = {node["name"]: node for node in (await here.get("/api/nodes")).json["nodes"]}
    assert nodes["here"]["pinned"] == ["owl"]
    [node] = (await here.post("/api/gc", {"nodes": ["here"], "free": 10**18})).json["nodes"]
    assert [(copy["model"], copy["pinned"], copy["keep"]) for copy in node["kept"]] == [("owl", True, "pinned")]
    assert (await here.post("/api/models/owl/unpin", {"nodes": ["here"]})).json["pinned"] == {"here": []}
    [node] = (await here.post("/api/gc", {"nodes": ["here"], "free": 10**18, "dry_run": True})).json["nodes"]
    assert [copy["model"] for copy in node["evicted"]] == ["owl"]


async def test_what_cannot_be_meant(here: Alone) -> None:
    assert (await here.post("/api/gc", {"nodes": []})).error == (
        400, "bad_input", 'say which nodes: "nodes" is a list of names, or "all"',
    )  # fmt: skip
    assert (await here.post("/api/gc", {"nodes": ["nobody"]})).error[:2] == (404, "not_found")
    assert (await here.post("/api/gc", {"free": -1})).error == (400, "bad_input", "free cannot be negative")
    assert (await here.post("/api/models/nope/pin", {})).error[:2] == (404, "not_found")
    status, code, message = (await here.post("/api/models/owl/pin", {"nodes": ["nobody"]})).error
    assert (status, code) == (404, "not_found")
    assert message.startswith("no copy of owl on node 'nobody' is known; known: ")


async def test_a_node_that_does_not_answer_is_told_and_keeps_nobody_waiting(here: Alone) -> None:
    await here.worker("mute")
    answer = (await here.post("/api/gc", {"nodes": ["here", "mute"], "dry_run": True})).json
    assert [node["node"] for node in answer["nodes"]] == ["here"]
    assert list(answer["failed"]) == ["mute"]
    await here.beat("mute/1", leaving=True)
    everywhere = (await here.post("/api/gc", {"dry_run": True})).json
    assert "mute" not in everywhere["failed"], "all are those that live"


async def test_a_staging_can_be_told_to_wait_for_room(here: Alone) -> None:
    await here.worker("later")
    for name, body in (("now", {}), ("later", {"wait_for_space": True})):
        await here.worker(name)
        assert (await here.post("/api/models/owl/stage", {"nodes": [name], **body})).status == 202
        await eventually(lambda name=name: here.peer.fold.record(f"staging:owl@{name}") is not None)
    parameters = {
        name: here.peer.fold.record(f"staging:owl@{name}").parameters  # type: ignore[union-attr]
        for name in ("now", "later")
    }
    assert "wait_for_space" not in parameters["now"]
    assert parameters["later"]["wait_for_space"] == "yes"


async def test_a_plan_counts_what_has_arrived_and_what_is_promised(here: Alone) -> None:
    store = Store(here.folder / "models", here.folder / "data-of-another-process", "here")
    with store.reserve(12345, 0, "another process"):
        plan = (await here.post("/api/models/owl/stage", {"nodes": ["here"], "dry_run": True})).json["plan"]
    [node] = plan["nodes"]
    assert (node["disk_reserved"], node["present"], node["to_move"]) == (12345, SIZE, 0)
    with store.reserve(12345, 0, "staging:owl@here"):
        plan = (await here.post("/api/models/owl/stage", {"nodes": ["here"], "dry_run": True})).json["plan"]
    assert plan["nodes"][0]["disk_reserved"] == 0, "that is for the very model"


async def test_a_budget_reaches_the_node_and_is_shown(tmp_path: Path) -> None:
    async with alone(tmp_path, disk_budget=5, keep_free=7) as small:
        await eventually(lambda: small.peer.fold.nodes["here"].disk_budget)
        [node] = (await small.get("/api/nodes")).json["nodes"]
        assert (node["disk_budget"], node["disk_keep_free"]) == (5, 7)
        [found] = (await small.post("/api/gc", {"dry_run": True})).json["nodes"]
        assert [copy["keep"] for copy in found["kept"]] == ["the last copy"], "over its budget, and nothing may go"


async def test_room_that_no_disk_has_is_refused(here: Alone) -> None:
    for free, said in ((-1, "free cannot be negative"), (10**18 + 1, "free is more than any disk has")):
        status, code, message = (await here.post("/api/gc", {"nodes": ["here"], "free": free, "dry_run": True})).error
        assert (status, code) == (400, "bad_input")
        assert message.startswith(said)
