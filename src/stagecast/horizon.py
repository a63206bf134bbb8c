"""The horizon: up to where the log is old enough for its ended operations to be forgotten, and what stays. Pure.

To forget is a message of the log like any other: every fold forgets the same where it stands. It names a sequence, not
operations, and the few words before it that are not to be forgotten. So whoever slept through all of it, and never
hears how an operation ended whose messages are gone, forgets it too: what it holds is neither later nor named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import merge
from itertools import takewhile
from typing import Final

from stagecast import operations
from stagecast.fold import Fold, Slot
from stagecast.messages import Horizon, Record
from stagecast.mirror import Mirror

AGE: Final = 600.0
"""Seconds after its end at which an operation is forgotten: no poll or retry that belongs to it is on its way still."""
STEP: Final = 60.0
"""Seconds for which what is old enough is collected, so that a horizon comes once a minute at most."""
MOST: Final = 1000
"""Words that are forgotten at once; a fold takes a millisecond or two for them. The rest follows at the next look."""
KEPT_MOST: Final = 50_000
"""Words before a horizon that it can name, so that it stays below NATS's 1 MB. Beyond more that wait none is set."""

Word = Slot | Mirror


def due(fold: Fold, now: float, is_wanted: Callable[[Record], bool]) -> Horizon | None:
    """Return the horizon to be set at ``now``, the server's clock; None where nothing has to be forgotten yet.

    ``is_wanted`` tells of which ended operations somebody still has to learn: as the history.
    """
    gone: set[int] = set()
    kept: list[int] = []
    for word in takewhile(lambda word: word.time <= now - AGE, _by_sequence(fold)):
        if not _is_over(fold, word, is_wanted):
            kept.append(word.sequence)
        elif gone or word.time <= now - AGE - STEP:
            gone.add(word.sequence)
        else:
            break
        if len(gone) == MOST or len(kept) > KEPT_MOST:
            break
    if not gone:
        return None
    through = max(gone)
    offsets = tuple(through - at for at in kept if at <= through and at not in gone)
    return Horizon(number=fold.horizon.number + 1, through=through, kept=offsets)


def _by_sequence(fold: Fold) -> Iterator[Word]:
    return merge(fold.slots.values(), fold.mirrors.values(), key=lambda word: word.sequence)


def _is_over(fold: Fold, word: Word, is_wanted: Callable[[Record], bool]) -> bool:
    """Tell whether no list shows an operation, itself or as a part of its call, and nobody has to learn of its end."""
    if isinstance(word, Mirror):
        return word.done
    record = word.record
    if operations.is_listed(record) or _tells_of_a_disk(record) or is_wanted(record):
        return False
    parts = (part for call in fold.calls_of(record) for part in fold.call(call))
    return not any(operations.is_listed(part.record) for part in parts)


def _tells_of_a_disk(record: Record) -> bool:
    """Tell whether it says what lies on a disk still, or lies there no more: of models and nodes there are not many."""
    is_partial = record.kind in {"staging", "installation"} and record.state != "succeeded"
    return is_partial or record.kind == "deletion"
