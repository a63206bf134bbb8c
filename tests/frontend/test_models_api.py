from __future__ import annotations

import asyncio
import hashlib

import pytest

from stagecast.messages import Holding
from stagecast.store import Store
from stagecast.subjects import holding
from tests.alone import OWL, WEIGHTS, Alone
from tests.sample import lay_out

pytestmark = pytest.mark.asyncio(loop_scope="module")

SIZE = sum(map(len, OWL.values()))


async def test_models_and_who_holds_them(here: Alone) -> None:
    [owl] = [model for model in (await here.get("/api/models")).json["models"] if model["name"] == "owl"]
    digest = here.peer.fold.holdings["here", "owl"].digest
    assert owl == {
        "name": "owl", "bytes": SIZE, "files": 2, "digest": digest, "instances": [],
        "holders": [{"node": "here", "kind": "worker", "complete": True, "digest": digest}],
    }  # fmt: skip
    detail = (await here.get("/api/models/owl")).json
    assert {key: value for key, value in detail.items() if key != "manifest"} == owl
    assert [(file["path"], file["size"]) for file in detail["manifest"]] == [("config.json", 2), ("weights.bin", 2048)]


async def test_a_copy_is_verified_and_what_it_took_is_a_row(here: Alone) -> None:
    answer = await here.post("/api/models/owl/verify")
    assert (answer.status, [row["id"] for row in answer.json["operations"]]) == (202, ["staging:owl@here"])
    row = await here.ended("staging:owl@here")
    assert (row["state"], row["currentBytes"], row["totalBytes"], row["bytesMoved"]) == ("succeeded", SIZE, SIZE, 0)
    assert (await here.post("/api/models/owl/verify", {"nodes": ["nowhere"]})).error == (
        404, "not_found", "no copy of owl on node 'nowhere' is known; known: here",
    )  # fmt: skip


async def test_what_cannot_be_verified_just_now_says_why(here: Alone) -> None:
    await here.worker("away")
    await here.say(holding("away", "kept"), Holding(node="away", model="kept", digest="d", size=1, files=1))
    await here.running("staging", "kept", "away")
    assert (await here.post("/api/models/kept/verify")).error == (
        409, "wrong_state", "cannot verify kept on away: it is being staged",
    )  # fmt: skip
    await here.beat("away/1", leaving=True)
    assert (await here.post("/api/models/kept/verify", {"nodes": ["away"]})).error == (
        409, "wrong_state", "cannot verify kept on away: it is out of reach",
    )  # fmt: skip
    assert (await here.post("/api/models/kept/verify")).error[:2] == (409, "wrong_state")
    await here.worker("away", left=True)


async def test_what_nobody_has_is_not_found(here: Alone) -> None:
    for method, path, body in (
        ("GET", "", None), ("DELETE", "", None), ("POST", "/stage", {"nodes": ["here"]}), ("POST", "/load", None),
        ("POST", "/verify", None),
    ):  # fmt: skip
        status, code, message = (await here.ask(method, f"/api/models/nope{path}", json=body)).error
        assert (status, code) == (404, "not_found")
        assert message.startswith("no model 'nope' is known; known: ")


async def test_a_model_that_nobody_has_read_in_yet_has_no_manifest_but_is_there(here: Alone) -> None:
    await here.worker("reader")
    await here.say(holding("reader", "fresh"), Holding(node="reader", model="fresh", state="reading"))
    detail = (await here.get("/api/models/fresh")).json
    assert (detail["digest"], detail["bytes"], detail["manifest"]) == ("", 0, [])
    assert [(each["node"], each["complete"]) for each in detail["holders"]] == [("reader", False)]


async def test_a_manifest_that_no_holder_gives_is_told(here: Alone) -> None:
    await here.worker("mute", files="http://127.0.0.1:9")
    await here.say(holding("mute", "secret"), Holding(node="mute", model="secret", digest="d", size=1, files=1))
    status, code, message = (await here.get("/api/models/secret")).error
    assert (status, code) == (502, "transfer_failed")
    assert message.startswith("no holder gave the manifest of secret: ")
    await here.beat("mute/1", leaving=True)
    assert (await here.get("/api/models/secret")).error[2] == "no holder gave the manifest of secret: none is alive"
    assert (await here.ask("DELETE", "/api/models/secret")).error == (
        409, "wrong_state", "cannot delete secret on mute: it is out of reach; name the other nodes one by one",
    )  # fmt: skip
    await here.worker("mute", left=True)


