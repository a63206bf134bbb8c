"""The files of a partial: made as long as they will be, and filled in any order, but never where others have them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection
from pathlib import Path

from stagecast.durable import opened, sync_files, sync_folder
from stagecast.manifest import Manifest


class PartFiles:
    """The files under ``folder/files``, each known by its number in the manifest. Safe to share between threads."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder = folder
        self._manifest = manifest
        self._guard = threading.Lock()
        self._prepared: set[int] = set()
        self._folders: set[Path] = set()
        self._new_names: set[Path] = set()

    def place(self, number: int) -> Path:
        """Return where a file lies, or will."""
        return self._folder / "files" / self._manifest.files[number].path

    def find(self, unsure: Collection[int]) -> set[int]:
        """Return the files that are there; of the ``unsure`` ones, which are still to be written to, only our own."""
        for number, file in enumerate(self._manifest.files):
            path = self.place(number)
            is_ours = number not in unsure or not _is_shared(path)
            if is_ours and path.is_file() and path.stat().st_size == file.size:
                self._prepared.add(number)
        return self._prepared

    def prepare(self, number: int) -> Path:
        """Return a file that can be written to. Raises `OSError`."""
        path = self.place(number)
        with self._guard:
            if number not in self._prepared:
                self._make_room(path)
                if _is_shared(path):
                    path.unlink()
                with opened(path, os.O_WRONLY | os.O_CREAT) as descriptor:
                    os.ftruncate(descriptor, self._manifest.files[number].size)
                self._prepared.add(number)
        return path

    def put(self, number: int, make: Callable[[Path], bool]) -> bool:
        """Have ``make`` put a whole file at a path where nothing is; tell whether it has. Raises `OSError`."""
        path = self.place(number)
        with self._guard:
            self._make_room(path)
            path.unlink(missing_ok=True)
            self._prepared.discard(number)
            if make(path):
                self._prepared.add(number)
        return number in self._prepared

    def let_go(self, number: int) -> bool:
        """Tell whether a file has other names too; then another one is made before it is written to."""
        with self._guard:
            is_shared = _is_shared(self.place(number))
            if is_shared:
                self._prepared.discard(number)
        return is_shared

    def sync(self, numbers: Collection[int]) -> None:
        """Have the bytes of these files, and the names of all, outlive a loss of power. Raises `OSError`."""
        with self._guard:
            folders, self._new_names = self._new_names, set()
        sync_files([self.place(number) for number in sorted(numbers)], os.fdatasync)
        for folder in sorted(folders, reverse=True):
            sync_folder(folder)

    def clear(self) -> None:
        """Forget all of them: they were deleted."""
        with self._guard:
            self._prepared.clear()
            self._folders.clear()
            self._new_names.clear()

    def _make_room(self, path: Path) -> None:
        self._new_names.add(path.parent)
        if path.parent not in self._folders:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._new_names.update(above for above in path.parents if above.is_relative_to(self._folder))
            self._folders.add(path.parent)


def _is_shared(path: Path) -> bool:
    """Tell whether a file has other names too, so that writing to it would change what is not ours."""
    try:
        return path.stat().st_nlink > 1
    except FileNotFoundError:
        return False
