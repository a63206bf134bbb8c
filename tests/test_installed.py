from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

from stagecast.address import local_address
from stagecast.errors import Interrupted
from stagecast.gallery import Source, SourceFile
from stagecast.installed import installed
from stagecast.manifest import Manifest
from stagecast.store import Store
from tests.sample import lay_out

FILES = {"a": b"weights", "sub/b": b"words"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "models", tmp_path / "data")
    lay_out(store.models / "m", FILES)
    return store


def source_of(files: dict[str, bytes], model: str = "m", *, single: bool = False) -> Source:
    listed = (
        SourceFile(path, f"http://host/{path}", hashlib.sha256(content).hexdigest()) for path, content in files.items()
    )
    return Source(model, tuple(listed), single)


def ask(source: Source, store: Store) -> Manifest | None:
    return installed(source, store, print, threading.Event())


def test_the_very_files_are_recognised_and_recorded(store: Store) -> None:
    manifest = ask(source_of(FILES), store)
    assert manifest is not None
    assert [file.sha256 for file in manifest.files] == [file.sha256 for file in source_of(FILES).files]
    assert store.recorded("m") == manifest


def test_what_was_recorded_is_not_read_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ask(source_of(FILES), store)
    monkeypatch.setattr("stagecast.installed.hashlib", None)
    assert ask(source_of(FILES), store) == first


@pytest.mark.parametrize(
    "source",
    [
        source_of(FILES, "other"),
        source_of(FILES | {"a": b"changed"}),
        source_of(FILES | {"c": b"more"}),
        source_of({"m": b"weights"}, single=True),
        Source("m", (SourceFile("a", "http://host/a"),)),
    ],
)
def test_anything_else_has_to_move(store: Store, source: Source) -> None:
    assert ask(source, store) is None


def test_a_changed_file_is_noticed(store: Store) -> None:
    assert ask(source_of(FILES), store) is not None
    (store.models / "m" / "a").write_bytes(b"WEIGHTS")
    assert ask(source_of(FILES), store) is None


def test_a_model_that_is_its_own_source(store: Store) -> None:
    files = tuple(SourceFile(path, local_address(store.models / "m" / path)) for path in FILES)
    assert ask(Source("m", files), store) == store.manifest("m")
    (store.models / "one.gguf").write_bytes(b"1")
    single = Source("one.gguf", (SourceFile("one.gguf", local_address(store.models / "one.gguf")),), single=True)
    assert ask(single, store) == store.manifest("one.gguf")


def test_reading_can_be_stopped(store: Store) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Interrupted):
        installed(source_of(FILES), store, print, stop)
