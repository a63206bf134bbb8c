"""Small records of the models in a folder, for all who share it: when each was used last, and which are to stay.

An empty file each, in ``<models>/.stagecast``: of ``used-<model>`` the modification time counts, of ``pinned-<model>``
that it is there. The access times of the model's own files say nothing: many mounts do not keep them, and a backup
reads everything.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from stagecast.durable import opened, sync_folder
from stagecast.publication import WORKSHOP

STEP: Final = 10.0
"""Seconds within which a second use is not written again."""
_USED: Final = "used-"
_PINNED: Final = "pinned-"


class Marks:
    """The marks of the models in ``models``. Safe to share between threads."""

    def __init__(self, models: Path) -> None:
        self._workshop = models / WORKSHOP
        self._guard = threading.Lock()
        self._written: dict[str, float] = {}

    def use(self, model: str) -> None:
        """Note that a model is used now: loaded, asked for a generation, served from. Never fails."""
        now = time.monotonic()
        with self._guard:
            if now - self._written.get(model, float("-inf")) < STEP:
                return
            self._written[model] = now
        with suppress(OSError), opened(self._workshop / f"{_USED}{model}", os.O_WRONLY | os.O_CREAT) as descriptor:
            os.utime(descriptor)

    def used_at(self, model: str) -> float:
        """Return when a model was used last, in seconds since 1970; 0 if it never was."""
        with suppress(OSError):
            return (self._workshop / f"{_USED}{model}").stat().st_mtime
        return 0.0

    def pin(self, model: str) -> None:
        """Let a model stay, whatever room is wanted. Raises `OSError`."""
        with opened(self._workshop / f"{_PINNED}{model}", os.O_WRONLY | os.O_CREAT):
            sync_folder(self._workshop)

    def unpin(self, model: str) -> None:
        """Let it go again where room is wanted."""
        (self._workshop / f"{_PINNED}{model}").unlink(missing_ok=True)

    def pinned(self) -> list[str]:
        """Return the models that are to stay, sorted."""
        names = (path.name for path in self._workshop.iterdir())
        return sorted(name.removeprefix(_PINNED) for name in names if name.startswith(_PINNED))

    def forget(self, model: str) -> None:
        """Remove every mark of a model that is gone."""
        with self._guard:
            self._written.pop(model, None)
        for prefix in (_USED, _PINNED):
            (self._workshop / f"{prefix}{model}").unlink(missing_ok=True)
