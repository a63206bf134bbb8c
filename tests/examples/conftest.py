"""The real model and the real server process that the examples' tests share."""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
SERVER = ROOT / "examples" / "embeddings_server.py"


@pytest.fixture(scope="session")
def minilm_folder(real_model: Path) -> Path:
    """all-MiniLM-L6-v2 as plain files."""
    return real_model


@pytest.fixture(scope="session")
def embeddings_server() -> ModuleType:
    """The example's module: examples are scripts, so no import path leads to it."""
    spec = importlib.util.spec_from_file_location("embeddings_server", SERVER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def server_process(folder: Path, name: str = "minilm") -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The server as a process of its own, ready, with the port that it bound."""
    command = [sys.executable, SERVER, "--model", folder, "--port", "0", "--name", name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline().rpartition(":")[2])
            assert process.stdout.readline() == f"ready: {name}\n"
            yield process, port
        finally:
            process.kill()


@pytest.fixture(scope="session")
def minilm_port(minilm_folder: Path) -> Iterator[int]:
    with server_process(minilm_folder) as (_, port):
        yield port


@pytest.fixture
def start_server() -> type:
    """`server_process`, for tests that end the process themselves."""
    return server_process
