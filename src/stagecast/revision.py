"""How far a process has folded the log.

A revision is opaque to everybody outside: a string that is sent back, and nothing else. Inside, it is the identity of
the stream and the sequence of the last message that was folded. A stream that was made anew has another identity, so
that its low sequences never look like the past of the old one, and a later one: identities are ordered as text.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_SPAN: Final = 2**32
STREAMS: Final = 2**19
"""How many numbers there are for streams. Sequences stay below 2^52, so that every JSON reader keeps them exact."""
_DATED: Final = re.compile(r"[0-9a-f]{14}", re.ASCII)


class Revision(NamedTuple):
    """A place in one stream: the stream's ``identity`` and the ``sequence`` of its last folded message."""

    identity: str
    sequence: int

    def __str__(self) -> str:
        """Return the text that clients see."""
        return f"{self.identity}-{self.sequence}"

    def reached_by(self, other: Revision) -> bool:
        """Tell whether a process at ``other`` has folded this revision.

        A revision of an earlier stream counts as reached: nothing can ever bring it, and whoever waits for it must get
        the fresh picture instead. One of a later stream does not: that process has yet to learn of it.
        """
        if other.identity == self.identity:
            return other.sequence >= self.sequence
        return not self.is_after(other)

    def later(self, other: Revision) -> Revision:
        """Return the later one of the two."""
        return other if self.reached_by(other) else self

    def is_after(self, other: Revision) -> bool:
        """Tell whether this is of a later stream than ``other``."""
        return self.identity > other.identity and _DATED.fullmatch(self.identity) is not None


def first_of(number: int) -> int:
    """Return the first sequence of a stream that is given ``number``, below `STREAMS`."""
    return 1 + number * _SPAN


def is_one_stream(one: int, other: int) -> bool:
    """Tell whether two sequences are of one stream, by the numbers that their streams were given."""
    return (one - 1) // _SPAN == (other - 1) // _SPAN or max(one, other) <= _SPAN


def identity_of(created: float) -> str:
    """Return the identity of a stream that was made at ``created``, in seconds since 1970; later ones are greater."""
    return f"{max(0, int(created * 1e6)):014x}"


def parse(text: str) -> Revision | None:
    """Return the revision that ``text`` says, or None if it is not one of ours."""
    identity, separator, sequence = text.strip().strip('"').rpartition("-")
    if not separator or not identity or not sequence.isascii() or not sequence.isdigit() or len(sequence) > 19:
        return None
    return Revision(identity, int(sequence))
