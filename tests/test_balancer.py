"""The balancer's configuration is one that Caddy takes."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import aiohttp

from stagecast.balancer import caddyfile
from stagecast.loopback import free_port, is_free
from tests.conftest import eventually

CADDY = Path(sys.executable).parent / "caddy"


def test_caddy_reads_what_is_meant(tmp_path: Path) -> None:
    (tmp_path / "Caddyfile").write_text(caddyfile(8080, ["127.0.0.1:1", "127.0.0.1:2"]))
    command = [str(CADDY), "adapt", "--config", "Caddyfile", "--adapter", "caddyfile"]
    adapted = json.loads(subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout)
    assert adapted["admin"]["listen"] == "unix/caddy.sock|0600"
    [server] = adapted["apps"]["http"]["servers"].values()
    assert server["listen"] == ["127.0.0.1:8080"]
    [errors] = server["errors"]["routes"]
    assert "no_replica" in json.dumps(errors)
    [proxy] = server["routes"][0]["handle"]
    assert proxy["flush_interval"] == -1
    assert [upstream["dial"] for upstream in proxy["upstreams"]] == ["127.0.0.1:1", "127.0.0.1:2"]
    assert proxy["load_balancing"]["selection_policy"] == {"policy": "round_robin"}
    # Caddy always sends again what could not connect; this is what else it does.
    assert proxy["load_balancing"]["retry_match"] == [
        {
            "expression": "method('GET') && ({http.reverse_proxy.is_transport_error} == true"
            " || path('/api/*') && {http.reverse_proxy.status_code} == 503)"
        }
    ]


async def test_where_no_replica_answers_the_balancer_says_so_as_a_replica_would(tmp_path: Path) -> None:
    port, dead = free_port(), free_port()
    (tmp_path / "Caddyfile").write_text(caddyfile(port, [f"127.0.0.1:{dead}"]))
    command = (str(CADDY), "run", "--config", "Caddyfile", "--adapter", "caddyfile")
    log = tmp_path / "caddy.log"
    with log.open("wb") as said:
        caddy = await asyncio.create_subprocess_exec(*command, cwd=tmp_path, stdout=said, stderr=said)
    try:
        await eventually(lambda: not is_free(port))
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
            for path, error in (
                ("/api/operations", {"code": "no_replica"}),
                ("/v1/models", {"code": "no_replica", "type": "server_error", "param": None}),
            ):
                async with http.get(path) as answer:
                    assert answer.status in {502, 503}
                    assert (answer.content_type, answer.headers["Retry-After"]) == ("application/json", "1")
                    said_error = (await answer.json())["error"]
                assert said_error.pop("message").startswith("no replica answers")
                assert said_error == error
    finally:
        caddy.terminate()
        await caddy.wait()
