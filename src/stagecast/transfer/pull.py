"""Gets what is missing of a model from whoever holds it."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from stagecast.manifest import Manifest
from stagecast.messages import Bottleneck, Hindrance
from stagecast.partial import Partial
from stagecast.pieces import Holder
from stagecast.transfer.crew import Crew
from stagecast.transfer.ledger import Ledger
from stagecast.transfer.limit import RateLimit
from stagecast.transfer.ramp import FIRST, MOST, Ramp
from stagecast.transfer.report import Pulled, Told
from stagecast.transfer.scout import Scout
from stagecast.transfer.source import STALL
from stagecast.transfer.stream import Stream

PATIENCE: Final = 30.0
"""Seconds for which all holders may fail, without a byte from any, before a pull gives up."""

SHARES: Final = 4
"""Streams among which a limited rate is shared out, where nobody said how many there are."""


def pull(
    manifest: Manifest,
    partial: Partial,
    holders: Callable[[], Sequence[Holder]],
    *,
    token: str = "",
    streams: int | None = None,
    limit: RateLimit | None = None,
    advance: Callable[[int], None],
    entered: Callable[[int], None],
    completed: Callable[[int], None] = lambda _: None,
    checked: Callable[[int], None] | None = None,
    waiting: Callable[[Hindrance], None] = lambda _: None,
    received: Callable[[int], None] = lambda _: None,
    spent: Callable[[Mapping[Bottleneck, float]], None] = lambda _: None,
    stop: threading.Event,
    patience: float = PATIENCE,
    stall: float = STALL,
    tls: ssl.SSLContext | None = None,
) -> Pulled:
    """Get and verify every missing piece of ``partial``; blocks. The caller publishes.

    It starts with few ``streams`` and adds some while the rate rises (`ramp`), unless it is told how many. A holder
    whose URL begins with ``https`` must have a certificate that ``tls`` believes; None takes the system's authorities.

    The callbacks are called in this thread; what they raise ends the pull. ``advance`` gets
    bytes that are on the disk now, each byte of a piece once, without those verified before the call: a count that
    starts at ``partial.verified_bytes`` ends at ``manifest.size``. ``entered`` gets the index of the file that moves,
    which only rises; ``completed`` that of each file whose last piece was verified in this call. ``limit`` is in force
    for the sum over all streams, and may be shared between pulls.

    ``checked`` gets, in the place of ``advance``, bytes that were here before the call and were only hashed again.
    ``waiting`` gets, about ten times a second while no byte comes, what the streams wait for: ``network`` while they
    connect or are refused, ``source`` while a holder that took the connection says nothing, ``target disk`` while that
    takes no bytes. ``spent`` gets, as often, for how many seconds the streams of this call have been at what.
    ``received`` gets all bytes that came off the wire, also in vain; it alone is called in the streams' threads, at
    once.

    Raises:
        HoldersFailed: for ``patience`` seconds nobody gave a byte; a holder counts as failed after ``stall`` seconds
            without one.
        Interrupted: ``stop`` was set; it is heeded within half a second.
        NotEnoughSpace: the disk is full.
        OSError: the disk failed.
        PieceCorrupt: every holder served a piece wrong.
    """
    began = time.monotonic()
    ledger = Ledger(manifest, partial, patience, received)
    ramp = Ramp.start(began, streams or FIRST, streams or MOST)
    tell = Told(advance, checked or advance, entered, completed, waiting, spent)

    def run() -> None:
        Stream(ledger, token, streams or SHARES, limit, stall, tls).run()

    try:
        with Crew(ledger, run, ramp) as crew, Scout(ledger, token, tls):
            ledger.supervise(holders, tell, stop, crew.tend)
    finally:
        if rest := ledger.rest():
            advance(rest)  # so that what is told of a pull that was cut off is what lies on the disk
    pulled = ledger.result(time.monotonic() - began)
    spent(pulled.waits.seconds())
    return pulled
