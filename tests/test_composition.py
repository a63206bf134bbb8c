from __future__ import annotations

import socket
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stagecast import composition, subjects
from stagecast.errors import BadInput, InvalidName
from stagecast.loopback import free_port
from stagecast.messages import NodeRecord
from stagecast.settings import ReplicaSettings, WorkerSettings
from tests.alone import alone

OPEN = "0.0.0.0:0"
SECRETS = {"api_key": "k", "token": "t"}


def replica(folder: Path, **options: Any) -> AbstractAsyncContextManager[str]:
    return composition.replica(ReplicaSettings(**({"data": folder, "listen": "127.0.0.1:0", "name": "n"} | options)))


def worker(folder: Path, **options: Any) -> AbstractAsyncContextManager[str]:
    """Return a worker whose NATS nobody runs: whatever is refused before is refused without it."""
    nats = f"nats://127.0.0.1:{free_port()}"
    values = {"data": folder, "listen": "127.0.0.1:0", "name": "n", "nats": nats} | options
    return composition.worker(WorkerSettings(**values))


async def refusal(process: AbstractAsyncContextManager[str], error: type[Exception] = BadInput) -> str:
    with pytest.raises(error) as refused:
        async with process:
            pass
    return str(refused.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "", "10.1.2.3"])
async def test_nothing_listens_outside_loopback_without_a_secret(tmp_path: Path, host: str) -> None:
    said = await refusal(replica(tmp_path, listen=f"{host}:0"))
    assert said == (
        f"{host.strip('[]') or '*'} can be reached from other machines, and without a secret anybody could use it: "
        "set STAGECAST_API_KEY, or say --allow-unauthenticated"
    )
    assert "set STAGECAST_TOKEN, or say" in await refusal(worker(tmp_path, listen=f"{host}:0"))
    assert list(tmp_path.iterdir()) == [], "nothing was begun"


async def test_the_files_need_the_cluster_s_secret_though_the_api_has_its_own(tmp_path: Path) -> None:
    said = await refusal(replica(tmp_path, listen=OPEN, api_key="k"))
    assert said.endswith("set STAGECAST_TOKEN, or say --allow-unauthenticated")
    assert "set STAGECAST_TOKEN" in await refusal(replica(tmp_path, files_listen=OPEN))


@pytest.mark.parametrize("options", [SECRETS, {"allow_unauthenticated": True}])
async def test_with_a_secret_or_by_name_it_does(tmp_path: Path, options: dict[str, Any]) -> None:
    async with replica(tmp_path, listen=OPEN, advertise="127.0.0.1", **options) as url:
        assert url.startswith("http://127.0.0.1:")


async def test_a_wildcard_is_advertised_by_this_host_s_name(tmp_path: Path) -> None:
    async with replica(tmp_path, listen=OPEN, **SECRETS) as url:
        assert url.rpartition(":")[0] == f"http://{socket.gethostname()}"


@pytest.mark.parametrize("process", [replica, worker])
async def test_options_that_cannot_be_meant_are_named(tmp_path: Path, process: Any) -> None:
    assert await refusal(process(tmp_path, listen="8080")) == "--listen is '8080'; write it like 127.0.0.1:8080"
    said = await refusal(process(tmp_path, name="a/b"), InvalidName)
    assert said == "'a/b' cannot be the name of a node: it may not start with a dot or contain '/'"
    assert "it needs 1 to 200 bytes" in await refusal(process(tmp_path, name=""), InvalidName)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = await refusal(process(tmp_path, listen=f"127.0.0.1:{port}"))
    assert said.startswith(f"cannot listen on 127.0.0.1:{port}: Address already in use")


async def test_a_file_server_s_address_is_checked_too(tmp_path: Path) -> None:
    said = await refusal(replica(tmp_path, files_listen="nonsense"))
    assert said == "--files-listen is 'nonsense'; write it like 127.0.0.1:8080"


async def test_a_backends_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    said = await refusal(replica(tmp_path, backends=tmp_path / "none.yaml"))
    assert said == f"the backends file {tmp_path}/none.yaml cannot be read: No such file or directory"


async def test_what_was_refused_leaves_no_port_taken(tmp_path: Path) -> None:
    port = free_port()
    await refusal(replica(tmp_path, listen=f"127.0.0.1:{port}", backends=tmp_path / "none.yaml"))
    with socket.create_server(("127.0.0.1", port)):
        pass


async def test_alone_under_another_name_what_the_earlier_one_left_is_no_riddle(tmp_path: Path) -> None:
    """As in a container that is called otherwise with every start."""
    async with alone(tmp_path, name="first") as here:
        cut_off = await here.running("installation", "big", parameters={"reference": "/nowhere", "gallery": "",
                                                                        "name": "", "sha256": ""})  # fmt: skip
        paused = await here.running("installation", "held", state="paused")
    async with alone(tmp_path, name="second") as here:
        assert {node["name"]: node["alive"] for node in (await here.get("/api/nodes")).json["nodes"]} == {
            "second": True
        }
        row = await here.ended(cut_off)
        assert "/nowhere" in row["error"], "it was gone on with, and found what is wrong with it"
        assert [each["state"] for each in row["attempts"]] == ["replaced", "failed"]
        assert (await here.row(paused))["state"] == "paused"


async def test_alone_one_process_is_replica_and_worker_and_says_goodbye(tmp_path: Path) -> None:
    async with alone(tmp_path) as here:
        [node] = (await here.get("/api/nodes")).json["nodes"]
        assert (node["name"], node["kind"], node["alive"]) == ("here", "worker", True)
        assert node["address"] != here.url, "the worker inside has a listener of its own"
        bus = here.bus
    entry = await bus.log.last(subjects.node("here"))
    assert entry is not None
    assert msgspec.json.decode(entry.payload, type=NodeRecord).left


@pytest.mark.parametrize(("names", "stock"), [((), "0 models"), (("a",), "1 model"), (("a", "b", "c"), "3 models")])
async def test_a_start_says_how_many_models_there_are_and_where_and_the_page_s_address(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, names: tuple[str, ...], stock: str
) -> None:
    models = tmp_path / "srv" / "models"
    for name in names:
        (models / name).mkdir(parents=True)
        (models / name / "a.bin").write_bytes(b"weights")
    caplog.set_level("INFO", "stagecast.composition")
    async with replica(tmp_path / "data", models=models) as url:
        assert models.is_dir(), "what is not there is made"
    assert f"replica n answers at {url}, its page is {url}/; {stock} in {models}" in caplog.messages
