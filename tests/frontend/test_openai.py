from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio

from stagecast import subjects
from stagecast.errors import BadInput
from stagecast.frontend.openai import requested_model
from stagecast.messages import Holding, Instance
from tests.alone import WEIGHTS, Alone, alone
from tests.model_server import is_gone
from tests.system.deployment import write_backends

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONTENTS = {"owl": WEIGHTS, "broken": b"b", "slow": b"s", "chat": b"c", "doomed": b"d"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def serving(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Alone]:
    folder = tmp_path_factory.mktemp("serving")
    backends = write_backends(
        folder / "backends.yaml", owl=(), doomed=(), chat=(), broken=("--fail", "out of luck"),
        slow=("--gate", str(folder / "never")),
    )  # fmt: skip
    async with alone(folder, CONTENTS, backends=backends, wait_budget=5.0) as running:
        yield running


async def embeddings(here: Alone, model: str) -> list[list[float]]:
    answer = await here.post("/v1/embeddings", {"model": model, "input": ["a", "b"]})
    assert answer.status == 200, answer.body
    return [each["embedding"] for each in answer.json["data"]]


def wrong(message: str, code: str = "bad_input") -> dict[str, object]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}


async def test_models_are_cards(serving: Alone) -> None:
    card = {"id": "owl", "object": "model", "created": 0, "owned_by": "stagecast"}
    for path in ("/v1/models", "/v1/models/"):
        said = (await serving.get(path)).json
        assert said["object"] == "list"
        assert card in said["data"]
        assert [each["id"] for each in said["data"]] == sorted(CONTENTS)
    assert (await serving.get("/v1/models/owl")).json == card
    missing = await serving.get("/v1/models/nope")
    assert (missing.status, missing.json["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize("body", [b"", b"{}", b'{"model": ""}'])
async def test_a_request_has_to_name_a_model(serving: Alone, body: bytes) -> None:
    answer = await serving.ask("POST", "/v1/embeddings", data=body)
    assert (answer.status, answer.json) == (400, wrong('the request names no model; say "model" in its body'))


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"model": 5}', b"\xff"])
async def test_a_body_that_is_no_request_is_refused(serving: Alone, body: bytes) -> None:
    answer = await serving.ask("POST", "/v1/chat/completions", data=body)
    assert (answer.status, answer.json["error"]["code"]) == (400, "bad_input")
    assert answer.json["error"]["message"].startswith("the body is not the JSON that /v1/chat/completions takes: ")


async def test_a_model_is_loaded_by_its_first_request_and_answers_the_next(serving: Alone) -> None:
    first, second = await asyncio.gather(embeddings(serving, "owl"), embeddings(serving, "owl"))
    assert first == second
    assert first[0][0] not in {0, os.getpid()}
    [instance] = (await serving.get("/api/models/owl")).json["instances"]
    assert (instance["node"], instance["state"]) == ("here", "ready")


async def test_a_multipart_request_is_routed_too(serving: Alone) -> None:
    form = aiohttp.FormData()
    form.add_field("file", b"audio", filename="a.wav")
    form.add_field("model", "nope")
    answer = await serving.ask("POST", "/v1/audio/transcriptions", data=form)
    assert (answer.status, answer.json["error"]["code"]) == (404, "not_found")
    assert answer.json["error"]["message"].startswith("no model 'nope' is known")


async def test_a_stream_passes_through(serving: Alone) -> None:
    answer = await serving.post("/v1/chat/completions", {"model": "chat", "stream": True})
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/event-stream")
    assert answer.headers["Stagecast-Replica"] == "here"
    assert answer.body == b"data: one\n\ndata: two\n\ndata: three\n\ndata: [DONE]\n\n"


async def test_what_the_backend_does_not_know_is_its_own_answer(serving: Alone) -> None:
    answer = await serving.ask("PATCH", "/v1/anything", json={"model": "owl"})
    assert answer.status == 501, "http.server's own word for a method that it does not have"


async def test_a_model_that_cannot_load_says_why(serving: Alone) -> None:
    answer = await serving.post("/v1/embeddings", {"model": "broken", "input": []})
    assert answer.status == 502
    error = answer.json["error"]
    assert (error["type"], error["param"], error["code"]) == ("server_error", None, "backend_failed")
    assert "out of luck" in error["message"]


async def test_a_load_that_takes_longer_than_the_budget_says_where_it_stands(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("slow")
    backends = write_backends(folder / "backends.yaml", slow=("--gate", str(folder / "never")))
    async with alone(folder, {"slow": b"s"}, backends=backends, wait_budget=0.3) as here:
        answer = await here.post("/v1/embeddings", {"model": "slow", "input": []})
        assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
        message = "slow is loading; ask again after the time in Retry-After"
        assert answer.json["error"] == {"message": message, "type": "model_loading", "code": "model_loading"}
        loading = answer.json["loading"]
        assert (loading["model"], loading["state"], loading["node"]) == ("slow", "loading", "here")
        assert (loading["bytes_sent"], loading["total_bytes"], loading["progress"]) == (0, 1, 0)
        assert "eta_seconds" not in loading


async def test_an_instance_that_is_gone_is_not_asked_twice(serving: Alone) -> None:
    """The log still calls an instance ready that its worker no longer has: the worker refuses, another is asked."""
    await embeddings(serving, "doomed")
    [real] = (await serving.get("/api/models/doomed")).json["instances"]
    address = serving.peer.fold.nodes["here"].address
    process = await serving.worker("a-ghost", address=address)
    await serving.say(subjects.holding("a-ghost", "doomed"), Holding(node="a-ghost", model="doomed", digest="d"))
    ghost = Instance(node="a-ghost", model="doomed", process=process, instance="ghost", state="ready")
    await serving.say(subjects.instance("a-ghost", "doomed"), ghost)
    pid = (await embeddings(serving, "doomed"))[0][0]
    assert not is_gone(int(pid))
    nowhere = await serving.worker("a-nowhere", address="http://127.0.0.1:9")
    await serving.say(
        subjects.instance("a-nowhere", "doomed"),
        Instance(node="a-nowhere", model="doomed", process=nowhere, instance="nowhere", state="ready"),
    )
    assert (await embeddings(serving, "doomed"))[0][0] == pid
    assert real["node"] == "here"


@pytest.mark.parametrize(
    ("kind", "body", "model"),
    [
        ("application/json", json.dumps({"model": "m", "x": [1]}).encode(), "m"),
        ("", b'{"model":"a/b"}', "a/b"),
        ("multipart/form-data; boundary=x", b'--x\r\nname="model"\r\n\r\nm 1\r\n--x--', "m 1"),
        ("multipart/form-data; boundary=x", b'--x\r\nname="model"\r\nContent-Type: t\r\n\r\nm\r\n--x--', "m"),
    ],
)
async def test_the_model_is_read_from_the_body(kind: str, body: bytes, model: str) -> None:
    assert requested_model("/v1/x", {"headers": [(b"content-type", kind.encode())]}, body) == model


async def test_a_multipart_body_without_a_model_names_none() -> None:
    scope = {"headers": [(b"content-type", b"multipart/form-data; boundary=x")]}
    with pytest.raises(BadInput, match="the request names no model"):
        requested_model("/v1/x", scope, b'--x\r\nname="file"\r\n\r\nmodel\r\n--x--')
