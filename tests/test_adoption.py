from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from stagecast import adoption
from stagecast.adoption import adopt, survey
from stagecast.errors import Busy, Interrupted, InvalidManifest, Unknown
from stagecast.manifest import check
from tests.sample import lay_out, manifest_of


def ignore(count: int) -> None:
    pass


def test_pieces_of_one_file_hashed_by_many_threads_keep_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adoption, "PIECE_SIZE", 1000)
    content = os.urandom(100_500)
    lay_out(tmp_path / "m", {"a": content, "b": b"", "c": b"x" * 1000})
    record = adopt("m", tmp_path / "m", None, ignore, threading.Event())
    expected = manifest_of("m", {"a": content, "b": b"", "c": b"x" * 1000}, piece_size=1000)
    assert record.manifest.files == expected.files


def test_files_that_change_while_they_are_hashed_are_not_believed(tmp_path: Path) -> None:
    lay_out(tmp_path / "m", {"a": b"1" * 100})

    def change(count: int) -> None:
        lay_out(tmp_path / "m", {"b": b"new"})

    with pytest.raises(Busy, match="whoever writes it"):
        adopt("m", tmp_path / "m", None, change, threading.Event())


def test_a_file_that_shrinks_while_it_is_hashed_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out(tmp_path / "m", {"a": b"1" * 100})
    monkeypatch.setattr(adoption, "_wait_for_tick", lambda *_: os.truncate(tmp_path / "m" / "a", 10))
    with pytest.raises(Busy, match="whoever writes it"):
        adopt("m", tmp_path / "m", None, ignore, threading.Event())


def test_a_stop_in_the_middle_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adoption, "PIECE_SIZE", 10)
    lay_out(tmp_path / "m", {"a": b"1" * 100_000})
    stop, moved = threading.Event(), []

    def stop_soon(count: int) -> None:
        moved.append(count)
        stop.set()

    with pytest.raises(Interrupted):
        adopt("m", tmp_path / "m", None, stop_soon, stop)
    assert len(moved) < 10_000


def test_what_is_gone_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(Unknown):
        survey("m", tmp_path / "m")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path / "m", {"a": b"1"})

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied", "a")

    monkeypatch.setattr(os, "preadv", refuse)
    with pytest.raises(InvalidManifest, match="a cannot be read: Permission denied"):
        adopt("m", tmp_path / "m", None, ignore, threading.Event())


def test_odd_file_names_are_kept(tmp_path: Path) -> None:
    names = ["a?b#c%d", "模型", "with space", "new\nline", "back\\slash", "-dash"]
    lay_out(tmp_path / "m", {name: name.encode() for name in names})
    record = adopt("m", tmp_path / "m", None, ignore, threading.Event())
    check(record.manifest)
    assert [file.path for file in record.manifest.files] == sorted(names)
