"""Neighbours: the models folders of this machine that lie on one file system, so that each knows what all promise.

``<place>/stagecast-<user id>/<device>/folder-<inode>`` holds the path of a models folder. The place is memory of this
machine that is empty after a boot, as devices are numbered anew then. It is a help and never a must: where there is no
such place, or it is emptied, a folder is on its own until it is entered again, and its leases hold as ever.
"""

from __future__ import annotations

import logging
import os
import secrets
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

PLACE: Final = "STAGECAST_RUNTIME_DIR"
"""The environment variable that names another place."""
_MEMORY: Final = Path("/dev/shm")  # noqa: S108
"""Unlike the folder for temporary files it is the same for all services of a machine, whatever their settings say."""
_PREFIX: Final = "folder-"
_logger = logging.getLogger(__name__)


class Entry(NamedTuple):
    """A folder, by the file system it lies on and its own number there."""

    device: int
    inode: int


class Neighbours:
    """The other models folders on the file system of ``models``, which may be mounted only later."""

    def __init__(self, models: Path) -> None:
        self._models = models
        self._is_warned = False

    def register(self) -> Path | None:
        """Enter the folder where the others look; return what all of its file system share, or None without one."""
        try:
            own = _entry(self._models)
            shared = _private(_place() / f"stagecast-{os.geteuid()}") / str(own.device)
            shared.mkdir(mode=0o700, exist_ok=True)
            path, said = shared / f"{_PREFIX}{own.inode}", os.fsencode(self._models.resolve())
            if not _holds(path, said):
                _put(path, said)
        except OSError as error:
            self._warn(error)
            return None
        return shared

    def folders(self) -> list[Path]:
        """Return the others, in no order; what is entered and is not there any more is passed over."""
        return [folder for _, folder in self._entered() if folder is not None]

    def clear(self) -> None:
        """Drop what is entered and is not there any more, or on another file system now."""
        for path, folder in self._entered():
            if folder is None:
                with suppress(OSError):
                    path.unlink()

    def _entered(self) -> list[tuple[Path, Path | None]]:
        shared = self.register()
        if shared is None:
            return []
        with suppress(OSError):
            own = _entry(self._models)
            paths = [path for path in shared.iterdir() if path.name.startswith(_PREFIX)]
            return [(path, _folder(path, own.device)) for path in paths if path.name != f"{_PREFIX}{own.inode}"]
        return []

    def _warn(self, error: OSError) -> None:
        if not self._is_warned:
            _logger.warning("what other folders on the disk of %s promise cannot be known: %s", self._models, error)
        self._is_warned = True


def _place() -> Path:
    chosen = os.environ.get(PLACE)
    if chosen:
        return Path(chosen)
    return _MEMORY if os.access(_MEMORY, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())


def _private(folder: Path) -> Path:
    """Make a folder that is this user's alone. Raises `OSError` where somebody else has put something there."""
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise PermissionError(f"{folder} is not a folder of this user alone")
    return folder


def _entry(folder: Path) -> Entry:
    found = folder.stat()
    return Entry(found.st_dev, found.st_ino)


def _holds(path: Path, said: bytes) -> bool:
    try:
        return path.read_bytes() == said
    except FileNotFoundError:
        return False


def _put(path: Path, said: bytes) -> None:
    # Whole or not at all for whoever reads; not synced, as it does not have to outlive the machine's memory.
    beside = path.with_name(f".{secrets.token_hex(8)}")
    beside.write_bytes(said)
    beside.rename(path)


def _folder(path: Path, device: int) -> Path | None:
    """Return the folder that is entered, or None where that is not the one any more."""
    try:
        folder = Path(os.fsdecode(path.read_bytes()))
        found = _entry(folder)
    except (OSError, ValueError):
        return None
    return folder if found == (device, _number(path)) else None


def _number(path: Path) -> int:
    number = path.name.removeprefix(_PREFIX)
    return int(number) if number.isdecimal() else -1
