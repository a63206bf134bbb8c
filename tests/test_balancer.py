"""The balancer's configuration is one that Caddy takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from stagecast.balancer import caddyfile


def test_caddy_reads_what_is_meant(tmp_path: Path) -> None:
    (tmp_path / "Caddyfile").write_text(caddyfile(8080, ["127.0.0.1:1", "127.0.0.1:2"]))
    caddy = Path(sys.executable).parent / "caddy"
    command = [str(caddy), "adapt", "--config", "Caddyfile", "--adapter", "caddyfile"]
    adapted = json.loads(subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout)
    assert adapted["admin"]["listen"] == "unix/caddy.sock|0600"
    [server] = adapted["apps"]["http"]["servers"].values()
    assert server["listen"] == ["127.0.0.1:8080"]
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
