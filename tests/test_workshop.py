from __future__ import annotations

import time
from pathlib import Path

import pytest

from stagecast.draft import Draft
from stagecast.durable import Lock
from stagecast.manifest import Manifest
from stagecast.publication import WORKSHOP
from stagecast.store import Store
from stagecast.workshop import SETTLED, leftovers, remove
from tests.sample import lay_out

MB = 1024 * 1024


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models", tmp_path / "data")


def manifest_of(tmp_path: Path, size: int) -> Manifest:
    """Return the manifest of a model of one file that lies elsewhere."""
    other = Store(tmp_path / "elsewhere", tmp_path / "other")
    lay_out(other.models, {"owl/a.bin": b"a" * size})
    return other.manifest("owl")


def arrive(store: Store, manifest: Manifest, count: int) -> None:
    """Leave ``count`` bytes of a model behind."""
    with store.partial(manifest) as partial:
        piece = partial.missing()[0]
        partial.write(piece, 0, b"a" * count)


def test_nothing_is_left_where_nothing_was_begun(store: Store) -> None:
    lay_out(store.models, {"owl/a": b"1"})
    with store.reserve(10):
        assert leftovers(store.models, time.time()) == []


def test_what_has_arrived_counts_by_the_disk_s_own_measure(store: Store, tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path, 8 * MB)
    arrive(store, manifest, MB)
    [found] = leftovers(store.models, time.time())
    assert (found.kind, found.model, found.digest, found.keep) == ("partial", "owl", manifest.digest, "")
    assert MB <= found.bytes < 2 * MB, "a file that is made whole at its start does not take all of it yet"
    assert remove(store.models, found) == found.bytes
    assert list((store.models / WORKSHOP).iterdir()) == []
    assert remove(store.models, found) == 0, "and no folder comes back by that"
    assert list((store.models / WORKSHOP).iterdir()) == []


def test_what_somebody_is_at_stays(store: Store, tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path, MB)
    arrive(store, manifest, 1000)
    [found] = leftovers(store.models, time.time())
    with store.partial(manifest) as partial:
        assert remove(store.models, found) == 0
        assert partial.written(partial.missing()[0]) == 1000
    assert store.partial_bytes("owl") == 1000


def test_a_draft_is_one_and_a_partial_that_nobody_can_read_too(store: Store) -> None:
    with Draft(store.models, "cat") as draft, draft.file("a", "http://nowhere/a") as file:
        draft.save()
        file.write(b"x" * 16 * MB)
    lay_out(store.models / WORKSHOP / "partial-0000-x", {"manifest.json": b"{", "files/a": b"x" * MB})
    draft_, broken = leftovers(store.models, time.time())
    assert (draft_.kind, draft_.model, draft_.bytes >= 16 * MB) == ("draft", "cat", True)
    assert (broken.kind, broken.model, broken.digest, broken.bytes >= MB) == ("partial", "", "", True)
    assert remove(store.models, draft_) == draft_.bytes
    assert remove(store.models, broken) == broken.bytes
    assert list((store.models / WORKSHOP).iterdir()) == []


def test_trash_is_left_over_only_when_nobody_can_be_at_it_any_more(store: Store) -> None:
    lay_out(store.models / WORKSHOP / "trash-1", {"a": b"x" * MB})
    assert leftovers(store.models, time.time()) == []
    [found] = leftovers(store.models, time.time() + SETTLED + 1)
    assert (found.kind, found.bytes >= MB) == ("trash", True)
    assert remove(store.models, found) == found.bytes


def test_an_older_revision_that_stood_aside_goes_back(store: Store, tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path, MB)
    arrive(store, manifest, 1000)
    [found] = leftovers(store.models, time.time())
    folder = store.models / WORKSHOP / found.folder
    lay_out(folder, {"replaced/old": b"old", "publishing": b"1 owl"})
    remove(store.models, found)
    assert (store.models / "owl" / "old").read_bytes() == b"old"
    assert not folder.exists()


def test_its_lock_is_let_go(store: Store, tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path, MB)
    arrive(store, manifest, 1000)
    [found] = leftovers(store.models, time.time())
    remove(store.models, found)
    again = Lock(store.models / WORKSHOP / found.folder / "lock")
    assert again.take()
    again.release()