async def test_a_manifest_is_looked_for_once_and_then_known(here: Alone, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read touches no network and no disk (law L14): a digest's manifest never changes."""
    first = (await here.get("/api/models/owl")).json

    def reads(*_: object) -> None:
        raise AssertionError("the disk was read")

    monkeypatch.setattr(Store, "recorded", reads)
    assert (await here.get("/api/models/owl")).json == first


async def test_staging_is_queued_for_each_node_and_not_twice(here: Alone) -> None:
    for name in ("one", "two"):
        await here.worker(name)
    answer = await here.post("/api/models/owl/stage", {"nodes": ["two", "one", "two"]})
    assert answer.status == 202
    rows = answer.json["operations"]
    assert [(row["id"], row["state"], row["totalBytes"]) for row in rows] == [
        ("staging:owl@two", "queued", SIZE), ("staging:owl@one", "queued", SIZE),
    ]  # fmt: skip
    listed = await here.get("/api/operations", params={"min_revision": answer.json["revision"]})
    assert {row["id"] for row in rows} <= {row["id"] for row in listed.json["operations"]}
    assert [[node["node_name"] for node in row["nodes"]] for row in rows] == [["one", "two"]] * 2
    assert rows[0]["callID"] == rows[1]["callID"]
    again = await here.post("/api/models/owl/stage", {"nodes": ["one"]})
    assert again.json["operations"] == [rows[1]]
    alone = await here.post("/api/models/owl/stage", {"nodes": ["here"]})
    assert "nodes" not in alone.json["operations"][0]
    assert (await here.ended("staging:owl@here"))["state"] == "succeeded"


async def test_a_call_for_many_tells_of_those_that_were_under_way_before_it(here: Alone) -> None:
    for name in ("early", "later"):
        await here.worker(name)
    [first] = (await here.post("/api/models/owl/stage", {"nodes": ["later"]})).json["operations"]
    answer = (await here.post("/api/models/owl/stage", {"nodes": ["early", "later"]})).json
    new, running = answer["operations"]
    assert (new["id"], running) == ("staging:owl@early", first)
    assert [node["node_name"] for node in new["nodes"]] == ["early", "later"]
    listed = await here.get("/api/operations", params={"min_revision": answer["revision"]})
    assert new in listed.json["operations"], "the list says the same"


async def test_a_plan_says_what_it_would_take_and_does_nothing(here: Alone) -> None:
    await here.worker("roomy", disk_free=10**6)
    await here.worker("narrow", disk_free=SIZE - 1)
    before = here.peer.revision
    answer = await here.post("/api/models/owl/stage", {"nodes": ["here", "roomy", "narrow"], "dry_run": True})
    assert (answer.status, here.peer.revision) == (200, before)
    plan = answer.json["plan"]
    assert (plan["model"], plan["bytes"]) == ("owl", SIZE)
    at_home, roomy, narrow = plan["nodes"]
    assert (at_home["present"], at_home["to_move"], at_home["fits"], at_home["holders"]) == (SIZE, 0, True, [])
    assert roomy == {
        "node": "roomy", "bytes": SIZE, "present": 0, "to_move": SIZE, "to_copy": 0, "disk_free": 10**6,
        "disk_reserved": 0, "disk_taken": 0, "fits": True, "holders": ["here"],
    }  # fmt: skip
    assert (narrow["fits"], narrow["disk_free"]) == (False, SIZE - 1)


async def test_of_two_nodes_on_one_disk_the_plan_says_which_one_has_room(here: Alone) -> None:
    await here.worker("left", disk_free=2 * SIZE - 1, volume="disk:1")
    await here.worker("right", disk_free=2 * SIZE - 1, volume="disk:2")
    answer = await here.post("/api/models/owl/stage", {"nodes": ["left", "right"], "dry_run": True})
    found = [(node["node"], node["fits"], node["disk_taken"]) for node in answer.json["plan"]["nodes"]]
    assert found == [("left", True, 0), ("right", False, SIZE)]


async def test_all_are_the_workers_that_do_not_drain(here: Alone) -> None:
    for process in {node.process for node in here.peer.fold.nodes.values()}:
        await here.beat(process)
    await here.worker("drains", draining=True)
    answer = await here.post("/api/models/owl/stage", {"nodes": "all", "dry_run": True})
    nodes = {plan["node"] for plan in answer.json["plan"]["nodes"]}
    assert "here" in nodes
    assert "drains" not in nodes
    named = await here.post("/api/models/owl/stage", {"nodes": ["drains"], "dry_run": True})
    assert named.status == 200, "who names it means it"


async def test_nodes_that_cannot_be_meant(here: Alone) -> None:
    await here.worker("dead")
    await here.beat("dead/1", leaving=True)
    await here.worker("front", kind="replica")
    stage = "/api/models/owl/stage"
    assert (await here.post(stage, {"nodes": []})).error == (
        400, "bad_input", 'say which workers: "nodes" is a list of names, or "all"',
    )  # fmt: skip
    for name in ("nobody", "front"):
        status, code, message = (await here.post(stage, {"nodes": ["here", name]})).error
        assert (status, code) == (404, "not_found")
        assert message.startswith(f"no worker '{name}' is known; known: ")
    assert (await here.post(stage, {"nodes": ["dead"]})).error == (
        409, "wrong_state", "cannot stage to worker dead: it is not answering",
    )  # fmt: skip
    await here.worker("dead", left=True)


async def test_a_load_is_a_wish_that_stands_until_it_is_changed(here: Alone) -> None:
    await here.worker("loads")
    answer = await here.post("/api/models/owl/load", {"node": "loads"})
    assert answer.status == 202
    placement = answer.json["placement"]
    assert (placement["model"], placement["nodes"]) == ("owl", ["loads"])
    assert (await here.post("/api/models/owl/load")).json["placement"] == placement
    status, code, _ = (await here.post("/api/models/owl/load", {"node": "nobody"})).error
    assert (status, code) == (404, "not_found")


async def test_deleting_takes_the_files_and_the_wish(here: Alone, tmp_path_factory: pytest.TempPathFactory) -> None:
    source = tmp_path_factory.mktemp("source") / "doomed"
    source.write_bytes(WEIGHTS)
    installed = (await here.post("/api/models/install", {"ref": str(source)})).json["operations"][0]
    assert (await here.ended(installed["id"]))["state"] == "succeeded"
    await here.worker("elsewhere")
    await here.post("/api/models/doomed/load", {"node": "here"})
    status, code, message = (await here.ask("DELETE", "/api/models/doomed?node=elsewhere")).error
    assert (status, code) == (404, "not_found")
    assert message == "no copy of doomed on node 'elsewhere' is known; known: here"
    answer = await here.ask("DELETE", "/api/models/doomed?node=here")
    assert (answer.status, answer.json["removed"]) == (200, [{"node": "here", "bytes": len(WEIGHTS)}])
    assert (await here.get("/api/models/doomed")).status == 404
    assert here.peer.fold.placements["doomed"].nodes == ()


async def test_what_a_cancel_kept_counts_in_a_plan_and_goes_with_the_model(
    here: Alone, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = tmp_path_factory.mktemp("source") / "partly"
    source.write_bytes(WEIGHTS)
    installed = (await here.post("/api/models/install", {"ref": str(source)})).json["operations"][0]
    assert (await here.ended(installed["id"]))["state"] == "succeeded"
    await here.worker("keeps")
    digest = here.peer.fold.holdings["here", "partly"].digest
    kept = {"state": "cancelled", "keep_partial": True, "bytes_kept": 48, "parameters": {"digest": digest}}
    await here.running("staging", "partly", "keeps", **kept)
    answer = await here.post("/api/models/partly/stage", {"nodes": ["keeps"], "dry_run": True})
    [plan] = answer.json["plan"]["nodes"]
    assert (plan["present"], plan["to_move"]) == (48, len(WEIGHTS) - 48)
    removing = asyncio.create_task(here.ask("DELETE", "/api/models/partly"))
    name = "deletion:partly@keeps"
    await here.peer.until(lambda: (found := here.peer.fold.record(name)) is not None and found.state == "queued")
    record = here.peer.fold.record(name)
    assert record is not None
    async with here.peer.own(record) as ownership:
        assert ownership is not None
        await ownership.change(bytes_total=48, bytes_done=48)
    assert (await removing).json["removed"] == [
        {"node": "here", "bytes": len(WEIGHTS)}, {"node": "keeps", "bytes": 48},
    ]  # fmt: skip
    await here.worker("keeps", left=True)


async def test_what_to_install_has_to_be_said(here: Alone) -> None:
    said = 'say what to install: "ref" or "url", or "gallery" with "name"'
    for body in ({}, {"name": "x"}, {"gallery": "file:///index.yaml"}):
        assert (await here.post("/api/models/install", body)).error == (400, "bad_input", said)
    assert (await here.post("/api/models/install", {"reference": "x"})).status == 400


@pytest.mark.parametrize("by", ["ref", "url"])
async def test_a_file_is_installed_under_its_name_or_another(
    here: Alone, tmp_path_factory: pytest.TempPathFactory, by: str
) -> None:
    source = tmp_path_factory.mktemp("source") / f"plain-{by}.gguf"
    source.write_bytes(WEIGHTS)
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    reference = str(source) if by == "ref" else source.as_uri()
    for name, body in ((source.name, {}), (f"named-{by}", {"name": f"named-{by}", "sha256": digest})):
        answer = await here.post("/api/models/install", {by: reference} | body)
        assert answer.status == 202
        [row] = answer.json["operations"]
        assert (row["id"], row["taskType"]) == (f"installation:{name}", "installation")
        assert (await here.ended(row["id"]))["state"] == "succeeded"
        assert (await here.get(f"/api/models/{name}")).json["bytes"] == len(WEIGHTS)


async def test_an_entry_of_a_gallery_is_installed(here: Alone, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("gallery")
    lay_out(folder, {"files/weights.bin": WEIGHTS})
    index = folder / "index.yaml"
    index.write_text(
        f"""
- name: gem
  files:
  - {{filename: w/weights.bin, uri: files/weights.bin, sha256: {hashlib.sha256(WEIGHTS).hexdigest()}}}
"""
    )
    body = {"gallery": index.as_uri(), "name": "gem"}
    [row] = (await here.post("/api/models/install", body)).json["operations"]
    end = await here.ended(row["id"])
    assert (end["state"], end["name"], end["totalBytes"]) == ("succeeded", "gem", len(WEIGHTS))
    assert [file["path"] for file in (await here.get("/api/models/gem")).json["manifest"]] == ["w/weights.bin"]
    renamed = {"gallery": index.as_uri(), "ref": "gem", "name": "jewel"}
    [row] = (await here.post("/api/models/install", renamed)).json["operations"]
    assert (row["id"], (await here.ended(row["id"]))["state"]) == ("installation:jewel", "succeeded")
    status, code, message = (await here.post("/api/models/install", body | {"name": "stone"})).error
    assert (status, code, message) == (404, "not_found", "no gallery entry 'stone' is known; known: gem")
    missing = await here.post("/api/models/install", {"gallery": (folder / "none").as_uri(), "name": "gem"})
    assert missing.error[:2] == (502, "source_refused")


async def test_a_file_that_is_not_the_published_one_fails(
    here: Alone, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = tmp_path_factory.mktemp("source") / "forged"
    source.write_bytes(WEIGHTS)
    bad = "0" * 64
    [row] = (await here.post("/api/models/install", {"ref": str(source), "sha256": bad})).json["operations"]
    end = await here.ended(row["id"])
    assert end["state"] == "failed"
    assert bad in end["error"]
    assert (await here.get("/api/models/forged")).status == 404


async def test_nodes_and_a_drain_and_its_end(here: Alone) -> None:
    await here.worker("left", left=True)
    await here.worker("labelled", labels={"gpu": "2"}, address="http://w")
    nodes = {node["name"]: node for node in (await here.get("/api/nodes")).json["nodes"]}
    assert list(nodes) == sorted(nodes)
    assert "left" not in nodes
    assert nodes["labelled"]["labels"] == {"gpu": "2"}
    assert "owl" in nodes["here"]["models"]
    assert nodes["here"]["disk_total"] > 0
    for verb, draining in (("drain", True), ("drain", True), ("resume", False)):
        answer = await here.post(f"/api/nodes/here/{verb}")
        assert (answer.status, answer.json["name"], answer.json["draining"]) == (200, "here", draining)
        assert here.peer.fold.nodes["here"].draining == draining
    for name in ("nobody", "left"):
        status, code, message = (await here.post(f"/api/nodes/{name}/drain")).error
        assert (status, code) == (404, "not_found")
        assert message.startswith(f"no node '{name}' is known; known: ")
    assert (await here.post("/api/nodes/labelled/drain")).error[:2] == (503, "nobody_listens")


async def test_two_deletions_at_once_are_one(here: Alone, tmp_path_factory: pytest.TempPathFactory) -> None:
    source = tmp_path_factory.mktemp("source") / "twice"
    source.write_bytes(WEIGHTS)
    [row] = (await here.post("/api/models/install", {"ref": str(source)})).json["operations"]
    await here.ended(row["id"])
    answers = await asyncio.gather(*(here.ask("DELETE", "/api/models/twice") for _ in range(3)))
    assert 200 in {answer.status for answer in answers}
    assert {answer.status for answer in answers} <= {200, 404}
