from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import pytest
from blake3 import blake3

from stagecast.draft import Draft, draft_records
from stagecast.errors import DigestMismatch, Interrupted
from stagecast.manifest import PIECE_SIZE, file_digest

CONTENT = os.urandom(PIECE_SIZE * 2 + 1000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
PIECES = tuple(blake3(CONTENT[start : start + PIECE_SIZE]).hexdigest() for start in range(0, len(CONTENT), PIECE_SIZE))
CHUNK = 5_000_000


def write(draft: Draft, content: bytes, until: int, sha256: str = "") -> None:
    with draft.file("m", "http://host/m", sha256) as file:
        if file.position == 0:
            file.begin('"one"', len(content))
        file.catch_up(threading.Event())
        for start in range(file.position, until, CHUNK):
            file.write(content[start : min(start + CHUNK, until)])
        if until == len(content):
            file.finish()


@pytest.mark.parametrize("size", [0, 1, PIECE_SIZE - 1, PIECE_SIZE, PIECE_SIZE + 1, len(CONTENT)])
def test_digests_follow_the_manifest(tmp_path: Path, size: int) -> None:
    content = CONTENT[:size]
    sha256 = hashlib.sha256(content).hexdigest()
    with Draft(tmp_path, "m") as draft:
        write(draft, content, size, sha256)
        with draft.file("m", "http://host/m", sha256) as again:
            assert again.is_whole
            found = again.manifest_file()
        assert (draft.folder / "files" / "m").read_bytes() == content
        pieces = tuple(blake3(content[start : start + PIECE_SIZE]).hexdigest() for start in range(0, size, PIECE_SIZE))
        assert (found.size, found.pieces, found.sha256) == (size, pieces, sha256)
        assert found.digest == file_digest(pieces, size)


@pytest.mark.parametrize("sha256", ["", DIGEST], ids=["without", "with"])
def test_whole_pieces_need_not_come_again(tmp_path: Path, sha256: str) -> None:
    with Draft(tmp_path, "m") as draft:
        write(draft, CONTENT, PIECE_SIZE + 77, sha256)
    with Draft(tmp_path, "m") as draft, draft.file("m", "http://host/m", sha256) as file:
        assert (file.position, file.validator, file.size) == (PIECE_SIZE, '"one"', len(CONTENT))
        assert file.can_go_on
        file.catch_up(threading.Event())
        file.write(CONTENT[PIECE_SIZE:])
        file.finish()
        assert file.manifest_file().pieces == PIECES


def test_a_piece_that_the_disk_lost_comes_again(tmp_path: Path) -> None:
    with Draft(tmp_path, "m") as draft:
        write(draft, CONTENT, 2 * PIECE_SIZE, DIGEST)
        with (draft.folder / "files" / "m").open("r+b") as damaged:
            damaged.seek(PIECE_SIZE + 5)
            damaged.write(b"damage")
    with Draft(tmp_path, "m") as draft:
        with draft.file("m", "http://host/m", DIGEST) as file:
            assert file.position == 2 * PIECE_SIZE
            file.catch_up(threading.Event())
            assert file.position == PIECE_SIZE
            file.write(CONTENT[PIECE_SIZE:])
            file.finish()
        assert (draft.folder / "files" / "m").read_bytes() == CONTENT


def test_catching_up_can_be_stopped(tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    with Draft(tmp_path, "m") as draft:
        write(draft, CONTENT, PIECE_SIZE, DIGEST)
        with draft.file("m", "http://host/m", DIGEST) as file, pytest.raises(Interrupted):
            file.catch_up(stop)


def test_a_wrong_file_is_forgotten(tmp_path: Path) -> None:
    with Draft(tmp_path, "m") as draft:
        with pytest.raises(DigestMismatch, match=f"m has SHA-256 {DIGEST}, but {'0' * 64} was published"):
            write(draft, CONTENT, len(CONTENT), "0" * 64)
        assert (draft.folder / "files" / "m").stat().st_size == 0
        assert draft_records(tmp_path, "m")["m"].position == 0


def test_a_file_begun_anew_never_counts_older_pieces(tmp_path: Path) -> None:
    with Draft(tmp_path, "m") as draft:
        write(draft, CONTENT, 2 * PIECE_SIZE)
        with draft.file("m", "http://host/m") as file:
            file.begin('"two"', None)
            assert not file.can_go_on
            assert draft_records(tmp_path, "m")["m"].pieces == []
            file.write(b"short")
            file.finish()
            assert file.manifest_file().size == 5


def test_bytes_without_a_name_cannot_be_gone_on_from(tmp_path: Path) -> None:
    with Draft(tmp_path, "m") as draft, draft.file("m", "http://host/m") as file:
        file.begin("", None)
        file.write(b"1")
        assert not file.can_go_on
