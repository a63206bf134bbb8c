from __future__ import annotations

import struct
from pathlib import Path

from chaos.load import FILE, FILES, SIZE
from chaos.resumption import moved_again, verified_in, verified_on_disk
from stagecast.manifest import PIECE_SIZE
from stagecast.partial import Partial
from stagecast.pieces import pieces_of
from tests.sample import manifest_of

WHOLE = 0xFFFFFFFF


def test_only_whole_pieces_count() -> None:
    assert verified_in(struct.pack("<4I", WHOLE, FILE, 0, FILE - 1)) == 2 * FILE
    assert verified_in(struct.pack("<I", WHOLE) + b"\xff\xff") == FILE
    assert verified_in(b"") == 0


def test_a_file_of_ours_is_one_piece() -> None:
    assert FILE <= PIECE_SIZE
    assert FILE * FILES == SIZE


def test_a_whole_piece_that_came_again_is_found_and_what_lay_in_buffers_is_not() -> None:
    verified = 2 * FILE
    missing = SIZE - verified
    assert moved_again(missing + FILE, verified) == FILE
    assert moved_again(missing + 256 * 1024, verified) == 0
    assert moved_again(missing - FILE, verified) == 0
    assert moved_again(SIZE, 0) == 0
    assert moved_again(FILE, SIZE) == FILE


def test_a_partial_of_the_package_is_read_rightly(tmp_path: Path) -> None:
    contents = {f"{number}.bin": bytes([number]) * FILE for number in range(3)}
    manifest = manifest_of("model-01", contents, piece_size=PIECE_SIZE)
    with Partial(tmp_path, manifest, lambda _: None) as partial:
        first, second, _ = pieces_of(manifest)
        partial.write(first, 0, contents["0.bin"])
        partial.verify(first)
        partial.write(second, 0, contents["1.bin"][1:])
        assert verified_on_disk(tmp_path, "model-01") == FILE
        assert verified_on_disk(tmp_path, "model-1") == 0
    assert verified_on_disk(tmp_path, "model-01") == FILE
