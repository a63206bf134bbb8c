"""The journal of a draft: one JSON line per event, folded into one record per file. No I/O.

A line that a crash cut off ends the journal: what comes after the last whole line has not happened.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from stagecast.errors import InvalidManifest
from stagecast.manifest import PIECE_SIZE, check_path


class PieceCame(msgspec.Struct, frozen=True, tag="piece", array_like=True):
    """The next whole piece of a file is on the disk."""

    path: str
    digest: str


class WholeCame(msgspec.Struct, frozen=True, tag="whole", array_like=True):
    """A file has all its ``size`` bytes, and is checked; ``last`` is the digest of a shorter last piece, or empty."""

    path: str
    size: int
    last: str


class FileRecord(msgspec.Struct, tag="file", kw_only=True):
    """One file: where it comes from, what upstream said of it, and the digests of the pieces on the disk."""

    path: str
    uri: str
    sha256: str = ""
    validator: str = ""
    size: int | None = None
    pieces: list[str] = []
    is_whole: bool = False
    piece_size: int = PIECE_SIZE

    @property
    def position(self) -> int:
        """Bytes from the start on that need not be moved again."""
        return self.size or 0 if self.is_whole else len(self.pieces) * PIECE_SIZE

    def fits(self, uri: str, sha256: str) -> bool:
        """Return whether these bytes are of the file at ``uri``, or of any with this very SHA-256."""
        return self.sha256 == sha256 and (self.uri == uri or bool(sha256))

    def begin(self, validator: str, size: int | None) -> None:
        """Start over with a content that upstream describes like this."""
        self.validator, self.size = validator, size
        self.pieces, self.is_whole = [], False

    def apply(self, event: PieceCame | WholeCame) -> None:
        """Take up an event of this file."""
        if isinstance(event, PieceCame):
            self.pieces.append(event.digest)
            return
        self.pieces += [event.last] if event.last else []
        self.size, self.is_whole = event.size, True

    def cut(self, size: int) -> FileRecord:
        """Return the record as far as a file of ``size`` bytes on the disk bears it out."""
        if self.piece_size != PIECE_SIZE:
            return FileRecord(path=self.path, uri=self.uri, sha256=self.sha256)
        if self.is_whole and size == self.size:
            return self
        borne = size if self.size is None else min(size, self.size)
        return msgspec.structs.replace(self, is_whole=False, pieces=self.pieces[: borne // PIECE_SIZE])


_decoder = msgspec.json.Decoder(FileRecord)
_event_decoder = msgspec.json.Decoder(PieceCame | WholeCame)


def read_journal(data: bytes) -> dict[str, FileRecord]:
    """Return the record of each file by path, as far as the journal can be read."""
    records: dict[str, FileRecord] = {}
    for line in data.split(b"\n")[:-1]:
        try:
            if line.startswith(b"{"):
                record = _decoder.decode(line)
                check_path("?", record.path)
                records[record.path] = record
            else:
                event = _event_decoder.decode(line)
                records[event.path].apply(event)
        except (msgspec.DecodeError, InvalidManifest, KeyError):
            break
    return records


def written_journal(records: Iterable[FileRecord]) -> bytes:
    """Return a journal that says just this."""
    return b"".join(msgspec.json.encode(record) + b"\n" for record in records)


def appended(event: PieceCame | WholeCame) -> bytes:
    """Return the line that says ``event``."""
    return msgspec.json.encode(event) + b"\n"
