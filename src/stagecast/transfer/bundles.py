"""Bundles: many whole pieces that somebody asks for at once, to be sent one behind the other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

from stagecast.manifest import Manifest
from stagecast.partial import Partial
from stagecast.pieces import Piece, parse_numbers, pieces_of
from stagecast.records import Record, identity_from
from stagecast.store import Store


class Part(NamedTuple):
    """A piece to send: the file where it lies, that file's digest, and from where to where, in bytes.

    ``is_here`` tells whether it is still what the manifest says.
    """

    path: str
    digest: str
    start: int
    stop: int
    is_here: Callable[[], bool]


class Bundles:
    """Finds what requests name. In one thread; a connection has one, since it is asked for the same model each time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._latest: tuple[Manifest, list[Piece]] | None = None

    def find(self, digest: str, numbers: str) -> list[Part] | None:
        """Return those pieces of the manifest with that digest; None where one of them is not here.

        ``numbers`` is text, see `stagecast.pieces.parse_numbers`.

        Raises:
            BadInput: the text makes no sense.
        """
        arrival = self._store.arriving_manifest(digest)
        if arrival is not None:
            return self._arrived(arrival, self._named(arrival.manifest, numbers))
        record = self._store.files.record(digest)
        if record is None:
            return None
        self._store.marks.use(record.manifest.model)
        parts = list(self._known(record, self._named(record.manifest, numbers)))
        return None if None in parts else [part for part in parts if part is not None]

    def _named(self, manifest: Manifest, numbers: str) -> list[Piece]:
        if self._latest is None or self._latest[0] is not manifest:
            self._latest = manifest, list(pieces_of(manifest))
        pieces = self._latest[1]
        return [pieces[number] for number in parse_numbers(numbers, len(pieces))]

    def _known(self, record: Record, pieces: list[Piece]) -> Iterator[Part | None]:
        manifest, latest = record.manifest, -1
        base = os.path.join(self._store.models, manifest.model)  # noqa: PTH118  # text: there are thousands of them
        for piece in pieces:
            file = manifest.files[piece.file]
            path = base if manifest.single else f"{base}/{file.path}"
            if piece.file != latest and not (
                _is_as_recorded(path, record, piece.file) or self._store.files.is_known(record, piece.file)
            ):
                yield None
                return
            latest = piece.file
            yield Part(path, file.digest, piece.offset, piece.offset + piece.length, _always)

    def _arrived(self, arrival: Partial, pieces: list[Piece]) -> list[Part] | None:
        if not all(map(arrival.is_verified, pieces)):
            return None
        return [
            Part(
                os.fspath(arrival.files.place(piece.file)), arrival.manifest.files[piece.file].digest, piece.offset,
                piece.offset + piece.length, lambda piece=piece: arrival.is_verified(piece),  # type: ignore[misc]
            )
            for piece in pieces
        ]  # fmt: skip


def _is_as_recorded(path: str, record: Record, number: int) -> bool:
    try:
        return identity_from(os.stat(path)) == record.identities[number]  # noqa: PTH116  # as above
    except OSError:
        return False


def _always() -> bool:
    return True
