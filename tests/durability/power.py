"""What a disk may hold after its power was cut: a model of one, and all that it has been told since the start.

Whatever was synced is there. Of the rest each write, each size and each name may be there or not, in any combination,
and a write in part; only what one call does to names is there as a whole, as on every file system with a journal.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tests.durability.calls import Call


class Change(NamedTuple):
    """One thing that was done: ``data`` at ``offset`` or a size of an inode, names set or taken away, or a sync."""

    what: Literal["data", "size", "names", "sync"]
    inode: int = 0
    offset: int = 0
    data: bytes = b""
    names: tuple[tuple[int, str, int | None], ...] = ()
    grain: int = 1


Survives = Callable[[int, Change], bool | int]


@dataclass
class Disk:
    """Folders by inode, and the contents of files by inode; inode 0 is the folder above all."""

    folders: dict[int, dict[str, int]] = field(default_factory=lambda: {0: {}})
    files: dict[int, bytearray] = field(default_factory=dict)

    def copy(self) -> Disk:
        return Disk(
            {inode: dict(names) for inode, names in self.folders.items()},
            {inode: bytearray(data) for inode, data in self.files.items()},
        )

    def apply(self, change: Change) -> None:
        if change.what == "data":
            content = self.files[change.inode]
            content.extend(bytes(max(0, change.offset + len(change.data) - len(content))))
            content[change.offset : change.offset + len(change.data)] = change.data
        elif change.what == "size":
            content = self.files[change.inode]
            content.extend(bytes(max(0, change.offset - len(content))))
            del content[change.offset :]
        for folder, name, inode in change.names:
            if inode is None:
                self.folders[folder].pop(name, None)
            else:
                self.folders[folder][name] = inode

    def tree(self, folder: int = 0, above: str = "") -> Iterator[tuple[str, int]]:
        """Yield each path with its inode, folders before what is in them."""
        for name, inode in sorted(self.folders[folder].items()):
            yield above + name, inode
            if inode in self.folders:
                yield from self.tree(inode, f"{above}{name}/")

    def find(self, path: str) -> int | None:
        inode: int | None = 0
        for part in path.split("/") if path else ():
            inode = self.folders[inode].get(part) if inode in self.folders else None
        return inode

    def lay_out(self, root: Path) -> None:
        root.mkdir(parents=True)
        for path, inode in self.tree():
            if inode in self.folders:
                (root / path).mkdir()
            else:
                (root / path).write_bytes(self.files[inode])

    def contents(self) -> dict[str, bytes | None]:
        """Return the contents of all files by path; None for a folder."""
        return {path: bytes(self.files[inode]) if inode in self.files else None for path, inode in self.tree()}


class Recorder:
    """Writes down what is done below ``root``; what lies there at the start counts as synced."""

    def __init__(self, root: Path) -> None:
        self._root = os.path.realpath(root)
        self._opened: dict[int, int] = {}
        self._last = 0
        self.disk = Disk()
        self.numbers: dict[int, int] = {}
        """What the real file system calls an inode, the latest where it has used a number again."""
        self.changes: list[Change] = []
        for path in sorted(Path(self._root).rglob("*")):
            self._found(path)
        self.start = self.disk.copy()

    def before(self, call: Call) -> None:
        pass

    def after(self, call: Call, result: Any) -> None:
        if call.name == "open":
            self._after_open(call.paths[0], result)
        elif call.name == "mkdir":
            self._make(call.paths[0], self.disk.folders, {})
        elif call.name in {"rename", "link"}:
            source, target = call.paths
            taken = ((*self._entry(source), None),) if call.name == "rename" else ()
            self._change(Change("names", names=(*taken, (*self._entry(target), self._inode(source)))))
        elif call.name in {"unlink", "rmdir"}:
            self._change(Change("names", names=((*self._entry(call.paths[0]), None),)))
        elif call.name == "pwrite":
            self._change(
                Change("data", self._opened[call.descriptor], call.offset, call.data[:result], grain=call.grain)
            )
        elif call.name == "ftruncate":
            self._change(Change("size", self._opened[call.descriptor], call.offset))
        elif call.name == "sync":
            self._change(Change("sync", self._opened[call.descriptor]))

    def cut(self, at: int, survives: Survives) -> Disk:
        """Return what is there when the power goes before change ``at``.

        ``survives`` is asked of each change that was not synced: False, True, or of a write how many bytes of it.
        """
        disk = self.start.copy()
        for inode in self.disk.folders:
            disk.folders.setdefault(inode, {})
        for inode in self.disk.files:
            disk.files.setdefault(inode, bytearray())
        loose = set(self.loose(at))
        for index, change in enumerate(self.changes[:at]):
            verdict = survives(index, change) if index in loose else True
            if verdict is True:
                disk.apply(change)
            elif verdict and change.what == "data":
                disk.apply(change._replace(data=change.data[:verdict]))
        return disk

    def loose(self, at: int) -> list[int]:
        """Return which of the changes before ``at`` are not synced by then."""
        synced: set[int] = set()
        found = []
        for index in reversed(range(at)):
            change = self.changes[index]
            if change.what == "sync":
                synced.add(change.inode)
            elif not ({folder for folder, _, _ in change.names} or {change.inode}) & synced:
                found.append(index)
        return found[::-1]

    def _after_open(self, path: str, descriptor: int) -> None:
        if self._inode(path) is None:
            self._make(path, self.disk.files, bytearray())
        inode = self._inode(path)
        assert inode is not None
        self._opened[descriptor] = inode

    def _change(self, change: Change) -> None:
        self.changes.append(change)
        self.disk.apply(change)

    def _make(self, path: str, kind: dict[int, Any], empty: Any) -> None:
        self._last += 1
        kind[self._last] = empty
        self.numbers[os.lstat(path).st_ino] = self._last
        self._change(Change("names", names=((*self._entry(path), self._last),)))

    def _found(self, path: Path) -> None:
        self._last += 1
        if path.is_dir():
            self.disk.folders[self._last] = {}
        else:
            self.disk.files[self._last] = bytearray(path.read_bytes())
        folder, name = self._entry(str(path))
        self.disk.folders[folder][name] = self._last
        self.numbers[path.lstat().st_ino] = self._last

    def _inode(self, path: str) -> int | None:
        return self.disk.find(os.path.relpath(path, self._root) if path != self._root else "")

    def _entry(self, path: str) -> tuple[int, str]:
        folder = self._inode(os.path.dirname(path))  # noqa: PTH120  # text, as the calls have it
        assert folder is not None, path
        return folder, os.path.basename(path)  # noqa: PTH119


def survivals(recorder: Recorder, at: int, chance: random.Random, often: int) -> Iterator[Survives]:
    """Yield ways to lose what was not synced before ``at``, as `Recorder.cut` takes them: the plain ones, then others.

    The plain ones: all of it, none of it, what is no name, only names and sizes, each prefix, each suffix. ``often``
    others lose each thing or not, and of writes a part, by chance.
    """
    loose = recorder.loose(at)
    yield lambda _, __: False
    if not loose:
        return
    yield lambda _, __: True
    yield lambda _, change: change.what == "data"
    yield lambda _, change: change.what != "data"
    for place in loose[1:]:
        yield lambda index, _, place=place: index < place
        yield lambda index, _, place=place: index >= place
    for _ in range(often):
        fates = {index: _fate(recorder.changes[index], chance) for index in loose}
        yield lambda index, _, fates=fates: fates[index]


def _fate(change: Change, chance: random.Random) -> bool | int:
    # Marks of 4 bytes never lie in two sectors, each of which a disk writes whole.
    if change.what == "data" and len(change.data) > change.grain and chance.random() < 0.3:
        return chance.randrange(change.grain, len(change.data), change.grain)
    return chance.random() < 0.5
