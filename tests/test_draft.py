from __future__ import annotations

from pathlib import Path

import pytest

from stagecast.draft import Draft, DraftState, draft_records, drafts
from stagecast.errors import Busy, InvalidName
from stagecast.manifest import PIECE_SIZE, Manifest
from stagecast.publication import WORKSHOP
from stagecast.store import Store

PIECE = bytes(PIECE_SIZE)


def bring(draft: Draft, path: str, content: bytes, uri: str = "http://host/", sha256: str = "") -> None:
    with draft.file(path, uri + path, sha256) as file:
        file.begin('"one"', len(content))
        file.write(content)
        file.finish()


def test_one_at_a_time(tmp_path: Path) -> None:
    with Draft(tmp_path, "m"):
        with pytest.raises(Busy, match="the installation of m is being worked on by process"), Draft(tmp_path, "m"):
            pass
        with Draft(tmp_path, "other"):
            pass
    with Draft(tmp_path, "m"):
        pass


@pytest.mark.parametrize("name", ["../m", "a/b", "", ".x"])
def test_a_name_stays_inside(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidName):
        Draft(tmp_path, name)


def test_an_empty_draft_leaves_nothing(tmp_path: Path) -> None:
    with Draft(tmp_path, "m") as draft, draft.file("a", "http://host/a") as file:
        file.begin('"one"', 5)
        file.write(b"12")
    assert list((tmp_path / WORKSHOP).iterdir()) == []
    assert drafts(tmp_path) == []


def test_what_came_stays_and_is_counted(tmp_path: Path) -> None:
    with Draft(tmp_path, "m") as draft:
        bring(draft, "sub/a", b"123")
        bring(draft, "b", PIECE + b"4")
        assert draft.present == PIECE_SIZE + 4
    (tmp_path / WORKSHOP / "draft-.odd").mkdir()
    assert drafts(tmp_path) == [DraftState("m", PIECE_SIZE + 4)]
    with Draft(tmp_path, "m") as draft:
        draft.keep(["b"])
        assert draft.present == PIECE_SIZE + 1
        assert not (draft.folder / "files" / "sub" / "a").exists()
        assert draft.discard() == PIECE_SIZE + 1
    assert drafts(tmp_path) == []


def test_a_file_from_elsewhere_is_another_file(tmp_path: Path) -> None:
    with Draft(tmp_path, "m") as draft:
        bring(draft, "a", b"123")
        assert draft.file("a", "http://host/a").is_whole
        assert not draft.file("a", "http://mirror/a").is_whole
        assert draft.present == 0


def test_the_very_bytes_from_elsewhere_stay(tmp_path: Path) -> None:
    sha256 = "a665a45920422f9d417e4867efdc4fb8a04a1f3fff1fa07e998e86f7f7a27ae3"
    with Draft(tmp_path, "m") as draft:
        bring(draft, "a", b"123", sha256=sha256)
        file = draft.file("a", "http://mirror/a", sha256)
        assert file.is_whole
        assert file.validator == ""


def test_a_line_that_was_cut_off_does_not_spoil_the_next(tmp_path: Path) -> None:
    with Draft(tmp_path, "m") as draft:
        bring(draft, "a", b"123")
        journal = draft.folder / "journal"
    with journal.open("ab") as file:
        file.write(b'["whole","a",')
    with Draft(tmp_path, "m") as draft:
        bring(draft, "b", b"4")
    assert {path: record.position for path, record in draft_records(tmp_path, "m").items()} == {"a": 3, "b": 1}


def test_a_journal_without_its_files_counts_nothing(tmp_path: Path) -> None:
    with Draft(tmp_path, "m") as draft:
        bring(draft, "a", b"123")
        (draft.folder / "files" / "a").unlink()
        assert draft_records(tmp_path, "m")["a"].position == 0


def test_a_published_draft_is_gone_and_its_name_free(tmp_path: Path) -> None:
    store = Store(tmp_path / "models", tmp_path / "data")
    with Draft(store.models, "m") as draft:
        bring(draft, "a", b"123")
        with draft.file("a", "http://host/a") as file:
            manifest = Manifest(model="m", files=(file.manifest_file(),))
        assert draft.is_whole_of({"a": ("http://host/a", "")})
        assert not draft.is_whole_of({"a": ("http://host/a", ""), "b": ("", "")})
        draft.publish(manifest, store.publish)
        with Draft(store.models, "m") as following:
            bring(following, "a", b"4567")
    assert store.recorded("m") == manifest
    assert drafts(store.models) == [DraftState("m", 4)]
