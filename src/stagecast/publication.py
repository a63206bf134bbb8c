"""Publication: a whole model moves to its final name with one rename, and a crash at any step is made good.

A working folder lies in ``<models>/.stagecast`` and holds the model's files under ``files``. Publishing it goes

1. ``publishing`` is written beside ``files``: the inode that is about to move, and the model's name;
2. an older revision under the final name moves to ``replaced``, in the working folder;
3. ``files`` (or the one file of a single-file model) moves to the final name;
4. the model is recorded, so that nobody hashes it again;
5. the working folder leaves with one rename, and is deleted.

Steps 1 to 4 are taken by one process at a time, which holds ``<models>/.stagecast/moving``.

Whoever opens the working folder after a crash asks `was_published`. After step 3 the inode under the final name tells
that the move happened, and what is left is 4 and 5. Before it, the older revision goes back where it was; should
nobody open the folder again, `tidy` does that when a process starts. All this is done by whoever holds ``lock``.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Final

from stagecast.durable import Lock, opened, sync_files, sync_folder, write_whole
from stagecast.errors import WrongState
from stagecast.manifest import Manifest, check_name

WORKSHOP: Final = ".stagecast"
"""The folder in the models folder for all that is not whole: same file system, so moving is one rename."""

_TRASH: Final = "trash-"
_MOVING: Final = "moving"
_LOOK_AGAIN: Final = 0.005
"""Seconds between two looks at whether another one has moved its model."""


Keeping = Callable[[], AbstractContextManager[object]]
"""What is entered while names of files go, so that the records of their other names follow."""


def publish(
    working: Path,
    manifest: Manifest,
    models: Path,
    record: Callable[[Manifest], None],
    keeping: Keeping = nullcontext,
    synced: Collection[int] = (),
) -> Path:
    """Make ``working/files``, every byte of it written and verified, the model; return its path.

    ``record`` is called once the model stands under its name and before ``working`` goes, with an older revision that
    stood there, within ``keeping``. ``synced`` are the files, by their number, that were synced since they were written
    to. After a crash at any step, or an `OSError` from the file system, call it again.

    Raises:
        WrongState: a file is missing or has another size than the manifest says.
    """
    final = models / manifest.model
    if not was_published(working, manifest, models):
        _complete(working / "files", manifest, synced)
    with moving(models):
        if not was_published(working, manifest, models):
            _move(working, _source(working, manifest), final)
        record(manifest)
    # To keep the records of all models takes a look at each of their files: only where files go that may have others'.
    is_last = not os.path.lexists(working / "replaced") and not os.path.lexists(working / "files")
    with nullcontext() if is_last else keeping():
        throw_away(working, models)
    return final


def was_published(working: Path, manifest: Manifest, models: Path) -> bool:
    """Return whether a publication that was cut off had moved the files; put an older revision back if it had not."""
    check_name(manifest.model)
    if _is_marked(working, models / manifest.model) and not _source(working, manifest).exists():
        return True
    _restore(working, models)
    return False


@contextmanager
def moving(models: Path) -> Iterator[None]:
    """Be the only one, over all processes, that moves models in or out: two revisions of one would run into each other.

    What is done meanwhile takes as long as a few renames do.
    """
    lock = Lock(models / WORKSHOP / _MOVING)
    while not lock.take():
        time.sleep(_LOOK_AGAIN)
    try:
        yield
    finally:
        (models / WORKSHOP / _MOVING).unlink(missing_ok=True)
        lock.release()


def tidy(models: Path) -> None:
    """Make good what crashes left in the models folder: trash is deleted, older revisions go back under their names."""
    for path in (models / WORKSHOP).iterdir():
        if path.name.startswith(_TRASH):
            _delete(path)
        elif path.name == _MOVING:
            lock = Lock(path)
            if lock.take():
                path.unlink()
                lock.release()
        elif os.path.lexists(path / "replaced"):
            lock = Lock(path / "lock")
            if lock.take():
                _restore(path, models)
                lock.release()


def throw_away(path: Path, models: Path) -> bool:
    """Take ``path`` out of sight with one rename, then delete it. Return False when it was gone already."""
    trash = models / WORKSHOP / f"{_TRASH}{secrets.token_hex(8)}"
    trash.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.rename(trash)
    except FileNotFoundError:
        return False
    sync_folder(trash.parent)  # or a loss of power could find it under its old name, and half of it deleted
    _delete(trash)
    return True


def _delete(trash: Path) -> None:
    if trash.is_dir() and not trash.is_symlink():
        shutil.rmtree(trash, ignore_errors=True)
    else:
        trash.unlink(missing_ok=True)


def _source(working: Path, manifest: Manifest) -> Path:
    return working / "files" / manifest.files[0].path if manifest.single else working / "files"


def _complete(files: Path, manifest: Manifest, synced: Collection[int]) -> None:
    base, folders = os.fspath(files), {os.fspath(files)}
    for file in manifest.files:
        path = f"{base}/{file.path}"
        if not file.size:
            _make_empty(path)
        folders.update(_folders_above(path, base))
        try:
            size = os.stat(path).st_size  # noqa: PTH116  # ten thousand files: a path object takes as long as the call
        except FileNotFoundError:
            size = 0
        if size != file.size:
            raise WrongState(manifest.model, f"not whole ({file.path}: {size} of {file.size} bytes)", "publish")
    # With their times, by which they will be known.
    unsure = [f"{base}/{file.path}" for number, file in enumerate(manifest.files) if number not in synced]
    sync_files(unsure, os.fsync)
    for folder in sorted(folders, reverse=True):
        sync_folder(folder)


def _make_empty(path: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with opened(path, os.O_RDONLY | os.O_CREAT):
        pass


def _folders_above(path: str, base: str) -> Iterator[str]:
    """Yield the folders in which a file lies, up to below ``base``."""
    place = path.rfind("/")
    while place > len(base):
        yield path[:place]
        place = path.rfind("/", 0, place)


def _move(working: Path, source: Path, final: Path) -> None:
    write_whole(working / "publishing", f"{source.stat().st_ino} {final.name}".encode())
    # Over a file the kernel moves another file in one step; a folder has to stand aside first.
    if os.path.lexists(final) and (source.is_dir() or (final.is_dir() and not final.is_symlink())):
        throw_away(working / "replaced", final.parent)
        final.rename(working / "replaced")
    source.rename(final)
    sync_folder(final.parent)


def _marker(working: Path) -> tuple[int, str]:
    """Return the inode that was about to move, and the model's name; (-1, "") if nothing was."""
    try:
        inode, _, model = (working / "publishing").read_text().partition(" ")
        return int(inode), model
    except (OSError, ValueError):
        return -1, ""


def _is_marked(working: Path, final: Path) -> bool:
    inode, model = _marker(working)
    try:
        return model == final.name and inode == final.lstat().st_ino
    except FileNotFoundError:
        return False


def _restore(working: Path, models: Path) -> None:
    model = _marker(working)[1]
    if model and os.path.lexists(working / "replaced") and not os.path.lexists(models / model):
        (working / "replaced").rename(models / model)


def put_back(working: Path, models: Path) -> None:
    """Put an older revision back that stood aside for one which did not come; for whoever holds ``lock``."""
    _restore(working, models)


def is_trash(path: Path) -> bool:
    """Tell whether this was thrown away, and only has to be deleted."""
    return path.name.startswith(_TRASH)
