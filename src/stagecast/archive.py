"""The archive: the second log, where each end has a subject of its own and is written once, whoever comes first."""

from __future__ import annotations

from contextlib import suppress

import msgspec

from stagecast import operations, subjects
from stagecast.bus import Log
from stagecast.errors import AppendConflict
from stagecast.messages import Record


async def keep(history: Log, end: Record) -> None:
    """Write an end unless it stands there; to be done before anything is written over it in the first log.

    Raises:
        BusUnavailable: whether it is kept is not known.
    """
    payload = msgspec.json.encode(operations.undismissed(end))
    with suppress(AppendConflict):
        await history.append(subjects.history(end.job, end.attempt), payload, expected=0)
