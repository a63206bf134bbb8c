"""Who fetches which piece from whom, in one pull. Pure: values in, values out; ``now`` and chance are arguments.

Alone, pieces go out in their order, each to the holder from which it should come the soonest. While others receive the
same (`Assignments.is_shared`), a stream takes the rarest piece that its holder has, of equals one by chance, so that
each brings something else into the swarm; and those who still receive are asked before those who have everything.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final

from stagecast.pieces import Holder, Piece, choose_holder, numbers
from stagecast.transfer.active import Active, Assignment, Batch
from stagecast.transfer.rests import BUSY_REST, Rests
from stagecast.transfer.standings import Standings
from stagecast.transfer.swarm import Swarm
from stagecast.transfer.wanted import Wish

GRAVE: Final = 4.0
"""What a lie weighs against a holder, in streams; a plain failure weighs 1, and 1 more for each second it cost."""

SMALL: Final = 1024 * 1024
"""Bytes of the largest piece that is got together with others."""

SHARED: Final = 4
"""Streams to a whole holder at a time, over all who receive the same; each may have one at least.

Its uplink is for what nobody else has yet, and the fewer pieces it sends at a time, the sooner each can be passed on.
"""

SLOW: Final = 2.0
"""How many times longer than elsewhere the rest of a piece must take for it to be taken from its holder."""

NEED: Final = 1.0
"""Seconds without a piece after which one is asked for as somebody who has nothing to do."""

STARVING: Final = 5.0
"""Seconds without any news after which a pull turns to everybody there is, however many do."""

GRACE: Final = 0.5
"""Seconds that a stream is let go on for at least, before its piece can be taken from its holder."""


class Assignments:
    """The pieces that a pull still wants, and what it has learned about its holders.

    ``pieces`` are all of the manifest, ``missing`` those that are wanted. ``whole`` are pieces whose bytes are on the
    disk in full, but were not checked; they are handed out first. ``draw`` returns a number in [0, 1) by chance.
    """

    def __init__(
        self, pieces: Sequence[Piece], missing: Iterable[Piece], whole: Collection[Piece], now: float,
        draw: Callable[[], float],
    ) -> None:  # fmt: skip
        self.causes: dict[str, str] = {}
        self._pieces = pieces
        self._number = {piece: number for number, piece in enumerate(pieces)}
        self._swarm = Swarm(len(pieces), draw)
        self._whole = [piece for piece in missing if piece in whole]
        self._waiting = self._set(piece for piece in missing if piece not in whole)
        self._returned = 0
        self._active: dict[Piece, Active | None] = {}
        self._standings, self._rests = Standings(), Rests()
        self._doubtful: set[Piece] = set()
        self._last_progress = self._last_done = now
        self._failed_since: set[str] = set()

    @property
    def is_complete(self) -> bool:
        """Whether every piece is here."""
        return not (self._whole or self._waiting or self._active)

    @property
    def is_shared(self) -> bool:
        """Whether others receive the same."""
        return self._swarm.receiving > 0

    def know(self, holders: Sequence[Holder], now: float) -> None:
        """Take these for the holders that there are now, in the order of preference."""
        self._swarm.know(holders, is_starving=now - self._last_progress > STARVING)

    def learn(self, name: str, have: int, sent: int, now: float) -> None:
        """Take what a holder says: which pieces it has, and which of them it gave to others just now."""
        if self._swarm.learn(name, have, sent):
            self._last_progress = now

    @property
    def holders(self) -> list[Holder]:
        """The holders that this pull deals with."""
        return list(self._swarm.holders.values())

    def next(self, now: float) -> Assignment | None:
        """Return what to get next and from whom, or None when there is nothing to do just now."""
        return next(iter(self.batch(now, 1, 1)), None)

    def batch(self, now: float, room: int, most: int) -> list[Assignment]:
        """Return what to get next; nothing when there is nothing to do just now.

        That is a piece, and as many more small ones of the same holder as fill ``room`` bytes, ``most`` in all.
        """
        if self._whole:
            self._active[self._whole[0]] = None
            return [Assignment(self._whole.pop(0), None)]
        able = self._able(now)
        name = choose_holder(list(able), self._standings.all, now)
        if name is None:
            return []
        wanted, batch, taken = able[name], Batch(), list[Assignment]()
        while wanted and room > 0 and len(taken) < most:
            number = self._swarm.pick(wanted)
            piece = self._pieces[number]
            if taken and piece.length > SMALL:
                break
            wanted &= ~(1 << number)
            room -= piece.length if piece.length <= SMALL else room
            taken.append(self._begin(number, name, batch, now))
        self._standings.opened(name)
        return taken

    def _begin(self, number: int, name: str, batch: Batch, now: float) -> Assignment:
        piece, bit = self._pieces[number], 1 << number
        self._waiting &= ~bit
        self._returned &= ~bit
        wish = self._wish(number, name, now)
        batch.left += 1
        self._active[piece] = Active(name, now, batch)
        return Assignment(piece, self._swarm.holders[name], piece in self._doubtful, wish)

    def _wish(self, number: int, name: str, now: float) -> Wish:
        if not self.is_shared:
            return ""
        if self._swarm.holders[name].is_whole:
            return "first" if self._swarm.is_new(number) else "yes"
        return "need" if self._is_needy(now) else "yes"

    def _is_needy(self, now: float) -> bool:
        return not self._active and now - self._last_done > NEED

    def reached(self, piece: Piece, position: int, now: float) -> None:
        """Note how far a piece is, in bytes."""
        active = self._active.get(piece)
        if active and not active.position:
            active.start, active.since = position, now
        if active:
            active.position = position

    def progressed(self, now: float, holder: Holder | None = None) -> None:
        """Note that bytes came that were not here before, from that holder or from the disk."""
        if holder:
            self._rests.forgive(holder.name)
        self._last_progress = now
        self._failed_since.clear()

    def done(self, assignment: Assignment, now: float) -> None:
        """Note that the piece is verified."""
        self._last_done = now
        self._measure(assignment.piece, now)
        self._end(assignment)
        self._doubtful.discard(assignment.piece)
        self.progressed(now, assignment.holder)

    def failed(self, assignment: Assignment, why: str, now: float, lost: float = 0.0) -> None:
        """Note that the holder did not give the piece, which cost ``lost`` seconds; leave it alone for a moment."""
        self._return(assignment)
        if assignment.holder:
            self._blame(assignment.holder.name, why, 1.0 + lost, now)
            self._rests.begin(assignment.holder.name, now)

    def lacking(self, assignment: Assignment, why: str, now: float) -> None:
        """Note that the holder does not have the piece, which says nothing about the others."""
        self._put_back(assignment)
        if assignment.holder:
            name = assignment.holder.name
            self._swarm.lacking(name, self._number[assignment.piece])
            self._blame(name, why, 0.0, now)

    def busy(self, assignment: Assignment, why: str, now: float, *, is_given: bool = False) -> None:
        """Note that the holder serves as many as it can just now, which is no failure; leave it alone for a moment.

        If it only gave that piece to somebody else, another one can be asked for at once.
        """
        self._put_back(assignment)
        if assignment.holder and is_given:
            self._swarm.gave(assignment.holder.name, self._number[assignment.piece])
        elif assignment.holder:
            self.causes[assignment.holder.name] = why
            self._rests.begin(assignment.holder.name, now, BUSY_REST)
            if self.is_shared:
                self._last_progress = now  # it serves others, who pass on what they get

    def wrong(self, assignment: Assignment, why: str, now: float, *, is_certain: bool) -> None:
        """Note that the piece came whole, but with a wrong digest; ``is_certain`` that all of it came from the holder.

        From then on it is fetched by one holder from start to end, and never from one that certainly lied.
        """
        self._return(assignment)
        self._doubtful.add(assignment.piece)
        if assignment.holder:
            name = assignment.holder.name
            self._blame(name, why, GRAVE if is_certain else 1.0, now)
            if is_certain:
                self._swarm.lied(name, self._number[assignment.piece])

    def given_back(self, assignment: Assignment) -> None:
        """Note that the piece was left where it stands, which says nothing about its holder."""
        self._return(assignment)

    def is_unwanted(self, piece: Piece) -> bool:
        """Whether the rest of the piece would come much sooner from another holder: then give it back."""
        active = self._active.get(piece)
        return active is not None and active.is_unwanted

    def reconsider(self, now: float) -> None:
        """Let the piece be unwanted that would hold back the end the longest, while a stream has nothing to do.

        It goes on where it stands, from another holder: no byte comes twice.
        """
        late = {piece: self._lateness(piece, active, now) for piece, active in self._active.items() if active}
        worst = max(late, key=late.__getitem__, default=None)
        active = self._active[worst] if worst else None
        if worst and active and late[worst] > 0:
            active.is_unwanted = True
            self._measure(worst, now)

    def hopeless(self) -> tuple[Piece, list[str]] | None:
        """Return a piece that each holder there is has served wrong, and their names; None if there is no such."""
        for number in numbers(self._waiting & self._set(self._doubtful)):
            liars = {name for name, lies in self._swarm.lies.items() if lies >> number & 1}
            able = {name for name in self._swarm.holders if self._swarm.has(name) >> number & 1}
            if able and liars >= able:
                return self._pieces[number], sorted(liars)
        return None

    def is_out_of_patience(self, patience: float, now: float) -> bool:
        """Whether ``patience`` seconds have brought no byte, and everybody failed meanwhile, or there is nobody."""
        holders = self._swarm.holders.items()
        useful = {name for name, holder in holders if holder.is_whole or self._standings.of(name).streams}
        have_all_failed = bool(useful) and self._failed_since >= useful
        # Where somebody is there whom no stream has come to ask yet, there is hope.
        is_nobody_left = not self._active and (bool(self.causes) or not useful)
        return now - self._last_progress >= patience and (have_all_failed or is_nobody_left)

    def _set(self, pieces: Iterable[Piece]) -> int:
        return sum(1 << self._number[piece] for piece in pieces)

    def _able(self, now: float) -> dict[str, int]:
        """Return the holders that can be asked now, the best first, and the pieces that each is wanted for."""
        useful = {name: bool(self._waiting & self._swarm.gives(name)) for name in self._swarm.holders}
        dull = self._standings.dull(useful, now) if self.is_shared else ()
        ready = [name for name in useful if not self._rests.is_on(name, now) and not self._is_taken(name)]
        ready = [name for name in ready if name not in dull]
        is_needy, order = self._is_needy(now), self._swarm.order(ready)
        wanted = {name: self._waiting & self._swarm.offers(name, is_needy=is_needy) for name in order}
        able = {name: pieces for name, pieces in wanted.items() if pieces}
        # Before others, so that a file is whole before the next one is begun, and what was begun is not kept waiting.
        urgent = {name: pieces & self._returned for name, pieces in able.items() if pieces & self._returned}
        return urgent or able

    def _is_taken(self, name: str) -> bool:
        most = max(1, SHARED // (1 + self._swarm.receiving))
        return self.is_shared and self._swarm.holders[name].is_whole and self._standings.of(name).streams >= most

    def _lateness(self, piece: Piece, active: Active, now: float) -> float:
        """Return by how many seconds the rest of a piece takes longer than is right; below 0 where it does not."""
        if active.is_unwanted or now - active.since < GRACE:
            return -1.0
        bit = self._set([piece])
        others = [
            self._standings.of(name).rate for name in self._swarm.holders
            if name != active.holder and not self._rests.is_on(name, now) and self._swarm.gives(name) & bit
        ]  # fmt: skip
        best = max(others, default=0.0)
        left = piece.length - active.position
        return left / max(active.rate(now), 1.0) - SLOW * left / best - GRACE if best else -1.0

    def _measure(self, piece: Piece, now: float) -> None:
        active = self._active.get(piece)
        if active and now > active.since and active.position > active.start:
            self._standings.measured(active.holder, active.rate(now), now)

    def _blame(self, name: str, why: str, weight: float, now: float) -> None:
        self.causes[name] = why
        self._failed_since.add(name)
        self._standings.failed(name, now, weight)

    def _end(self, assignment: Assignment) -> None:
        active = self._active.pop(assignment.piece)
        if active is not None:
            active.batch.left -= 1
            if not active.batch.left:
                self._standings.closed(active.holder)

    def _put_back(self, assignment: Assignment) -> None:
        self._end(assignment)
        self._waiting |= self._set([assignment.piece])

    def _return(self, assignment: Assignment) -> None:
        self._put_back(assignment)
        self._returned |= self._set([assignment.piece])
