"""The system calls that change a disk, one by one: to count them, to die at one, to write down what each has done."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

NAMING: Final = ("rename", "replace", "link", "unlink", "remove", "rmdir", "mkdir")
WRITING: Final = ("write", "pwrite", "ftruncate", "fsync", "fdatasync", "copy_file_range")
FICLONE: Final = 0x40049409
MARK: Final = 4
"""Bytes of what a status says of a piece: neither a kill nor a loss of power finds a half of them written.

Of several that are written at once it may find some, and others not.
"""
REAL: Final[dict[str, Callable[..., Any]]] = {name: getattr(os, name) for name in (*NAMING, *WRITING, "open")}


class Call(NamedTuple):
    """One call: its name, the paths that it names, or the descriptor with what goes where. ``changes`` the disk."""

    name: str
    paths: tuple[str, ...] = ()
    descriptor: int = -1
    data: bytes = b""
    offset: int = 0
    changes: bool = True

    @property
    def grain(self) -> int:
        """Bytes of which a write that is cut off writes all or none."""
        return MARK if self.paths and self.paths[0].endswith("/status") else 1


class Watcher(Protocol):
    """Hears of each call below a folder."""

    def before(self, call: Call) -> None:
        """Hear that it is about to be made."""

    def after(self, call: Call, result: Any) -> None:
        """Hear that it was made."""


class Killer:
    """Kills the process just before its call number ``step``, or, of a write, once ``torn`` bytes have been written."""

    def __init__(self, step: int, torn: int = 0) -> None:
        self.count = 0
        self._step = step
        self._torn = torn

    def before(self, call: Call) -> None:
        self.count += call.changes
        if call.changes and self.count == self._step:
            if call.name == "pwrite" and self._torn:
                # Whoever goes on has another call there than the undisturbed one for which the point was made.
                REAL["pwrite"](call.descriptor, call.data[: self._torn - self._torn % call.grain], call.offset)
            os.kill(os.getpid(), signal.SIGKILL)

    def after(self, call: Call, result: Any) -> None:
        pass


class Lister:
    """Keeps each call that changes something."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def before(self, call: Call) -> None:
        if call.changes:
            self.calls.append(call)

    def after(self, call: Call, result: Any) -> None:
        pass


@contextmanager
def watched(root: Path, *watchers: Watcher) -> Iterator[None]:
    """Let the watchers hear of what this process does to the disk below ``root``."""
    top = os.path.realpath(root)

    def watching(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def made(*arguments: Any, **options: Any) -> Any:
            call = _describe(name, arguments, options)
            inside = call is not None and all(path.startswith(top) for path in call.paths)
            if call is None or not inside:
                return real(*arguments, **options)
            for watcher in watchers:
                watcher.before(call)
            result = real(*arguments, **options)
            for watcher in watchers:
                watcher.after(call, result)
            return result

        return made

    real_ioctl = fcntl.ioctl
    for name, real in REAL.items():
        setattr(os, name, watching(name, real))
    fcntl.ioctl = watching("ioctl", real_ioctl)
    try:
        yield
    finally:
        for name, real in REAL.items():
            setattr(os, name, real)
        fcntl.ioctl = real_ioctl


def _describe(name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Call | None:
    if name == "open":
        path = _absolute(arguments[0], options.get("dir_fd"))
        flags = arguments[1]
        makes = bool(flags & os.O_CREAT) and not os.path.lexists(path)
        return Call(name, (path,), changes=makes or bool(flags & os.O_TRUNC))
    if name in NAMING:
        return _naming(name, arguments, options)
    with suppress(OSError):
        return _writing(name, *arguments)
    return None


def _naming(name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Call:
    if name in {"rename", "replace", "link"}:
        paths = (_absolute(arguments[0], None), _absolute(arguments[1], None))
    else:
        paths = (_absolute(arguments[0], options.get("dir_fd")),)
    return Call({"replace": "rename", "remove": "unlink"}.get(name, name), paths)


def _writing(name: str, descriptor: int, *rest: Any) -> Call | None:
    if name == "copy_file_range":
        data = os.pread(descriptor, rest[1], rest[2])
        return Call("pwrite", (_path_of(rest[0]),), rest[0], data, rest[3])
    path = _path_of(descriptor)
    if name == "ioctl":
        if rest[0] != FICLONE:
            return None
        return Call("pwrite", (path,), descriptor, os.pread(rest[1], os.fstat(rest[1]).st_size, 0), 0)
    if name == "pwrite":
        return Call(name, (path,), descriptor, bytes(rest[0]), rest[1])
    if name == "write":
        return Call("pwrite", (path,), descriptor, bytes(rest[0]), _place_of(descriptor))
    if name == "ftruncate":
        return Call(name, (path,), descriptor, offset=rest[0])
    return Call("sync", (path,), descriptor)


def _place_of(descriptor: int) -> int:
    appends = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND
    return os.fstat(descriptor).st_size if appends else os.lseek(descriptor, 0, os.SEEK_CUR)


def _path_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115  # text, as the calls have it


def _absolute(path: Any, folder: int | None) -> str:
    text = os.fspath(path)
    if folder is not None:
        text = os.path.join(_path_of(folder), text)  # noqa: PTH118  # as the kernel joins them
    # The last part may be a link that is meant itself.
    return os.path.join(os.path.realpath(os.path.dirname(text)), os.path.basename(text))  # noqa: PTH118, PTH119, PTH120
