from __future__ import annotations

from pathlib import Path

from stagecast.manifest import Manifest
from stagecast.records import Identity, Record, Records
from tests.sample import manifest_of


def record_of(manifest: Manifest) -> Record:
    return Record(manifest, tuple(Identity(file.size, 1, 2, 3) for file in manifest.files))


def test_a_record_is_found_by_its_model_and_by_its_files(tmp_path: Path) -> None:
    records, record = Records(tmp_path), record_of(manifest_of("m", {"a": b"1", "b": b"2"}))
    records.put(record)
    assert records.get("m") == Records(tmp_path).get("m") == record
    assert records.all() == [record]
    assert next(records.with_file(record.manifest.files[1].digest)) == (record, 1)
    assert list(records.with_file("0" * 64)) == []


def test_a_newer_record_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    records, other = Records(tmp_path), Records(tmp_path)
    old, new = record_of(manifest_of("m", {"a": b"old"})), record_of(manifest_of("m", {"a": b"new"}))
    records.put(old)
    assert other.get("m") == old
    records.put(new)
    assert other.get("m") == new
    assert list(other.with_file(old.manifest.files[0].digest)) == []
    records.drop("m")
    records.drop("m")
    assert other.get("m") is None
    assert other.all() == []


def test_a_record_that_does_not_fit_its_place_counts_as_none(tmp_path: Path) -> None:
    records, record = Records(tmp_path), record_of(manifest_of("m", {"a": b"1"}))
    records.put(record)
    (tmp_path / "m.json").rename(tmp_path / "other.json")
    assert records.get("other") is None
    records.put(Record(record.manifest, ()))
    assert records.get("m") is None
    (tmp_path / ".cut-off").write_bytes(b"{")
    assert records.all() == []
