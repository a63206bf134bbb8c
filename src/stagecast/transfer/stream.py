"""A stream: one thread of a pull, which gets one piece after the other, or many small ones at once."""

from __future__ import annotations

import ssl
import time
from collections import deque
from itertools import islice
from math import inf
from typing import Final

from stagecast.bulk import stand_back
from stagecast.errors import HolderBusy, HolderFailed, Interrupted, PieceGiven
from stagecast.pieces import Holder
from stagecast.transfer.active import Assignment
from stagecast.transfer.head import MEANINGS
from stagecast.transfer.intake import BUFFER, Arrival, Intake
from stagecast.transfer.ledger import Ledger
from stagecast.transfer.limit import RateLimit
from stagecast.transfer.source import Source
from stagecast.transfer.wanted import Bundle, Range

AHEAD: Final = 64
"""Requests that are sent ahead of their answers, where small pieces are asked for one by one."""

CONNECTIONS: Final = 4
"""Connections that a stream keeps, one to each holder that it asked: a thousand receivers must not fill all of them."""

HUSH: Final = 2.0
"""Seconds without a byte after which a holder counts as hanging while others can go on with the piece."""

_WINDOW: Final = 0.025
"""Seconds of a limited rate that the kernel may receive ahead of us: what a ``kill -9`` makes move again.

Linux doubles what it is told, so up to 50 ms of round trip still reach the rate.
"""

_SMALLEST_WINDOW: Final = 64 * 1024

_STRETCH: Final = 2.0
"""Seconds' worth of bytes to ask for in one request, so that the holder soon says again why they come so slowly."""


class Stream:
    """Fetches what the ledger gives out, as one of ``streams`` that share a limit; `run` is the body of its thread.

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
        self._intake = Intake(ledger, limit, streams)
        self._latest: Holder | None = None
        self._sources: dict[Holder, Source] = {}

    def run(self) -> None:
        """Do what there is to do until there is no more."""
        error: BaseException | None = None
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
            self._ledger.ended(self._intake.waits, error)

    def _perform(self, batch: list[Assignment]) -> None:
        arrivals = [self._intake.begun(assignment) for assignment in batch]
        holder = batch[0].holder
        if holder is None:
            for arrival in arrivals:
                self._intake.judge(arrival)
        else:
            self._fetch(holder, deque(arrivals))

    def _fetch(self, holder: Holder, left: deque[Arrival]) -> None:
        """Receive the rest of these pieces; what a failure leaves is given back."""
        self._intake.heard = time.monotonic()
        # What has begun to come goes on where it is; of what has not, many come as the answer to one request.
        is_bundled = len(left) > 1 and not any(arrival.position for arrival in left)
        try:
            if not is_bundled or self._receive_bundles(holder, left):
                while left and self._receive_ranges(holder, left):
                    pass
        except HolderBusy as error:
            self._ledger.busy(left.popleft().assignment, error.why, is_given=isinstance(error, PieceGiven))
        except HolderFailed as error:
            lost = time.monotonic() - self._intake.heard
            self._ledger.failed(left.popleft().assignment, error.why, lost)
        for arrival in left:
            self._ledger.given_back(arrival.assignment)

    def _receive_bundles(self, holder: Holder, left: deque[Arrival]) -> bool:
        """Receive whole pieces, many with each request; False where the first is to come from another holder instead.

        What the holder does not give in bundles stays in ``left``.
        """
        while left:
            began, source = time.monotonic(), self._connected(holder)
            bundle = self._bundle(left)
            source.ask([bundle])
            if not self._intake.begin(source):
                return True
            end = len(left) - len(bundle.numbers)
            while len(left) > end:
                if self._is_unwanted(source, left[0]):
                    return False
                self._intake.receive_many(source, left, end)
            self._learn_pace(bundle.length, began)
        return True

    def _bundle(self, left: deque[Arrival]) -> Bundle:
        """Return the request for the first pieces, as many as come soon: then the holder says again how it does."""
        numbers, length, is_shared = list[int](), 0, bool(left[0].assignment.wish)
        for arrival in left:
            if numbers and not is_shared and length + arrival.rest > max(self._stretch, BUFFER):
                break
            numbers.append(self._ledger.number[arrival.piece])
            length += arrival.rest
        return Bundle(self._ledger.digest, tuple(numbers), length, "yes" if is_shared else "")

    def _receive_ranges(self, holder: Holder, left: deque[Arrival]) -> bool:
        """Ask for the rest of each, and receive it; False where the first is to come from another holder instead."""
        began, source = time.monotonic(), self._connected(holder)
        wanted = [self._range(arrival) for arrival in islice(left, AHEAD)]
        source.ask(wanted)
        for each in wanted:
            arrival, stop = left[0], left[0].position + each.length
            if not self._intake.begin(source):
                self._ledger.lacking(left.popleft().assignment, MEANINGS[404])
                continue
            while arrival.position < stop:
                if self._is_unwanted(source, arrival):
                    return False
                self._intake.receive(source, arrival)
            if not arrival.rest:
                self._intake.judge(left.popleft())
        self._learn_pace(sum(each.length for each in wanted), began)
        return True

    def _range(self, arrival: Arrival) -> Range:
        piece = arrival.piece
        file = self._ledger.manifest.files[piece.file]
        wish = arrival.assignment.wish
        # Only one that is alone is larger than a buffer: what follows a part of a piece would not be asked for yet.
        # A holder that let a shared piece begin is not to say in its middle that it has enough to do.
        stop = piece.length if wish else min(piece.length, arrival.position + max(self._stretch, BUFFER))
        return Range(file.digest, piece.offset + arrival.position, piece.offset + stop, file.size, wish)

    def _learn_pace(self, count: int, began: float) -> None:
        self._stretch = max(BUFFER // 4, int(_STRETCH * count / (time.monotonic() - began)))

    def _is_unwanted(self, source: Source, arrival: Arrival) -> bool:
        """Tell whether the rest is to come from another holder instead; then hang up."""
        is_unwanted = self._ledger.is_unwanted(arrival.assignment)
        if is_unwanted:
            source.close()
        return is_unwanted

    def _connected(self, holder: Holder) -> Source:
        window = self._wanted_window()
        # What the kernel was told cannot be taken back: for quite another rate it takes other connections.
        if not (self._window == window or 0 < window < 2 * self._window < 4 * window):
            for source in self._sources.values():
                source.close()
            self._sources.clear()
            self._window = window
        if holder != self._latest or holder not in self._sources:
            self._intake.blame.part()
        self._latest = holder
        if holder not in self._sources:
            if len(self._sources) >= CONNECTIONS:
                self._sources.pop(next(iter(self._sources))).close()
            self._sources[holder] = Source(
                holder, self._token, self._ledger.halted, window=self._window, stall=self._stall,
                waiting=self._ledger.at, tls=self._tls,
            )  # fmt: skip
        self._sources[holder].stall = min(self._stall, HUSH) if self._ledger.neighbours() else self._stall
        return self._sources[holder]

    def _wanted_window(self) -> int:
        if self._limit is None or self._limit.rate == inf:
            return 0
        return max(_SMALLEST_WINDOW, int(self._limit.rate * _WINDOW / self._streams))
