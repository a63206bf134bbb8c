"""A stream: one thread of a pull, which gets one piece after the other. Receive, hash while hot, write, verify."""

from __future__ import annotations

import ssl
import time
from collections import deque
from dataclasses import dataclass
from math import inf
from typing import Final

from blake3 import blake3

from stagecast.errors import HolderBusy, HolderFailed, Interrupted
from stagecast.pieces import Holder
from stagecast.transfer.assignments import Assignment
from stagecast.transfer.bulk import stand_back
from stagecast.transfer.ledger import TICK, Ledger
from stagecast.transfer.limit import RateLimit
from stagecast.transfer.source import Source, Wanted
from stagecast.transfer.waits import Blame, Waits

BUFFER: Final = 1024 * 1024
"""Bytes that a stream holds in memory: as much as stays in a core's cache between network, hash and disk."""

CONNECTIONS: Final = 4
"""Connections that a stream keeps, one to each holder that it asked: a thousand receivers must not fill all of them."""

_WINDOW: Final = 0.025
"""Seconds of a limited rate that the kernel may receive ahead of us: what a ``kill -9`` makes move again.

Linux doubles what it is told, so up to 50 ms of round trip still reach the rate.
"""

_SMALLEST_WINDOW: Final = 64 * 1024

_STRETCH: Final = 2.0
"""Seconds' worth of bytes to ask for in one request, so that the holder soon says again why they come so slowly."""


@dataclass
class _Arrival:
    """A piece that is on its way: the first ``position`` bytes of it are on the disk, and in ``hasher``."""

    assignment: Assignment
    hasher: blake3
    position: int
    prefix: int


