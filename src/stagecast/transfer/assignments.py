"""Who fetches which piece from whom, in one pull. Pure: values in, values out, and ``now`` is an argument."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from stagecast.pieces import Piece, Standing, choose_holder, choose_piece
from stagecast.transfer.source import Holder

FIRST_REST: Final = 0.1
LONGEST_REST: Final = 2.0
"""Seconds for which a holder is left alone after a failure: the first one, doubled by each that follows."""

GRAVE: Final = 4.0
"""What a lie weighs against a holder, in streams; a plain failure weighs 1, and 1 more for each second it cost."""


class Assignment(NamedTuple):
    """A piece to get. ``holder`` is None where the bytes are here, and only want checking.

    ``is_alone`` says that all of the piece has to come from this holder, so that it is clear who lied.
    """

    piece: Piece
    holder: Holder | None
    is_alone: bool = False


class Assignments:
    """The pieces that a pull still wants, and what it has learned about its holders.

    ``whole`` are pieces whose bytes are on the disk in full, but were not checked; they are handed out first.
    """

    def __init__(self, missing: Sequence[Piece], whole: Collection[Piece], now: float) -> None:
        self.causes: dict[str, str] = {}
        self._whole = [piece for piece in missing if piece in whole]
        self._waiting = dict.fromkeys(piece for piece in missing if piece not in whole)
        self._active: set[Piece] = set()
        self._holders: dict[str, Holder] = {}
        self._standings: dict[str, Standing] = {}
        self._rests: dict[str, tuple[float, float]] = {}
        self._liars: dict[Piece, set[str]] = {}
        self._doubtful: set[Piece] = set()
        self._last_progress = now
        self._failed_since: set[str] = set()

    @property
    def is_complete(self) -> bool:
        """Whether every piece is here."""
        return not (self._whole or self._waiting or self._active)

    def know(self, holders: Sequence[Holder]) -> None:
        """Take these for the holders that there are now, in the order of preference."""
        self._holders = {holder.name: holder for holder in holders}

    def next(self, now: float) -> Assignment | None:
        """Return what to get next and from whom, or None when there is nothing to do just now."""
        if self._whole:
            self._active.add(self._whole[0])
            return Assignment(self._whole.pop(0), None)
        blocked = {piece for piece in self._liars if self._choose(piece, now) is None}
        piece = choose_piece(self._waiting, blocked)
        holder = self._choose(piece, now) if piece else None
        if piece is None or holder is None:
            return None
        del self._waiting[piece]
        self._active.add(piece)
        self._standings[holder.name] = self._standing(holder).opened()
        return Assignment(piece, holder, piece in self._doubtful)

    def progressed(self, now: float, holder: Holder | None = None) -> None:
        """Note that bytes came that were not here before, from that holder or from the disk."""
        if holder and holder.name in self._rests:
            del self._rests[holder.name]
        self._last_progress = now
        self._failed_since.clear()

    def done(self, assignment: Assignment, now: float) -> None:
        """Note that the piece is verified."""
        self._active.discard(assignment.piece)
        self._liars.pop(assignment.piece, None)
        self._doubtful.discard(assignment.piece)
        if assignment.holder:
            self._close(assignment.holder)
        self.progressed(now, assignment.holder)

    def failed(self, assignment: Assignment, why: str, now: float, lost: float = 0.0) -> None:
        """Note that the holder did not give the piece, which cost ``lost`` seconds; leave it alone for a moment."""
        self._return(assignment.piece)
        if assignment.holder:
            self._blame(assignment.holder, why, 1.0 + lost, now)
            self._rest(assignment.holder.name, now)

    def given_back(self, assignment: Assignment) -> None:
        """Note that the piece was not begun after all, which says nothing about its holder."""
        self._return(assignment.piece)
        if assignment.holder:
            self._close(assignment.holder)

    def wrong(self, assignment: Assignment, why: str, now: float, *, is_certain: bool) -> None:
        """Note that the piece came whole, but with a wrong digest; ``is_certain`` that all of it came from the holder.

        From then on it is fetched by one holder from start to end, and never from one that certainly lied.
        """
        self._return(assignment.piece)
        self._doubtful.add(assignment.piece)
        if assignment.holder:
            self._blame(assignment.holder, why, GRAVE if is_certain else 1.0, now)
            if is_certain:
                self._liars.setdefault(assignment.piece, set()).add(assignment.holder.name)

    def hopeless(self) -> tuple[Piece, list[str]] | None:
        """Return a piece that each holder there is has served wrong, and their names; None if there is no such."""
        for piece, liars in self._liars.items():
            if piece not in self._active and self._holders and liars >= self._holders.keys():
                return piece, sorted(liars)
        return None

    def is_out_of_patience(self, patience: float, now: float) -> bool:
        """Whether ``patience`` seconds have brought no byte, and everybody failed meanwhile, or there is nobody."""
        have_all_failed = bool(self._holders) and self._failed_since >= self._holders.keys()
        return now - self._last_progress >= patience and (have_all_failed or not self._active)

    def _choose(self, piece: Piece, now: float) -> Holder | None:
        resting = {name for name, (until, _) in self._rests.items() if until > now}
        excluded = self._liars.get(piece, set()) | resting
        name = choose_holder(list(self._holders), self._standings, excluded, now)
        return None if name is None else self._holders[name]

    def _standing(self, holder: Holder) -> Standing:
        return self._standings.get(holder.name, Standing())

    def _blame(self, holder: Holder, why: str, weight: float, now: float) -> None:
        self.causes[holder.name] = why
        self._failed_since.add(holder.name)
        self._close(holder)
        self._standings[holder.name] = self._standing(holder).failed(now, weight)

    def _close(self, holder: Holder) -> None:
        self._standings[holder.name] = self._standing(holder).closed()

    def _rest(self, name: str, now: float) -> None:
        until, length = self._rests.get(name, (now, FIRST_REST / 2))
        # Streams that fail together are one failure.
        if until <= now:
            length = min(LONGEST_REST, 2 * length)
            self._rests[name] = (now + length, length)

    def _return(self, piece: Piece) -> None:
        self._active.discard(piece)
        # In front of the others, so that a file is whole before the next one is begun.
        self._waiting = {piece: None} | self._waiting
