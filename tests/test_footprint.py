from __future__ import annotations

import os
from pathlib import Path

import pytest

from stagecast import footprint
from stagecast.publication import WORKSHOP
from stagecast.stocktaking import found
from stagecast.store import Store
from tests.sample import fill, lay_out, manifest_of

SHARED, OWN = b"s" * 9000, b"o" * 500


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models", tmp_path / "data")


def link(store: Store, source: str, target: str) -> None:
    (store.models / target).parent.mkdir(exist_ok=True)
    os.link(store.models / source, store.models / target)


def counts(store: Store) -> dict[str, int]:
    return {copy.model: copy.bytes for copy in found(store, 0.0).copies}


def test_only_files_without_another_name_go(tmp_path: Path) -> None:
    lay_out(tmp_path / "m", {"a": SHARED, "b/c": OWN, "d": b"."})
    (tmp_path / "m" / "link").symlink_to(tmp_path / "m" / "a")
    assert (footprint.freed(tmp_path / "m"), footprint.shared(tmp_path / "m")) == (9501, 0)
    os.link(tmp_path / "m" / "b" / "c", tmp_path / "m" / "again")
    assert footprint.freed(tmp_path / "m") == 9501, "both names go"
    before = footprint.taken(tmp_path / "m")
    os.link(tmp_path / "m" / "a", tmp_path / "beside")
    assert (footprint.freed(tmp_path / "m"), footprint.shared(tmp_path / "m")) == (501, 9000)
    assert before - footprint.taken(tmp_path / "m") == (tmp_path / "beside").stat().st_blocks * 512
    assert footprint.freed(tmp_path / "m" / "link") == footprint.freed(tmp_path / "nothing") == 0


def test_a_file_of_two_models_is_freed_with_the_last_of_them_and_the_inventory_says_so(store: Store) -> None:
    lay_out(store.models, {"one/w": SHARED, "one/c": OWN})
    link(store, "one/w", "two/w")
    for name in ("one", "two"):
        store.manifest(name)
    assert sorted(counts(store).values()) == [500, 9000] or sorted(counts(store).values()) == [0, 9500]
    assert store.remove("one") == 500
    assert counts(store) == {"two": 9000}
    assert store.remove("two") == 9000


def test_what_has_a_name_beside_the_models_is_freed_by_none(store: Store, tmp_path: Path) -> None:
    lay_out(store.models, {"one/w": SHARED, "two/w": OWN})
    lay_out(tmp_path / "far", {"three/w": SHARED})
    (store.models / "three").symlink_to(tmp_path / "far" / "three")
    os.link(store.models / "one" / "w", tmp_path / "theirs")
    for name in ("one", "two", "three"):
        store.manifest(name)
    assert counts(store) == {"one": 0, "two": 500, "three": 0}
    kept = {copy.model: bool(copy.keep) for copy in found(store, 0.0).copies}
    assert kept == {"one": True, "two": False, "three": True}, "a collection gains nothing by them"
    assert (store.remove("one"), store.remove("three")) == (0, 0)
    assert (tmp_path / "far" / "three" / "w").read_bytes() == SHARED


def test_what_a_part_has_by_a_second_name_is_not_freed_with_it(store: Store) -> None:
    lay_out(store.models, {"one/w": SHARED})
    store.manifest("one")
    contents = {"a": OWN, "w": SHARED}
    with store.partial(manifest_of("two", contents)) as partial:
        fill(partial, contents)
        path = partial.folder / "files" / "w"
    path.unlink()
    os.link(store.models / "one" / "w", path)
    store.manifest("one")  # its new name has changed its times
    assert counts(store) == {"one": 9000}, "what is no model yet is no stranger"
    [left] = found(store, 0.0).leftovers
    assert left.bytes == footprint.taken(store.models / WORKSHOP / left.folder) < len(SHARED) * 4
    assert store.discard_partials("two") == 500
    assert store.remove("one") == 9000
