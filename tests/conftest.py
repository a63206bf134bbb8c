"""Real servers for tests: each binds a free port, lives in a temporary folder and ends with its fixture."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stagecast.demo_model import ModelNotFetched, fetch

# The example's model is small: more threads spin for longer than they compute. It is read when numpy is imported first.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def free_port() -> int:
    """Return a port of loopback that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class NatsServer:
    """A real nats-server with JetStream that can be stopped, killed, emptied and started again on its port."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        self._arguments = arguments or ("-js", "-sd", str(folder / "jetstream"))
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it and wait until it accepts connections."""
        binary = Path(sys.executable).parent / "nats-server"
        command = [str(binary), "-a", "127.0.0.1", "-p", str(self.port), *self._arguments]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.05)
        raise RuntimeError("nats-server did not start")

    def stop(self, *, kill: bool = False) -> None:
        """End it, gently or not."""
        if self._process is not None:
            (self._process.kill if kill else self._process.terminate)()
            self._process.wait(60)
            self._process = None

    def freeze(self) -> None:
        """Let it hang, its connections open; return once it does."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)
            os.waitpid(self._process.pid, os.WUNTRACED)

    def thaw(self) -> None:
        """Let it go on."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def empty(self) -> None:
        """Lose its disk."""
        shutil.rmtree(self.folder / "jetstream", ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what commands remember apart from what the person's own commands do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def neighbourhood(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what is promised here apart from what others promise of this machine's disks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STAGECAST_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
        yield


@pytest.fixture(scope="session")
def real_model() -> Path:
    """Return the folder of the demo's model, fetched once for every process that tests."""
    cache = Path(__file__).parents[1] / ".cache"
    cache.mkdir(exist_ok=True)
    with (cache / "fetching.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            return fetch(cache)
        except ModelNotFetched as error:
            pytest.skip(error.message)


@pytest.fixture
def nats_server() -> Iterator[NatsServer]:
    """Yield a nats-server of the test's own."""
    with tempfile.TemporaryDirectory() as folder:
        server = NatsServer(Path(folder))
        yield server
        server.stop(kill=True)


async def eventually(condition: Callable[[], object], timeout: float = 60.0) -> None:
    """Return as soon as ``condition`` holds, looking again each time the loop comes round."""
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.005)
