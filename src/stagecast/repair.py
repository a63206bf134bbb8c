"""Repair: the damaged pieces of a model that lies here come anew, and each of its files is replaced as a whole.

Nothing is written in place: a file that is linked elsewhere, or that a backend has open, stays what it is. The bad
pieces arrive in a partial; the good ones of the same file are copied beside them and verified as they are; then the
file takes the place of the damaged one with one rename. Killed at any step, each file is the old one or the right one,
none of them counts as good before it was verified, and the pieces that came are there for the next try.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

from stagecast.copying import copied
from stagecast.durable import make_folder, opened, sync_folder
from stagecast.errors import Busy, WrongState
from stagecast.partial import Partial
from stagecast.pieces import Piece, pieces_of
from stagecast.publication import moving, throw_away
from stagecast.reading import Slice
from stagecast.records import identity_of
from stagecast.store import Store
from stagecast.verification import Findings


class Repair(Partial):
    """Use like the `Partial` that it is; what is missing are the damaged pieces, until they have come."""

    def __init__(self, store: Store, findings: Findings) -> None:
        super().__init__(store.models, findings.manifest, lambda _: None, store.node, store.files.keeping)
        self._store = store
        self._findings = findings

    @property
    def verified_bytes(self) -> int:
        """Bytes that are here and right, in their place or about to be put there."""
        return self.manifest.size - sum(piece.length for piece in self.missing())

    def missing(self) -> list[Piece]:
        """Return the damaged pieces that have not come yet, in order."""
        return [piece for piece in self._findings.pieces if not self.is_verified(piece)]

    def mend(self, stop: threading.Event, checked: Callable[[int], None] = lambda _: None) -> Path:
        """Put every damaged file right, record the model, and return its path. Call it again after any error.

        ``checked`` gets bytes of the damaged files that were copied and verified.

        Raises:
            Busy: somebody changes the model meanwhile.
            Interrupted: ``stop`` was set.
            NotEnoughSpace: the disk has no room for one of the files a second time.
            WrongState: some damaged pieces have not come.
        """
        if self.missing():
            raise WrongState(self.manifest.model, f"damaged ({len(self.missing())} pieces are missing)", "mend")
        self._check_unchanged()
        self._settle()
        identities = list(self._findings.identities)
        with self._clear_errors():
            for number in self._findings.files:
                part = self._assemble(number, stop, checked)
                place = self._store.files.place(self.manifest, number)
                with moving(self._models):
                    self._check_unchanged()
                    make_folder(place.parent)
                    with self._keeping():
                        part.rename(place)
                    sync_folder(place.parent)
                identities[number] = identity_of(place)
            with moving(self._models):
                self._check_unchanged()
                self._store.vouch(self.manifest, tuple(identities))
            with self._keeping():
                throw_away(self.folder, self._models)
        return self._models / self.manifest.model

    def _assemble(self, number: int, stop: threading.Event, checked: Callable[[int], None]) -> Path:
        """Return a whole file, every byte of it verified and synced."""
        file, place = self.manifest.files[number], self._store.files.place(self.manifest, number)
        part = self.files.prepare(number)
        bad = {piece for piece in self._findings.pieces if piece.file == number}
        for piece in pieces_of(self.manifest):
            if piece.file == number and piece not in bad:
                source = Slice(place, piece.offset, piece.length)
                if copied(source, part, piece.offset, stop) != file.pieces[piece.index]:
                    raise Busy(f"the content of {self.manifest.model}", "whoever writes it")
                checked(piece.length)
        with opened(part, os.O_RDWR) as descriptor:
            if place.is_file():
                os.fchmod(descriptor, place.stat().st_mode & 0o7777)
            os.fsync(descriptor)
        self._settle()
        return part

    def _check_unchanged(self) -> None:
        expected = self._store.expected(self.manifest.model)
        if expected is None or expected.digest != self.manifest.digest:
            raise Busy(self.manifest.model, "whoever put another revision there")
