"""What is killed: a model comes piece by piece and is published over what stood there. And what must hold then."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from stagecast.errors import Unknown
from stagecast.manifest import Manifest
from stagecast.partial import Partial
from stagecast.pieces import Piece, pieces_of
from stagecast.store import Store
from tests.durability.calls import REAL
from tests.sample import contents_of, lay_out, manifest_of

Contents = dict[str, bytes]

OLD: Contents = {"a": b"old weights", "only-old": b"x"}
NEW: Contents = {"a": b"0123456789abcdef!", "b/empty": b"", "b/two": b"zyxwvutsrq"}
SMALL: Contents = {"a": b"0123456789abcd", "b": b"x", "c/d": b"zyxwvuts", "c/e": b"yy"}
ONE: Contents = {"m": b"0123456789abcdef!"}


class Broken(AssertionError):
    """A law does not hold. ``law`` is what the table counts: ``moved twice``, ``half published``, ``marked wrong``."""

    def __init__(self, law: str, what: object) -> None:
        super().__init__(f"{law}: {what}")
        self.law = law


@dataclass(frozen=True)
class Staging:
    """A model that is staged: what it has, and what stands under its name before."""

    name: str
    contents: Contents
    before: Contents | bytes | None
    single: bool = False
    together: bool = False

    @property
    def manifest(self) -> Manifest:
        return manifest_of("m", self.contents, piece_size=8, single=self.single)

    def prepare(self, home: Path) -> None:
        (home / "models").mkdir(parents=True)
        if isinstance(self.before, bytes):
            (home / "models" / "m").write_bytes(self.before)
        elif self.before is not None:
            lay_out(home / "models" / "m", self.before)
        if self.before is not None:
            store_in(home).manifest("m")

    def work(self, home: Path, ledger: int) -> None:
        """Do all of it, as a process that starts now does; whatever has moved is written to ``ledger``."""
        store = store_in(home)
        if store.recorded("m") != self.manifest:
            with store.partial(self.manifest) as partial:
                self.check_marks(partial)
                if self.together:
                    deliver_together(partial, self.contents, ledger)
                deliver(partial, self.contents, ledger)
                partial.publish()

    def check_before(self, home: Path) -> None:
        """Look at what a crash has left, as a reader would that comes now. Raises `Broken`."""
        store = store_in(home)
        try:
            found = contents_of(store.path("m"))
        except Unknown:
            found = None
        before = {"m": self.before} if isinstance(self.before, bytes) else self.before
        if found not in (before, self.contents):
            raise Broken("half published", found)
        held = store.recorded("m")
        if held is not None and held.digest != manifest_of("m", found or {}, piece_size=held.piece_size).digest:
            raise Broken("marked wrong", held)

    def check_after(self, home: Path) -> None:
        """Look at what there is once all has ended well."""
        store = store_in(home)
        if contents_of(store.path("m")) != self.contents or store.recorded("m") != self.manifest:
            raise Broken("half published", "it ended, but the model is not whole")

    def check_marks(self, partial: Partial) -> None:
        """Look whether every piece that counts as verified is what the manifest says."""
        for piece in pieces_of(self.manifest):
            path = partial.folder / "files" / self.manifest.files[piece.file].path
            # What is verified and not there stands under its final name already.
            if partial.is_verified(piece) and path.exists():
                found = b"".join(map(bytes, partial.read(piece, piece.length)))
                if found != self.content_of(piece):
                    raise Broken("marked wrong", piece)

    def content_of(self, piece: Piece) -> bytes:
        content = self.contents[self.manifest.files[piece.file].path]
        return content[piece.offset : piece.offset + piece.length]


SHAPES = (
    Staging("a folder over a folder", NEW, OLD),
    Staging("a folder where nothing was", NEW, None),
    Staging("a folder over a file", NEW, b"file"),
    Staging("a file over a file", ONE, b"old", single=True),
    Staging("a file over a folder", ONE, OLD, single=True),
    Staging("small pieces together", SMALL, None, together=True),
)


def store_in(home: Path) -> Store:
    return Store(home / "models", home / "data")


def deliver(partial: Partial, contents: Contents, ledger: int) -> None:
    """Get what is missing, each piece in parts, hash it, and verify it, as a stream of a pull does.

    The ledger gets a line for each part that counts as written: the file, the offset in it, and how many bytes.
    """
    for piece in partial.missing():
        content = contents[partial.manifest.files[piece.file].path]
        while not partial.is_verified(piece):
            while (done := partial.written(piece)) < piece.length:
                count = min(5, piece.length - done)
                start = piece.offset + done
                partial.write(piece, done, content[start : start + count])
                REAL["write"](ledger, f"{piece.file} {start} {count}\n".encode())
            found = b"".join(map(bytes, partial.read(piece, piece.length)))
            if found == content[piece.offset : piece.offset + piece.length]:
                partial.verify(piece)
            else:
                partial.forget(piece)


def deliver_together(partial: Partial, contents: Contents, ledger: int) -> None:
    """Get the pieces of which nothing is here, three at a time and each as a whole, as a stream does of small ones."""
    fresh = [piece for piece in partial.missing() if not partial.written(piece)]
    for some in (fresh[at : at + 3] for at in range(0, len(fresh), 3)):
        texts = [contents[partial.manifest.files[piece.file].path] for piece in some]
        parts = [
            text[piece.offset : piece.offset + piece.length] for piece, text in zip(some, texts, strict=True)
        ]  # fmt: skip
        partial.fill([(piece, memoryview(part)) for piece, part in zip(some, parts, strict=True)])
        for piece in some:
            REAL["write"](ledger, f"{piece.file} {piece.offset} {piece.length}\n".encode())


def moved(ledger: Path) -> list[tuple[int, int, int]]:
    """Return what a ledger lists: (file, offset, bytes)."""
    lines = ledger.read_text().splitlines() if ledger.exists() else []
    return [(int(file), int(start), int(count)) for file, start, count in map(str.split, lines)]


def moved_twice(ledger: Path) -> int:
    """Return how many bytes stand in a ledger more than once."""
    places = [(file, start + at) for file, start, count in moved(ledger) for at in range(count)]
    return len(places) - len(set(places))


def open_ledger(path: Path) -> int:
    return int(REAL["open"](path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644))
