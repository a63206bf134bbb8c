"""Where the time of a pull's streams goes, and which side of the wire made one wait. Pure.

A receiver that waits for bytes cannot see why they do not come. The holder's kernel can: it counts for how long a
connection had bytes that were not acknowledged yet (Linux, ``tcpi_busy_time``). While it has some, the way is the
limit; while it has none, the holder has not read them. `FileServer` says that count in the head of each response, so
what a stream waited for is known from one head to the next.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final, NamedTuple

from stagecast.messages import Bottleneck

FIELD: Final = "Stagecast-Sent"
"""The header: ``busy=<microseconds>; rtt=<microseconds>``, both of the connection that it comes on."""

_NAMES: Final[dict[str, Bottleneck]] = {
    "source": "source", "network": "network", "remote": "source or network", "hash": "hash", "disk": "target disk",
    "limit": "limit",
}  # fmt: skip


@dataclass(slots=True)
class Waits:
    """Seconds, added up over all streams. ``remote`` is what `Blame` cannot tell: the source or the network."""

    source: float = 0.0
    network: float = 0.0
    remote: float = 0.0
    hash: float = 0.0
    disk: float = 0.0
    limit: float = 0.0

    def __add__(self, other: Waits) -> Waits:
        return Waits(
            self.source + other.source, self.network + other.network, self.remote + other.remote,
            self.hash + other.hash, self.disk + other.disk, self.limit + other.limit,
        )  # fmt: skip

    def seconds(self) -> dict[Bottleneck, float]:
        """Return what is not nothing, under the names that people see."""
        found = {_NAMES[each.name]: getattr(self, each.name) for each in fields(self)}
        return {name: seconds for name, seconds in found.items() if seconds > 0}


class Sent(NamedTuple):
    """What a holder says of a connection: seconds that it was busy since its start, and seconds of a round trip."""

    busy: float
    rtt: float


def parse_sent(text: str) -> Sent | None:
    """Return what the header says, or None where there is none that makes sense."""
    pairs = dict(part.strip().partition("=")[::2] for part in text.split(";"))
    busy, rtt = pairs.get("busy", ""), pairs.get("rtt", "")
    is_sensible = all(each.isascii() and each.isdecimal() and len(each) < 16 for each in (busy, rtt))
    return Sent(int(busy) / 1e6, int(rtt) / 1e6) if is_sensible else None


class Blame:
    """What one stream waited for on its connection. What no head has told of yet is told like what was before it."""

    def __init__(self) -> None:
        self._settled = Waits()
        self._open = 0.0
        self._trips = 0
        self._busy = 0.0
        self._latest: Waits | None = None

    @property
    def waits(self) -> Waits:
        """Everything so far."""
        return self._settled + self._guess()

    def wait(self, seconds: float, trips: int = 0) -> None:
        """Note that the stream waited for bytes, or for the answer to so many requests."""
        self._open += seconds
        self._trips += trips

    def hear(self, sent: Sent | None) -> None:
        """Take what the head of a response says of the time before it; None where it says nothing."""
        if sent is None:
            self._settle(Waits(remote=self._open))
            return
        # A new connection counts from nothing.
        busy = sent.busy - self._busy if sent.busy >= self._busy else sent.busy
        self._busy = sent.busy
        self._settle(split(self._open, busy + self._trips * sent.rtt))

    def part(self) -> None:
        """Note that the connection is over: nobody will tell of what is open."""
        self._settled, self._open, self._trips, self._busy = self.waits, 0.0, 0, 0.0

    def _settle(self, told: Waits) -> None:
        self._settled += told
        if self._open:
            self._latest = told
        self._open, self._trips = 0.0, 0

    def _guess(self) -> Waits:
        latest = self._latest or Waits()
        known = latest.source + latest.network
        if not known:
            return Waits(remote=self._open)
        return split(self._open, self._open * latest.network / known)


def split(waited: float, under_way: float) -> Waits:
    """Return what of the seconds that a stream ``waited`` are the network's: bytes were ``under_way`` meanwhile.

    Where they were it for longer, some of it passed while the stream did not wait.
    """
    network = min(waited, max(0.0, under_way))
    return Waits(source=waited - network, network=network)
