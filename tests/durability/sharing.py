"""What is killed: a model is put together from what lies on the disk, partly as second names of another one's files."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from stagecast.gathering import gather_files, gather_pieces
from stagecast.manifest import Manifest
from tests.durability.staging import Broken, Contents, Staging, deliver, store_in
from tests.sample import contents_of, fill, manifest_of

OTHER: Contents = {"weights": b"0123456789abcdef!", "more": b"x"}
OLDER: Contents = {"b/two": b"zyxwvutsABCD", "left": b"?"}
NEWER: Contents = {"a": b"0123456789abcdef!", "b/two": b"zyxwvutsrq", "c": b"new and longer"}


@dataclass(frozen=True)
class Sharing(Staging):
    """A newer revision of a model, one file of which another model has, and one piece of which the older one has."""

    def prepare(self, home: Path) -> None:
        store = store_in(home)
        for manifest, contents in ((self._other, OTHER), (manifest_of("m", OLDER, piece_size=8), OLDER)):
            with store.partial(manifest) as partial:
                fill(partial, contents)
                partial.publish()

    def work(self, home: Path, ledger: int) -> None:
        store = store_in(home)
        if store.recorded("m") != self.manifest:
            with store.partial(self.manifest) as partial:
                self.check_marks(partial)
                gather_files(store, partial, lambda _: None)
                gather_pieces(store, partial, lambda _: None, threading.Event())
                deliver(partial, self.contents, ledger)
                partial.publish()

    def check_before(self, home: Path) -> None:
        super().check_before(home)
        self._check_other(home)

    def check_after(self, home: Path) -> None:
        super().check_after(home)
        self._check_other(home)

    @property
    def _other(self) -> Manifest:
        return manifest_of("other", OTHER, piece_size=8)

    def _check_other(self, home: Path) -> None:
        """The other model is what it was, whether it is still known or has to be read in again."""
        store = store_in(home)
        if contents_of(store.path("other")) != OTHER or store.recorded("other") not in (None, self._other):
            raise Broken("marked wrong", "the model that shares a file")


SHARINGS = (Sharing("a file and a piece from nearby", NEWER, OLDER),)
