"""What the streams of one pull share: what to do, what has been done, and what the caller is told of it."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from stagecast.errors import HoldersFailed, Interrupted, PieceCorrupt
from stagecast.manifest import Manifest
from stagecast.messages import Hindrance
from stagecast.partial import Partial
from stagecast.pieces import Holder, Piece, pieces_of
from stagecast.transfer.active import Assignment
from stagecast.transfer.assignments import Assignments
from stagecast.transfer.news import News
from stagecast.transfer.pace import LEAST
from stagecast.transfer.report import Pulled, Told
from stagecast.transfer.waits import Waits
from stagecast.transfer.whereabouts import Whereabouts

TICK: Final = 0.1
"""Seconds between two reports to the caller, and between two looks for something to do."""

REFRESH: Final = 1.0
"""Seconds after which the caller is asked again who the holders are."""

BATCH: Final = 8 * 1024 * 1024
MOST: Final = 512
FEWEST: Final = 4
"""Bytes, and pieces, that a stream takes on at once where they are small; an eighth while others receive the same."""

SHARING: Final = 4
"""Streams while others receive the same: the fewer pieces come at a time, the sooner each can be passed on."""


class Ledger:
    """The state of one pull; safe to share between threads. Its lock is held for moments only."""

    def __init__(
        self, manifest: Manifest, partial: Partial, patience: float, heard: Callable[[int], None] = lambda _: None
    ) -> None:
        self._heard = heard
        self.manifest = manifest
        self.partial = partial
        self.halted = threading.Event()
        self._patience = patience
        pieces = list(pieces_of(manifest))
        self.digest = partial.digest
        self.number = {piece: number for number, piece in enumerate(pieces)}
        missing = partial.missing()
        whole = {piece for piece in missing if partial.written(piece) == piece.length}
        self._assignments = Assignments(pieces, missing, whole, time.monotonic(), random.random)
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._over = threading.Condition(self._lock)
        self._error: BaseException | None = None
        self._news = News(missing)
        self._reached: dict[Piece, int] = {}
        self._whereabouts = Whereabouts()
        self._entered = -1
        self._received: Counter[str] = Counter()
        self._verified = self._gained = 0
        self._pieces_left = len(missing)
        self._streams = self._wanted = 0
        self._leaving: set[int] = set()

    def supervise(
        self,
        holders: Callable[[], Sequence[Holder]],
        tell: Told,
        stop: threading.Event,
        tend: Callable[[int, float], None],
    ) -> None:
        """Report to the caller until everything is verified; raise what ends the pull before that.

        ``tend`` gets, about ten times a second, the bytes received so far, and the time.
        """
        refreshed = float("-inf")
        while True:
            now = time.monotonic()
            if now - refreshed >= REFRESH or self._is_hopeless():
                refreshed, known = now, list(holders())
                with self._lock:
                    self._assignments.know(known, now)
                    self._changed.notify_all()
            if stop.is_set():
                raise Interrupted("cancel")
            with self._lock:
                is_complete = self._assignments.is_complete
                self._raise_what_ends_it(now)
            self._report(tell)
            if is_complete:
                return
            tend(self._received.total(), now)
            with self._over:
                self._over.wait(TICK)

    def want(self, streams: int) -> int:
        """Say how many streams there should be; return how many are missing, which the caller starts."""
        with self._lock:
            if self._assignments.is_shared:
                streams = SHARING
            # Nobody needs more streams than there are pieces left.
            self._wanted = max(1, min(streams, self._pieces_left))
            lacking = max(0, self._wanted - self._streams + len(self._leaving))
            self._streams += lacking
            return lacking

    def take(self) -> list[Assignment]:
        """Wait for something to do, and return it; nothing when there will be nothing more.

        That is one piece, or many small ones, so that nobody waits a round trip for each.
        """
        with self._changed:
            while not self.halted.is_set() and not self._assignments.is_complete:
                if self._streams - len(self._leaving) > self._wanted:
                    self._leaving.add(threading.get_ident())
                    break
                batch = self._assignments.batch(time.monotonic(), *self._portion())
                if batch:
                    self._news.moves(assignment.piece.file for assignment in batch)
                    return batch
                self._assignments.reconsider(time.monotonic())
                self._whereabouts.idle(threading.get_ident())
                self._changed.wait(TICK)
        return []

    def _portion(self) -> tuple[int, int]:
        """Return how many bytes, and pieces, one stream takes on: less near the end, so that all end together."""
        if self._assignments.is_shared:
            return BATCH // 8, MOST // 8
        return BATCH, max(FEWEST, min(MOST, self._pieces_left // (2 * max(1, self._streams))))

    def at(self, what: Hindrance) -> None:
        """Note for what the calling stream waits next; nothing while it computes."""
        self._whereabouts.at(threading.get_ident(), what)

    def spent(self, waits: Waits) -> None:
        """Note where all of the calling stream's time went so far."""
        self._whereabouts.spent(threading.get_ident(), waits)

    def received(self, holder: Holder, count: int) -> None:
        """Count bytes off the wire."""
        with self._lock:
            self._received[holder.name] += count
        self._heard(count)

    def reached(self, piece: Piece, position: int, holder: Holder | None = None) -> None:
        """Note that the piece's bytes up to ``position`` are on the disk, and hashed."""
        with self._lock:
            self._reach(piece, position, holder, time.monotonic())

    def _reach(self, piece: Piece, position: int, holder: Holder | None, now: float) -> None:
        gain = position - self._reached.get(piece, 0)
        if gain > 0:
            self._gained += gain
            self._reached[piece] = position
            self._assignments.reached(piece, position, now)
            # A byte now and then is no progress: nobody waits a year for a model.
            if self._gained >= LEAST * self._patience:
                self._assignments.progressed(now, holder)
        self._news.reached(piece, position, is_here=holder is None)

    def filled(self, assignments: Sequence[Assignment]) -> None:
        """Note pieces that came whole, were hashed, and are on the disk."""
        with self._lock:
            now = time.monotonic()
            for assignment in assignments:
                self._reach(assignment.piece, assignment.piece.length, assignment.holder, now)
            self.done(*assignments)

    def done(self, *assignments: Assignment) -> None:
        """Note verified pieces."""
        with self._lock:
            now = time.monotonic()
            for assignment in assignments:
                self._assignments.done(assignment, now)
                self._verified += assignment.piece.length
                self._news.verified(assignment.piece)
                self._reached.pop(assignment.piece, None)
            self._pieces_left -= len(assignments)
            # Who waits for something to do waits for what comes back, or for the end.
            if self._assignments.is_complete:
                self._wake()

    def _wake(self) -> None:
        self._changed.notify_all()
        self._over.notify_all()

    def failed(self, assignment: Assignment, why: str, lost: float) -> None:
        """Note a holder's failure, which cost ``lost`` seconds."""
        with self._lock:
            self._whereabouts.failed(threading.get_ident())
            self._assignments.failed(assignment, why, time.monotonic(), lost)

    def lacking(self, assignment: Assignment, why: str) -> None:
        """Note that a holder does not have a piece."""
        with self._lock:
            self._whereabouts.failed(threading.get_ident())
            self._assignments.lacking(assignment, why, time.monotonic())
            self._changed.notify_all()

    def given_back(self, assignment: Assignment) -> None:
        """Note that a piece was left where it stands, for no fault of its holder's."""
        with self._lock:
            self._assignments.given_back(assignment)
            self._changed.notify_all()

    def busy(self, assignment: Assignment, why: str, *, is_given: bool) -> None:
        """Note that a holder serves as many as it can just now, or gave that piece to somebody else."""
        with self._lock:
            self._assignments.busy(assignment, why, time.monotonic(), is_given=is_given)
            self._changed.notify_all()

    def is_unwanted(self, assignment: Assignment) -> bool:
        """Whether the rest of a piece is to come from another holder; then give it back."""
        with self._lock:
            return self._assignments.is_unwanted(assignment.piece)

    def neighbours(self) -> list[Holder]:
        """Return the holders of which it is worth asking what they have: none while nobody else receives the same."""
        with self._lock:
            return self._assignments.holders if self._assignments.is_shared else []

    def learn(self, name: str, have: int, sent: int) -> None:
        """Note which pieces a holder has, and which it gave to others just now."""
        with self._lock:
            self._assignments.learn(name, have, sent, time.monotonic())
            self._changed.notify_all()

    def wrong(self, assignment: Assignment, *, is_certain: bool) -> None:
        """Note a piece with a wrong digest."""
        why = f"served piece {assignment.piece.index} of {self._path(assignment.piece)} with a wrong digest"
        with self._lock:
            self._assignments.wrong(assignment, why, time.monotonic(), is_certain=is_certain)
            # Only now does the same position say something new: the bytes come from another holder.
            self._reached[assignment.piece] = 0
            self._changed.notify_all()

    def ended(self, waits: Waits, error: BaseException | None) -> None:
        """Note that a stream has ended, and why if it should not have."""
        with self._lock:
            self._whereabouts.ended(threading.get_ident(), waits)
            self._error = self._error or error
            self._streams -= 1
            self._leaving.discard(threading.get_ident())
            self._wake()

    def broke(self, error: BaseException) -> None:
        """Note what must not happen; the caller of `pull` gets it."""
        with self._lock:
            self._error = self._error or error
            self._wake()

    def result(self, seconds: float) -> Pulled:
        """Return what was done, once all streams have ended."""
        received = dict(self._received)
        return Pulled(sum(received.values()), self._verified, received, seconds, self._whereabouts.waits)

    def rest(self) -> int:
        """Return the bytes that have come since the last report, once all streams have ended."""
        return self._news.take(is_complete=True).came

    def _report(self, tell: Told) -> None:
        with self._lock:
            came, checked, file, whole = self._news.take(is_complete=self._assignments.is_complete)
            hindrance, spent = self._whereabouts.hindrance, self._whereabouts.waits
        tell.spent(spent.seconds())
        if file > self._entered:
            self._entered = file
            tell.entered(file)
        if checked:
            tell.checked(checked)
        if came:
            tell.advance(came)
        elif not checked and hindrance:
            tell.waiting(hindrance)
        for each in whole:
            tell.completed(each)

    def _is_hopeless(self) -> bool:
        with self._lock:
            return self._assignments.hopeless() is not None

    def _raise_what_ends_it(self, now: float) -> None:
        if self._error is not None:
            raise self._error
        if hopeless := self._assignments.hopeless():
            piece, liars = hopeless
            raise PieceCorrupt(", ".join(liars), self._path(piece), piece.index)
        if not self._assignments.is_complete and self._assignments.is_out_of_patience(self._patience, now):
            missing = self.manifest.size - self.partial.verified_bytes
            raise HoldersFailed(self.manifest.model, missing, self._patience, self._assignments.causes)

    def _path(self, piece: Piece) -> str:
        return self.manifest.files[piece.file].path
