"""The intake of one stream: bytes from a source into its buffer, hashed while hot, written, and judged."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from blake3 import blake3

from stagecast.errors import Interrupted
from stagecast.pieces import Piece
from stagecast.transfer.active import Assignment
from stagecast.transfer.ledger import TICK, Ledger
from stagecast.transfer.limit import RateLimit
from stagecast.transfer.source import Source
from stagecast.transfer.waits import Blame, Waits

BUFFER: Final = 1024 * 1024
"""Bytes that a stream holds in memory: as much as stays in a core's cache between network, hash and disk."""


@dataclass(slots=True)
class Arrival:
    """A piece that is on its way: the first ``position`` bytes of it are on the disk, and in ``hasher``.

    ``prefix`` of them were there before the call.
    """

    assignment: Assignment
    hasher: blake3
    position: int
    prefix: int

    @property
    def piece(self) -> Piece:
        """The piece."""
        return self.assignment.piece

    @property
    def rest(self) -> int:
        """Bytes that are still to come."""
        return self.assignment.piece.length - self.position


class Intake:
    """For one of ``streams`` that share ``limit``; in its thread."""

    def __init__(self, ledger: Ledger, limit: RateLimit | None, streams: int) -> None:
        self._ledger = ledger
        self._limit = limit
        self._streams = streams
        self._buffer = memoryview(bytearray(BUFFER))
        self._spent = Waits()
        self._told = 0.0
        self.blame = Blame()
        self.heard = 0.0
        """When the latest byte came, or the latest head (monotonic time)."""

    @property
    def waits(self) -> Waits:
        """Where the stream's time went so far."""
        return self._spent + self.blame.waits

    def begun(self, assignment: Assignment) -> Arrival:
        """Hash what is here of a piece already."""
        piece, partial = assignment.piece, self._ledger.partial
        if assignment.is_alone:
            partial.forget(piece)
        arrival = Arrival(assignment, blake3(), 0, partial.written(piece))
        if arrival.prefix:
            self._ledger.at("target disk")
            for chunk in partial.read(piece, arrival.prefix):
                if self._ledger.halted.is_set():
                    raise Interrupted("cancel")
                arrival.hasher.update(chunk)
                arrival.position += len(chunk)
                self._ledger.reached(piece, arrival.position)
        return arrival

    def begin(self, source: Source) -> bool:
        """Wait for the head of an answer; False where it says that the holder does not have what was asked for."""
        since = time.monotonic()
        is_there = source.begin()
        self.heard = time.monotonic()
        self.blame.wait(self.heard - since, trips=1)
        self.blame.hear(source.sent)
        return is_there

    def receive(self, source: Source, arrival: Arrival) -> None:
        """Receive, hash and write what comes of a piece."""
        count = self._take_in(source, self._portion())
        self._keep(arrival, self._buffer[:count])
        self._pause(count)

    def receive_many(self, source: Source, left: deque[Arrival], end: int) -> None:
        """Receive what comes of a bundle, and judge each piece that is whole then; those at the ``end`` are not of it.

        Whole ones leave ``left``.
        """
        most, room = self._portion(), 0
        # A piece that ends within the buffer is hashed, written and counted together with others.
        for arrival in islice(left, len(left) - end):
            if room and room + arrival.rest > most:
                break
            room += arrival.rest
        count, done, whole = self._take_in(source, min(room, most)), 0, list[tuple[Arrival, memoryview]]()
        while done < count:
            arrival = left[0]
            part = self._buffer[done : min(count, done + arrival.rest)]
            done += len(part)
            if len(part) == arrival.piece.length:
                whole.append((left.popleft(), part))
            else:
                self._keep(arrival, part)
                if not arrival.rest:
                    self.judge(left.popleft())
        if whole:
            self._fill(whole)
        self._pause(count)

    def judge(self, arrival: Arrival) -> None:
        """Count a piece that is here in full as verified, or have it fetched again."""
        assignment, ledger = arrival.assignment, self._ledger
        if arrival.hasher.hexdigest() == self._digest(arrival.piece):
            since = time.monotonic()
            ledger.at("target disk")
            ledger.partial.verify(arrival.piece)
            self._spent.disk += time.monotonic() - since
            ledger.done(assignment)
        else:
            ledger.partial.forget(arrival.piece)
            ledger.wrong(assignment, is_certain=arrival.prefix == 0)

    def _fill(self, whole: Sequence[tuple[Arrival, memoryview]]) -> None:
        """Write those pieces that are right, and count them as verified; have the others fetched again."""
        began = time.monotonic()
        found = [blake3(part).hexdigest() == self._digest(arrival.piece) for arrival, part in whole]
        right = [each for each, is_right in zip(whole, found, strict=True) if is_right]
        hashed = time.monotonic()
        self._ledger.partial.fill([(arrival.piece, part) for arrival, part in right])
        self._spent.hash += hashed - began
        self._spent.disk += time.monotonic() - hashed
        self._ledger.filled([arrival.assignment for arrival, _ in right])
        for (arrival, _), is_right in zip(whole, found, strict=True):
            if not is_right:
                self._ledger.wrong(arrival.assignment, is_certain=True)

    def _portion(self) -> int:
        return self._limit.portion(BUFFER, self._streams) if self._limit else BUFFER

    def _take_in(self, source: Source, most: int) -> int:
        """Receive into the buffer what comes within a moment; return how many bytes that is."""
        began = time.monotonic()
        self._ledger.at("source")
        count = source.receive(self._buffer[:most])
        came = time.monotonic()
        self._ledger.at("target disk" if count else "source")
        self.blame.wait(came - began)
        if count:
            self.heard = came
            self._ledger.received(source.holder, count)
        return count

    def _keep(self, arrival: Arrival, part: memoryview) -> None:
        piece, began = arrival.piece, time.monotonic()
        arrival.hasher.update(part)
        hashed = time.monotonic()
        self._ledger.partial.write(piece, arrival.position, part)
        self._spent.hash += hashed - began
        self._spent.disk += time.monotonic() - hashed
        arrival.position += len(part)
        self._ledger.reached(piece, arrival.position, arrival.assignment.holder)

    def _pause(self, count: int) -> None:
        """Wait until the limit lets more bytes come, and say every now and then where the time went."""
        if self._limit and count:
            self._ledger.at("")
            since = time.monotonic()
            self._limit.take(count, self._ledger.halted)
            self._spent.limit += time.monotonic() - since
        now = time.monotonic()
        if now - self._told >= TICK:
            self._told = now
            self._ledger.spent(self.waits)

    def _digest(self, piece: Piece) -> str:
        return self._ledger.manifest.files[piece.file].pieces[piece.index]
