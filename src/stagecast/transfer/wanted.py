"""What is asked of a holder: a range of one file, or many small pieces at once. Pure."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from stagecast.pieces import encode_numbers
from stagecast.transfer.head import MEANINGS, Head, length_of, misfit

SHARED: Final = "Stagecast-Shared"
"""The header of a request whose bytes others may have too: a holder that has enough to do may refuse it with 503, and
with 409 if it is wanted only as the first copy."""

Wish = Literal["", "yes", "first", "need"]
"""What a request says in that header: nothing; that others may have the range too; that it is to be the first copy; or
that others may have it too, but the puller has had nothing to do for a while."""


def _field(wish: Wish) -> str:
    return f"{SHARED}: {wish}\r\n" if wish else ""


class Range(NamedTuple):
    """The bytes from ``start`` to ``stop`` (excluded) of a file of ``size`` bytes.

    ``wish`` says whether others may have it too, so that a holder can refuse because of them.
    """

    digest: str
    start: int
    stop: int
    size: int
    wish: Wish = ""

    @property
    def length(self) -> int:
        """Bytes that the answer has."""
        return self.stop - self.start

    @property
    def path(self) -> str:
        """Where to ask for it."""
        return f"/files/{self.digest}"

    @property
    def fields(self) -> str:
        """The lines of the request's head that say what is wanted."""
        return f"Range: bytes={self.start}-{self.stop - 1}\r\n{_field(self.wish)}"

    def misfit(self, head: Head) -> str:
        """Return in what a response is not what was asked for; empty if it is."""
        return misfit(head, self.digest, (self.start, self.stop, self.size))


class Bundle(NamedTuple):
    """Whole pieces by their ``numbers`` in the manifest with that ``digest``, ``length`` bytes in all."""

    digest: str
    numbers: tuple[int, ...]
    length: int
    wish: Wish = ""

    @property
    def path(self) -> str:
        """Where to ask for it."""
        return f"/bundles/{self.digest}/{encode_numbers(self.numbers)}"

    @property
    def fields(self) -> str:
        """The lines of the request's head that say what is wanted."""
        return _field(self.wish)

    def misfit(self, head: Head) -> str:
        """Return in what a response is not what was asked for; empty if it is."""
        if "html" in head.fields.get("content-type", ""):
            return f"answered HTTP {head.status} with a page for people, as a proxy does that stands in between"
        if head.status != 200:
            return MEANINGS.get(head.status, f"answered HTTP {head.status}")
        if head.fields.get("etag", f'"{self.digest}"') != f'"{self.digest}"':
            return f"has another model there, with the ETag {head.fields['etag']}"
        if length_of(head) != self.length:
            return "sent a bundle that is not as long as its pieces"
        return ""


Wanted = Range | Bundle
