"""`fastapi_service.py` three times on one machine: a real nats-server, three uvicorns, and Caddy before them.

    python examples/fastapi_cluster.py --port 8080

Then, in another terminal, through the balancer, so each request lands on the next replica:

    curl -X POST 'http://127.0.0.1:8080/render/film?frames=600'
    curl -N http://127.0.0.1:8080/jobs/stream
    stagecast ops --watch --url http://127.0.0.1:8080/jobs
    curl -X POST http://127.0.0.1:8080/jobs/render:film/cancel

End the process that a row names as its owner (``kill -9``), and another one goes on within ten seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

# How Stagecast itself starts servers, and sees to it that none is left behind; no part of its public interface.
from stagecast.balancer import caddyfile
from stagecast.child import Child, Program
from stagecast.loopback import HOST, accepts, free_port

PROGRAMS = Path(sys.executable).parent


@dataclass(frozen=True)
class Running:
    """What `cluster` yields: the balancer's base URL, and the processes behind it."""

    url: str
    nats_url: str
    replicas: list[Child]


@asynccontextmanager
async def cluster(folder: Path, *, port: int = 0, replicas: int = 3) -> AsyncGenerator[Running, None]:
    """Run it in ``folder`` for as long as the block lasts."""
    port, nats_port = port or free_port(), free_port()
    nats_url = f"nats://{HOST}:{nats_port}"
    environment = {**os.environ, "NATS_URL": nats_url, "XDG_CONFIG_HOME": str(folder), "XDG_DATA_HOME": str(folder)}

    def program(name: str, port: int, *command: str) -> Program:
        return Program(
            name=name, command=command, log=folder / f"{name}.log", probe=partial(accepts, port), grace=5.0,
            environment=environment, folder=folder, url=f"http://{HOST}:{port}",
        )  # fmt: skip

    async with AsyncExitStack() as stack:

        async def begin(name: str, port: int, *command: str) -> Child:
            return await stack.enter_async_context(Child(program(name, port, *command), print))

        nats = await begin("nats", nats_port, str(PROGRAMS / "nats-server"), "-a", HOST, "-p", str(nats_port), "-js",
                           "-sd", str(folder / "jetstream"))  # fmt: skip
        await nats.ready()
        serve = (sys.executable, "-m", "uvicorn", "fastapi_service:app", "--app-dir", str(Path(__file__).parent))
        ports = [free_port() for _ in range(replicas)]
        started = [
            await begin(f"replica-{number}", each, *serve, "--host", HOST, "--port", str(each))
            for number, each in enumerate(ports, 1)
        ]
        # A uvicorn listens once the lifespan has begun, and that has read the log by then.
        await asyncio.gather(*(child.ready() for child in started))
        (folder / "Caddyfile").write_text(caddyfile(port, [f"{HOST}:{each}" for each in ports], health="/jobs/"))
        caddy = await begin("caddy", port, str(PROGRAMS / "caddy"), "run", "--config", "Caddyfile", "--adapter",
                            "caddyfile")  # fmt: skip
        await caddy.ready()
        yield Running(f"http://{HOST}:{port}", nats_url, started)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, default=8080, help="where the balancer listens")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        async with cluster(Path(folder), port=options.port) as running:
            for child in running.replicas:
                print(f"{child.name}  {child.url}  process {child.pid}")
            print(f"balancer   {running.url}  (Ctrl-C ends all of it)")
            await asyncio.Event().wait()


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        sys.exit(130)