class Stream:
    """Fetches one piece after the other, of ``streams`` that share a limit; `run` is the body of its thread.

    It has one connection to each holder that it was told to ask. Small pieces of one holder are asked for together.
    """

    def __init__(
        self, ledger: Ledger, token: str, streams: int, limit: RateLimit | None, stall: float,
        tls: ssl.SSLContext | None = None,
    ) -> None:  # fmt: skip
        self._ledger = ledger
        self._token = token
        self._limit = limit
        self._streams = streams
        self._stall = stall
        self._tls = tls
        self._window = 0
        self._stretch = BUFFER
        self._blame = Blame()
        self._waits = Waits()
        self._told = self._heard = 0.0
        self._latest: Holder | None = None
        self._sources: dict[Holder, Source] = {}

    def run(self) -> None:
        """Do what there is to do until there is no more."""
        error: BaseException | None = None
        self._buffer = memoryview(bytearray(BUFFER))
        stand_back()
        try:
            while batch := self._ledger.take():
                self._perform(batch)
        except Interrupted:
            pass
        except BaseException as caught:  # noqa: BLE001  # raised again in the thread that called pull
            error = caught
        finally:
            for source in self._sources.values():
                source.close()
            self._ledger.ended(self._waits + self._blame.waits, error)

    def _perform(self, batch: list[Assignment]) -> None:
        asked: dict[Holder, list[_Arrival]] = {}
        for assignment in batch:
            arrival = self._begun(assignment)
            if assignment.holder is None:
                self._judge(arrival)
            else:
                asked.setdefault(assignment.holder, []).append(arrival)
        for holder, arrivals in asked.items():
            self._fetch(holder, arrivals)

    def _begun(self, assignment: Assignment) -> _Arrival:
        """Hash what is here of a piece already."""
        piece, partial = assignment.piece, self._ledger.partial
        if assignment.is_alone:
            partial.forget(piece)
        arrival = _Arrival(assignment, blake3(), 0, partial.written(piece))
        if arrival.prefix:
            self._ledger.at("target disk")
            for chunk in partial.read(piece, arrival.prefix):
                if self._ledger.halted.is_set():
                    raise Interrupted("cancel")
                arrival.hasher.update(chunk)
                arrival.position += len(chunk)
                self._ledger.reached(piece, arrival.position)
        return arrival

    def _fetch(self, holder: Holder, arrivals: list[_Arrival]) -> None:
        """Receive the rest of these pieces, all asked for at once; what a failure leaves is given back."""
        self._heard, left = time.monotonic(), deque(arrivals)
        try:
            while left and self._receive_batch(holder, left):
                pass
        except HolderBusy as error:
            self._ledger.busy(left.popleft().assignment, error.why)
        except HolderFailed as error:
            self._ledger.failed(left.popleft().assignment, error.why, time.monotonic() - self._heard)
        for arrival in left:
            self._ledger.given_back(arrival.assignment)

    def _receive_batch(self, holder: Holder, left: deque[_Arrival]) -> bool:
        """Ask for all that is left, and receive it; False where the first is to come from another holder instead."""
        began, source = time.monotonic(), self._connected(holder)
        wanted = [self._wanted(arrival) for arrival in left]
        source.ask(wanted)
        for each in wanted:
            if not self._receive_range(source, left[0], each.stop - each.start):
                return False
            if left[0].position == left[0].assignment.piece.length:
                self._judge(left.popleft())
        asked = sum(each.stop - each.start for each in wanted)
        self._stretch = max(BUFFER // 4, int(_STRETCH * asked / (time.monotonic() - began)))
        return True

    def _wanted(self, arrival: _Arrival) -> Wanted:
        piece = arrival.assignment.piece
        file = self._ledger.manifest.files[piece.file]
        is_shared = bool(self._ledger.neighbours())
        # Only the last of a batch is larger than a buffer: what follows a part of a piece would not be asked for yet.
        # A holder that let a shared piece begin is not to say in its middle that it has enough to do.
        stop = piece.length if is_shared else min(piece.length, arrival.position + max(self._stretch, BUFFER))
        return Wanted(file.digest, piece.offset + arrival.position, piece.offset + stop, file.size, is_shared)

    def _receive_range(self, source: Source, arrival: _Arrival, length: int) -> bool:
        """Receive the answer to one request; False where the rest is to come from another holder instead."""
        since, stop = time.monotonic(), arrival.position + length
        source.begin()
        self._heard = time.monotonic()
        self._blame.wait(self._heard - since, trips=1)
        self._blame.hear(source.sent)
        while arrival.position < stop:
            if self._ledger.is_unwanted(arrival.assignment):
                source.close()
                return False
            self._receive(source, arrival)
        return True

    def _receive(self, source: Source, arrival: _Arrival) -> None:
        piece, ledger = arrival.assignment.piece, self._ledger
        portion = self._limit.portion(BUFFER, self._streams) if self._limit else BUFFER
        began = time.monotonic()
        ledger.at("source")
        count = source.receive(self._buffer[:portion])
        came = time.monotonic()
        ledger.at("target disk" if count else "source")
        arrival.hasher.update(self._buffer[:count])
        hashed = time.monotonic()
        ledger.partial.write(piece, arrival.position, self._buffer[:count])
        self._blame.wait(came - began)
        self._waits.hash += hashed - came
        self._waits.disk += time.monotonic() - hashed
        arrival.position += count
        self._heard = came if count else self._heard
        ledger.received(source.holder, count)
        ledger.reached(piece, arrival.position, source.holder)
        if self._limit and count:
            ledger.at("")
            since = time.monotonic()
            self._limit.take(count, ledger.halted)
            self._waits.limit += time.monotonic() - since
        if began - self._told >= TICK:
            self._told = began
            ledger.spent(self._waits + self._blame.waits)

    def _judge(self, arrival: _Arrival) -> None:
        """Count a piece that is here in full as verified, or have it fetched again."""
        assignment, ledger = arrival.assignment, self._ledger
        piece = assignment.piece
        if arrival.hasher.hexdigest() == ledger.manifest.files[piece.file].pieces[piece.index]:
            since = time.monotonic()
            ledger.at("target disk")
            ledger.partial.verify(piece)
            self._waits.disk += time.monotonic() - since
            ledger.done(assignment)
        else:
            ledger.partial.forget(piece)
            ledger.wrong(assignment, is_certain=arrival.prefix == 0)

    def _connected(self, holder: Holder) -> Source:
        window = self._wanted_window()
        # What the kernel was told cannot be taken back: for quite another rate it takes other connections.
        if not (self._window == window or 0 < window < 2 * self._window < 4 * window):
            for source in self._sources.values():
                source.close()
            self._sources.clear()
            self._window = window
        if holder != self._latest or holder not in self._sources:
            self._blame.part()
        self._latest = holder
        if holder not in self._sources:
            if len(self._sources) >= CONNECTIONS:
                self._sources.pop(next(iter(self._sources))).close()
            self._sources[holder] = Source(
                holder, self._token, self._ledger.halted, window=self._window, stall=self._stall,
                waiting=self._ledger.at, tls=self._tls,
            )  # fmt: skip
        return self._sources[holder]

    def _wanted_window(self) -> int:
        if self._limit is None or self._limit.rate == inf:
            return 0
        return max(_SMALLEST_WINDOW, int(self._limit.rate * _WINDOW / self._streams))
