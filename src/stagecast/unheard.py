"""The words on operations that a process has written and not heard yet: it must not act as if they were not. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from stagecast import operations
from stagecast.fold import Fold
from stagecast.messages import Record
from stagecast.revision import is_one_stream


class Word(NamedTuple):
    """A record, and the sequence at which it came to stand."""

    record: Record
    sequence: int


class Unheard:
    """The last such word on each operation."""

    def __init__(self) -> None:
        self._words: dict[str, Word] = {}

    def __len__(self) -> int:
        return len(self._words)

    def __iter__(self) -> Iterator[Record]:
        """Yield the records."""
        return (word.record for word in self._words.values())

    def get(self, operation: str) -> Word | None:
        """Return what was written on an operation, by its id, and was not heard yet."""
        return self._words.get(operation)

    def note(self, record: Record, sequence: int, fold: Fold) -> None:
        """Take note of a word that the log has taken, unless ``fold`` has it, or has forgotten it by now."""
        slot, known = fold.slots.get(record.id), self._words.get(record.id)
        if _is_passed(sequence, fold.horizon_at) or (known and operations.outranks(known.record, record)):
            return
        if slot is None or operations.outranks(record, slot.record):
            self._words[record.id] = Word(record, sequence)

    def hear(self, record: Record) -> None:
        """Take note of a word that stands in the log."""
        known = self._words.get(record.id)
        if known is not None and not operations.outranks(known.record, record):
            del self._words[record.id]

    def let_go(self, horizon_at: int) -> None:
        """Let go of what was written before a horizon came to stand: heard by then, or slept through."""
        self._words = {name: word for name, word in self._words.items() if not _is_passed(word.sequence, horizon_at)}


def _is_passed(sequence: int, horizon_at: int) -> bool:
    return sequence < horizon_at and is_one_stream(sequence, horizon_at)
