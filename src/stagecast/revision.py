"""How far a process has folded the log.

A revision is opaque to everybody outside: a string that is compared for equality, sent back, and nothing else. Inside,
it is the identity of the stream and the sequence of the last message that was folded. A stream that was made anew has
another identity, so that its low sequences never look like the past of the old one.
"""

from __future__ import annotations

from typing import NamedTuple


class Revision(NamedTuple):
    """A place in one stream: the stream's ``identity`` and the ``sequence`` of its last folded message."""

    identity: str
    sequence: int

    def __str__(self) -> str:
        """Return the text that clients see."""
        return f"{self.identity}-{self.sequence}"

    def reached_by(self, other: Revision) -> bool:
        """Tell whether a process at ``other`` has folded this revision.

        A revision of a stream that no longer exists counts as reached: nothing can ever bring it, and whoever waits
        for it must get the fresh picture instead.
        """
        return other.identity != self.identity or other.sequence >= self.sequence


def parse(text: str) -> Revision | None:
    """Return the revision that ``text`` says, or None if it is not one of ours."""
    identity, separator, sequence = text.strip().strip('"').rpartition("-")
    if not separator or not identity or not sequence.isascii() or not sequence.isdigit() or len(sequence) > 19:
        return None
    return Revision(identity, int(sequence))
