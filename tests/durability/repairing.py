"""What is killed: a damaged model is verified and repaired. At no moment does a wrong piece count as good."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from stagecast.adoption import survey
from stagecast.records import Record
from stagecast.repair import Repair
from stagecast.verification import inspect
from tests.durability.staging import Broken, Contents, deliver, store_in
from tests.sample import contents_of, fill, manifest_of

RIGHT: Contents = {"a": b"0123456789abcdef!", "b/two": b"zyxwvutsrq", "c": b"fine as it is"}
WRONG: Contents = {**RIGHT, "a": b"01234567XXXXXXXX!", "b/two": b"YYYYYYYYrq"}
LONGER: Contents = {**RIGHT, "a": b"0123456789abcdef!and more"}
ONE: Contents = {"m": b"0123456789abcdef!"}


@dataclass(frozen=True)
class Repairing:
    """A model that was staged and then damaged, seen by the times of its files or not."""

    name: str
    right: Contents
    damaged: Contents
    single: bool = False
    is_silent: bool = False

    def prepare(self, home: Path) -> None:
        manifest = manifest_of("m", self.right, piece_size=8, single=self.single)
        store = store_in(home)
        with store.partial(manifest) as partial:
            fill(partial, self.right)
            partial.publish()
        for path, content in self.damaged.items():
            if content != self.right[path]:
                (home / "models" / "m" if self.single else home / "models" / "m" / path).write_bytes(content)
        if self.is_silent:
            found = survey("m", store.path("m"))
            store._records.put(Record(manifest, tuple(found.values()), is_published=True))

    def work(self, home: Path, ledger: int) -> None:
        store, stop = store_in(home), threading.Event()
        findings = inspect(store, "m", checked=_ignore, found=_ignore, stop=stop)
        if findings.files:
            with Repair(store, findings) as repair:
                deliver(repair, self.right, ledger)
                repair.mend(stop)

    def check_before(self, home: Path) -> None:
        found = contents_of(home / "models" / "m")
        for path, content in found.items():
            if content not in (self.right[path], self.damaged[path]):
                raise Broken("half published", (path, content))
        if any(found[path] == self.right[path] for path in self._bad()):
            self._check_trust(home, found)

    def check_after(self, home: Path) -> None:
        store = store_in(home)
        if contents_of(store.path("m")) != self.right or store.recorded("m") is None:
            raise Broken("half published", "it ended, but the model is not whole")

    def _bad(self) -> list[str]:
        return [path for path, content in self.right.items() if self.damaged[path] != content]

    def _check_trust(self, home: Path, found: Contents) -> None:
        """From the first repaired file on, what is known to be wrong is held to be good by nobody."""
        store = store_in(home)
        if store.recorded("m") is not None and found != self.right:
            raise Broken("marked wrong", found)
        for file in manifest_of("m", self.right, piece_size=8, single=self.single).files:
            located = store.locate(file.digest)
            if located is not None and located[0].read_bytes() != self.right[file.path]:
                raise Broken("marked wrong", located)


REPAIRS = (
    Repairing("pieces of two files", RIGHT, WRONG),
    Repairing("pieces that rotted unseen", RIGHT, WRONG, is_silent=True),
    Repairing("a file that is too long", RIGHT, LONGER),
    Repairing("a model of one file", ONE, {"m": b"0123456789ABCDEF!"}, single=True),
)


def _ignore(count: int) -> None:
    pass
