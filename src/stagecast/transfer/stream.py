"""A stream: one thread of a pull, which gets one piece after the other. Receive, hash while hot, write, verify."""

from __future__ import annotations

import time
from math import inf
from typing import Final

from blake3 import blake3

from stagecast.errors import HolderFailed, Interrupted
from stagecast.pieces import Piece
from stagecast.transfer.assignments import Assignment
from stagecast.transfer.ledger import TICK, Ledger
from stagecast.transfer.limit import RateLimit
from stagecast.transfer.source import Holder, Source
from stagecast.transfer.waits import Blame, Waits

BUFFER: Final = 1024 * 1024
"""Bytes that a stream holds in memory."""

_WINDOW: Final = 0.025
"""Seconds of a limited rate that the kernel may receive ahead of us: what a ``kill -9`` makes move again.

Linux doubles what it is told, so up to 50 ms of round trip still reach the rate.
"""

_SMALLEST_WINDOW: Final = 64 * 1024

_STRETCH: Final = 2.0
"""Seconds' worth of bytes to ask for in one request, so that the holder soon says again why they come so slowly."""


class Stream:
    """Fetches with one connection at a time, of ``streams`` that share a limit; `run` is the body of its thread."""

    def __init__(self, ledger: Ledger, token: str, streams: int, limit: RateLimit | None, stall: float) -> None:
        self._ledger = ledger
        self._token = token
        self._limit = limit
        self._streams = streams
        self._stall = stall
        self._source: Source | None = None
        self._window = 0
        self._stretch = BUFFER
        self._blame = Blame()
        self._waits = Waits()
        self._told = 0.0

    def run(self) -> None:
        """Do what there is to do until there is no more."""
        error: BaseException | None = None
        self._buffer = memoryview(bytearray(BUFFER))
        try:
            while (assignment := self._ledger.take()) is not None:
                self._perform(assignment)
        except Interrupted:
            pass
        except BaseException as caught:  # noqa: BLE001  # raised again in the thread that called pull
            error = caught
        finally:
            if self._source is not None:
                self._source.close()
            self._ledger.ended(self._waits + self._blame.waits, error)

    def _perform(self, assignment: Assignment) -> None:
        piece, partial, hasher = assignment.piece, self._ledger.partial, blake3()
        if assignment.is_alone:
            partial.forget(piece)
        prefix = self._hash_prefix(piece, hasher)
        if assignment.holder is not None and not self._fetch(assignment, assignment.holder, prefix, hasher):
            return
        if hasher.hexdigest() == self._ledger.manifest.files[piece.file].pieces[piece.index]:
            since = time.monotonic()
            self._ledger.at("target disk")
            partial.verify(piece)
            self._waits.disk += time.monotonic() - since
            self._ledger.done(assignment)
        else:
            partial.forget(piece)
            self._ledger.wrong(assignment, is_certain=prefix == 0)

    def _hash_prefix(self, piece: Piece, hasher: blake3) -> int:
        length, position = self._ledger.partial.written(piece), 0
        self._ledger.at("target disk")
        for chunk in self._ledger.partial.read(piece, length) if length else ():
            if self._ledger.halted.is_set():
                raise Interrupted("cancel")
            hasher.update(chunk)
            position += len(chunk)
            self._ledger.reached(piece, position)
        return length

    def _fetch(self, assignment: Assignment, holder: Holder, position: int, hasher: blake3) -> bool:
        """Receive the rest of a piece from ``position`` on; return whether all of it came."""
        piece, file = assignment.piece, self._ledger.manifest.files[assignment.piece.file]
        heard = time.monotonic()
        try:
            while position < piece.length:
                began, source = time.monotonic(), self._connected(holder)
                stop = min(piece.length, position + self._stretch)
                source.request(file.digest, piece.offset + position, piece.offset + stop, file.size)
                self._blame.wait(time.monotonic() - began, trips=1)
                self._blame.hear(source.sent)
                asked = stop - position
                while position < stop:
                    count = self._receive(source, piece, position, hasher)
                    position += count
                    heard = time.monotonic() if count else heard
                self._stretch = max(BUFFER // 4, int(_STRETCH * asked / (time.monotonic() - began)))
        except HolderFailed as error:
            self._ledger.failed(assignment, error.why, time.monotonic() - heard)
            return False
        return True

    def _receive(self, source: Source, piece: Piece, position: int, hasher: blake3) -> int:
        portion = self._limit.portion(BUFFER, self._streams) if self._limit else BUFFER
        began = time.monotonic()
        self._ledger.at("source")
        count = source.receive(self._buffer[:portion])
        came = time.monotonic()
        self._ledger.at("target disk" if count else "source")
        hasher.update(self._buffer[:count])
        hashed = time.monotonic()
        self._ledger.partial.write(piece, position, self._buffer[:count])
        self._blame.wait(came - began)
        self._waits.hash += hashed - came
        self._waits.disk += time.monotonic() - hashed
        self._ledger.received(source.holder, count)
        self._ledger.reached(piece, position + count, source.holder)
        if self._limit and count:
            self._ledger.at("")
            since = time.monotonic()
            self._limit.take(count, self._ledger.halted)
            self._waits.limit += time.monotonic() - since
        if began - self._told >= TICK:
            self._told = began
            self._ledger.spent(self._waits + self._blame.waits)
        return count

    def _connected(self, holder: Holder) -> Source:
        window = self._wanted_window()
        # What the kernel was told cannot be taken back: for quite another rate it takes another connection.
        is_apt = self._window == window or 0 < window < 2 * self._window < 4 * window
        if self._source is None or self._source.holder != holder or not is_apt:
            if self._source is not None:
                self._source.close()
            self._blame.part()
            self._window = window
            self._source = Source(
                holder, self._token, self._ledger.halted, window=window, stall=self._stall, waiting=self._ledger.at
            )
        return self._source

    def _wanted_window(self) -> int:
        if self._limit is None or self._limit.rate == inf:
            return 0
        return max(_SMALLEST_WINDOW, int(self._limit.rate * _WINDOW / self._streams))
