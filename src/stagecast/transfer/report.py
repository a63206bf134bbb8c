"""What the caller of `pull` is told: on the way, and at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from stagecast.messages import Bottleneck, Hindrance
from stagecast.transfer.waits import Waits


@dataclass(frozen=True)
class Pulled:
    """What one call of `pull` did.

    ``bytes_received`` counts all of the pieces' bytes that came, also in vain, and ``holders`` says from whom;
    ``bytes_verified`` counts the pieces that were verified in this call.
    """

    bytes_received: int
    bytes_verified: int
    holders: dict[str, int]
    seconds: float
    waits: Waits


@dataclass(frozen=True)
class Told:
    """What the caller of `pull` wants to be told; see there."""

    advance: Callable[[int], None]
    checked: Callable[[int], None]
    entered: Callable[[int], None]
    completed: Callable[[int], None]
    waiting: Callable[[Hindrance], None]
    spent: Callable[[Mapping[Bottleneck, float]], None] = lambda _: None
