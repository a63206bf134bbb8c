"""The files of a partial: made as long as they will be, and filled in any order, but never where others have them."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Final

from stagecast.durable import opened, start_writing, sync_files, sync_folder, write_all
from stagecast.manifest import Manifest
from stagecast.publication import WORKSHOP

PREFIX: Final = "partial-"
_CHUNK: Final = 1024 * 1024
_WORTH: Final = 1024 * 1024
_TURNS: Final = 16
"""Files that are written to at the same time. The kernel lets one at a time write to a file, and who waits for that
keeps a core busy meanwhile; who waits for his turn sleeps.
"""
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


def folder_of(models: Path, model: str, digest: str) -> Path:
    """Return where a revision of a model lies while it arrives."""
    return models / WORKSHOP / f"{PREFIX}{digest[:16]}-{model}"


class PartFiles:
    """The files under ``folder/files``, each known by its number in the manifest. Safe to share between threads.

    Paths are text inside: a model may have ten thousand files.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder = folder
        self._manifest = manifest
        self._base = f"{folder}/files/"
        self._guard = threading.Lock()
        self._turns = [threading.Lock() for _ in range(_TURNS)]
        self._prepared: set[int] = set()
        self._folders: set[str] = set()
        self._new_names: set[str] = set()
        self._synced: set[int] = set()

    def place(self, number: int) -> Path:
        """Return where a file lies, or will."""
        return self._folder / "files" / self._manifest.files[number].path

    @property
    def synced(self) -> frozenset[int]:
        """The files that were synced since they were written to, by their number."""
        return frozenset(self._synced)

    def find(self, unsure: Collection[int]) -> set[int]:
        """Return the files that are there; of the ``unsure`` ones, which are still to be written to, only our own."""
        if not (self._folder / "files").is_dir():
            return self._prepared
        for number, file in enumerate(self._manifest.files):
            found = _look(self._path(number))
            is_ours = found is not None and (number not in unsure or found.st_nlink == 1)
            if found and is_ours and stat.S_ISREG(found.st_mode) and found.st_size == file.size:
                self._prepared.add(number)
        return self._prepared

    def prepare(self, number: int) -> Path:
        """Return a file that can be written to; `written` is to be called afterwards. Raises `OSError`."""
        self._prepare(number)
        return self.place(number)

    def write(self, number: int, buffer: bytes | bytearray | memoryview, offset: int) -> None:
        """Write ``buffer`` at ``offset`` bytes into a file. Raises `OSError`."""
        is_all = not offset and memoryview(buffer).nbytes == self._manifest.files[number].size
        if not (is_all and number not in self._prepared and self._write_new(number, buffer)):
            with opened(self._prepare(number), os.O_WRONLY) as descriptor, self._turns[number % _TURNS]:
                write_all(descriptor, buffer, offset)
        self._synced.discard(number)

    def read(self, number: int, offset: int, length: int) -> Iterator[memoryview]:
        """Yield so many bytes of a file, in chunks that are valid until the next one is asked for. Raises `OSError`."""
        buffer, done = memoryview(bytearray(min(_CHUNK, length))), 0
        with opened(self._path(number), os.O_RDONLY) as descriptor:
            while done < length:
                count = os.preadv(descriptor, [buffer[: length - done]], offset + done)
                if count == 0:
                    raise OSError(errno.EIO, "the file ends too early", self._path(number))
                yield buffer[:count]
                done += count

    def written(self, number: int) -> None:
        """Note that a file that was prepared has been written to."""
        self._synced.discard(number)

    def start_writing(self, number: int, offset: int, length: int) -> None:
        """Have the disk take these bytes soon, so that `sync` waits for little; of few it is not worth the call."""
        if length >= _WORTH:
            start_writing(self._path(number), offset, length)

    def put(self, number: int, make: Callable[[Path], bool]) -> bool:
        """Have ``make`` put a whole file at a path where nothing is; tell whether it has. Raises `OSError`."""
        path = self.place(number)
        with self._guard:
            self._make_room(self._path(number))
            path.unlink(missing_ok=True)
            self._prepared.discard(number)
            if make(path):
                self._prepared.add(number)
        self._synced.discard(number)
        return number in self._prepared

    def let_go(self, number: int) -> bool:
        """Tell whether a file has other names too; then another one is made before it is written to."""
        with self._guard:
            is_shared = _is_shared(self._path(number))
            if is_shared:
                self._prepared.discard(number)
        return is_shared

    def sync(self, numbers: Collection[int]) -> None:
        """Have the bytes and times of these files, and the names of all, outlive a loss of power. Raises `OSError`."""
        with self._guard:
            folders, self._new_names = self._new_names, set()
        # Noted before it is done: whoever writes meanwhile takes it back.
        self._synced.update(numbers)
        try:
            sync_files([self._path(number) for number in sorted(numbers)], os.fsync)
            for folder in sorted(folders, reverse=True):
                sync_folder(folder)
        except BaseException:
            self._synced.difference_update(numbers)
            raise

    def clear(self) -> None:
        """Forget all of them: they were deleted."""
        with self._guard:
            self._prepared.clear()
            self._folders.clear()
            self._new_names.clear()
            self._synced.clear()

    def _path(self, number: int) -> str:
        return self._base + self._manifest.files[number].path

    def _write_new(self, number: int, buffer: bytes | bytearray | memoryview) -> bool:
        """Make a file with all that it will hold, in the fewest calls; False where something is there already."""
        path = self._path(number)
        with self._guard:
            self._make_room(path)
        try:
            descriptor = os.open(path, _NEW, 0o644)
        except FileExistsError:
            return False
        try:
            write_all(descriptor, buffer, 0)
        finally:
            os.close(descriptor)
        with self._guard:
            # Only now the folder has the name: who synced it meanwhile, has synced it without.
            self._make_room(path)
            self._prepared.add(number)
        return True

    def _prepare(self, number: int) -> str:
        path = self._path(number)
        with self._guard:
            if number not in self._prepared:
                self._make_room(path)
                if _is_shared(path):
                    Path(path).unlink()
                with opened(path, os.O_WRONLY | os.O_CREAT) as descriptor:
                    os.ftruncate(descriptor, self._manifest.files[number].size)
                self._prepared.add(number)
        return path

    def _make_room(self, path: str) -> None:
        above = path[: path.rindex("/")]
        if above not in self._folders:
            folder = Path(above)
            folder.mkdir(parents=True, exist_ok=True)
            self._new_names.update(os.fspath(each) for each in folder.parents if each.is_relative_to(self._folder))
            self._folders.add(above)
        self._new_names.add(above)


def _look(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)  # noqa: PTH116  # see the class
    except (FileNotFoundError, NotADirectoryError):
        return None


def _is_shared(path: str) -> bool:
    """Tell whether a file has other names too, so that writing to it would change what is not ours."""
    found = _look(path)
    return found is not None and found.st_nlink > 1
