from __future__ import annotations

from pathlib import Path

import pytest

from stagecast import seen
from stagecast.revision import identity_of

URL = "http://127.0.0.1:8080"
REVISION = f"{identity_of(1.8e9)}-7"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_each_cluster_has_a_memory_of_its_own() -> None:
    assert seen.recall(URL) == ""
    seen.remember(URL, REVISION)
    seen.remember("http://elsewhere", "a-1")
    assert (seen.recall(URL), seen.recall("http://elsewhere")) == (REVISION, "a-1")
    seen.remember(URL, "")
    assert seen.recall(URL) == REVISION


def test_what_is_no_revision_is_forgotten(cache: Path) -> None:
    seen.remember(URL, REVISION)
    [file] = (cache / "stagecast").iterdir()
    file.write_bytes(b"\xff\xfe")
    assert seen.recall(URL) == ""
    file.write_text("nonsense")
    assert seen.recall(URL) == ""


def test_a_cache_that_cannot_be_written_is_no_matter(cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    seen.remember(URL, REVISION)
    assert seen.recall(URL) == ""
