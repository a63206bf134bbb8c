from __future__ import annotations

import pytest

from stagecast.journal import FileRecord, PieceCame, WholeCame, appended, read_journal, written_journal
from stagecast.manifest import PIECE_SIZE

RECORD = FileRecord(path="a/b", uri="https://host/b", sha256="1" * 64, validator='"one"', size=PIECE_SIZE + 5)
EVENTS = [PieceCame("a/b", "f" * 64), WholeCame("a/b", PIECE_SIZE + 5, "e" * 64)]


def journal(*events: PieceCame | WholeCame) -> bytes:
    return written_journal([RECORD]) + b"".join(map(appended, events))


def test_events_are_folded() -> None:
    record = read_journal(journal(*EVENTS))["a/b"]
    assert (record.pieces, record.is_whole, record.position) == (["f" * 64, "e" * 64], True, PIECE_SIZE + 5)
    assert read_journal(written_journal([record])) == {"a/b": record}
    assert RECORD.pieces == []


def test_a_journal_cut_off_anywhere_tells_what_came_before() -> None:
    data = journal(*EVENTS)
    positions = [sum(record.position for record in read_journal(data[:end]).values()) for end in range(len(data) + 1)]
    assert positions == sorted(positions)
    assert set(positions) == {0, PIECE_SIZE, PIECE_SIZE + 5}


@pytest.mark.parametrize(
    "line", [b"junk", b'{"type":"file","path":"../x","uri":""}', b'["piece","other","f"]', b"\0\0"]
)
def test_nothing_after_a_bad_line_has_happened(line: bytes) -> None:
    data = journal() + line + b"\n" + appended(EVENTS[0])
    assert read_journal(data) == {"a/b": RECORD}


def test_a_record_goes_as_far_as_the_disk() -> None:
    whole = read_journal(journal(*EVENTS))["a/b"]
    assert whole.cut(PIECE_SIZE + 5) == whole
    for size, position in ((PIECE_SIZE + 4, PIECE_SIZE), (PIECE_SIZE - 1, 0), (0, 0), (3 * PIECE_SIZE, PIECE_SIZE)):
        cut = whole.cut(size)
        assert (cut.is_whole, cut.position) == (False, position)
    older = read_journal(written_journal([FileRecord(path="p", uri="u", pieces=["f"], piece_size=1024)]))["p"]
    assert older.cut(PIECE_SIZE).position == 0


def test_bytes_belong_to_an_address_or_to_a_digest() -> None:
    assert RECORD.fits("https://mirror/b", "1" * 64)
    assert not RECORD.fits("https://host/b", "2" * 64)
    assert not RECORD.fits("https://host/b", "")
    bare = FileRecord(path="p", uri="https://host/b")
    assert bare.fits("https://host/b", "")
    assert not bare.fits("https://mirror/b", "")
