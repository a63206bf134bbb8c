"""Who has what: the holders of one pull, and the pieces of each as far as it knows. Pure; chance is an argument."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stagecast.pieces import Holder, at_least, choose_neighbours, first, rarest


class Swarm:
    """``count`` pieces, in sets of their numbers (`stagecast.pieces`); ``draw`` returns a number in [0, 1) by chance.

    While somebody else receives the same, pieces are chosen the rarest first and by chance among equals, so that each
    receiver brings something else into the swarm. Otherwise they are chosen in order, file by file.
    """

    def __init__(self, count: int, draw: Callable[[], float]) -> None:
        self.holders: dict[str, Holder] = {}
        """Those with whom the pull deals, by name, in the order of preference."""
        self.receiving = 0
        """How many of them are still receiving."""
        self.lies: dict[str, int] = {}
        """The pieces that each of them certainly served wrong."""
        self._all = (1 << count) - 1
        self._count = count
        self._draw = draw
        self._have: dict[str, int] = {}
        self._sent: dict[str, int] = {}
        self._lacking: dict[str, int] = {}
        self._levels: tuple[int, ...] | None = None

    def know(self, holders: Sequence[Holder], *, is_starving: bool = False) -> None:
        """Take these for the holders that there are now, in the order of preference, as `choose_neighbours` has it."""
        chosen = choose_neighbours(holders, self.holders, self._draw, is_starving=is_starving)
        self.holders = {holder.name: holder for holder in chosen}
        self.receiving = sum(not holder.is_whole for holder in self.holders.values())
        for told in (self._have, self._sent):
            for name in told.keys() - self.holders.keys():
                del told[name]
        # Somebody may get it meanwhile.
        self._lacking.clear()
        self._levels = None

    def learn(self, name: str, have: int, sent: int) -> bool:
        """Take what a holder says: which pieces it has, and which of them it gave to others just now.

        Tell whether it has pieces that it was not known to have.
        """
        if name not in self.holders:
            return False
        is_news = bool(have & ~self.has(name))
        self._have[name], self._sent[name] = have, sent
        self._levels = None
        return is_news

    def gave(self, name: str, number: int) -> None:
        """Note that a holder gave a piece to somebody just now."""
        if name in self.holders:
            self._sent[name] = self._sent.get(name, 0) | 1 << number
            self._levels = None

    def lied(self, name: str, number: int) -> None:
        """Note that a holder served a piece wrong."""
        self.lies[name] = self.lies.get(name, 0) | 1 << number

    def lacking(self, name: str, number: int) -> None:
        """Note that a holder does not have a piece just now, which is asked of it again after the next `know`."""
        self._lacking[name] = self._lacking.get(name, 0) | 1 << number

    def has(self, name: str) -> int:
        """Return the pieces that a holder has."""
        return self._all if self.holders[name].is_whole else self._have.get(name, 0)

    def gives(self, name: str) -> int:
        """Return the pieces that a holder has, without those about which it lied, or that it did not have after all."""
        return self.has(name) & ~self.lies.get(name, 0) & ~self._lacking.get(name, 0)

    def offers(self, name: str, *, is_needy: bool) -> int:
        """Return what a holder gives and is asked for.

        Where there are fewer pieces than receivers, who has everything is asked only for what nobody else has or gets,
        unless the puller ``is_needy``: after the first copies its uplink would be busy with second ones to the end.
        """
        gives = self.gives(name)
        if is_needy or self._count >= self.receiving or not self.holders[name].is_whole:
            return gives
        return gives & ~(self._copies() or (0,))[0]

    def order(self, names: Sequence[str]) -> list[str]:
        """Return holders in the order in which to ask them, where all else is equal.

        Who still receives comes before who has everything: that one's uplink is for what nobody else has. And each
        puller begins with another one.
        """
        if not self.receiving:
            return list(names)
        turn = int(self._draw() * len(names))
        return sorted([*names[turn:], *names[:turn]], key=lambda name: self.holders[name].is_whole)

    def pick(self, wanted: int) -> int:
        """Return the number of the piece to get next. Raises `ValueError` where none is wanted."""
        if not self.receiving:
            return first(wanted)
        return first(rarest(wanted, self._copies()), int(self._draw() * self._count))

    def is_new(self, number: int) -> bool:
        """Whether others receive the same, and none of them is known to have that piece, or to be getting it."""
        return self.receiving > 0 and not any(level >> number & 1 for level in self._copies()[:1])

    def _copies(self) -> tuple[int, ...]:
        if self._levels is None:
            self._levels = self._weighed()
        return self._levels

    def _weighed(self) -> tuple[int, ...]:
        sent = 0
        for given in self._sent.values():
            sent |= given
        # What somebody just gets counts as a copy, though nobody can have it yet.
        return at_least([sent, *(self.has(name) for name in self._have if not self.holders[name].is_whole)])
