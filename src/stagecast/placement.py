"""Placement: on which worker a model shall be loaded. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from stagecast.messages import Placement

COOL_DOWN: Final = 30.0
"""Seconds for which a model that could be loaded nowhere is not tried again."""


class Candidate(NamedTuple):
    """A living worker. ``loaded`` counts the models it has loaded or is loading; ``free`` is disk, in bytes."""

    name: str
    has_files: bool
    loaded: int
    free: int


def choose(candidates: Iterable[Candidate], size: int, refused: Iterable[str] = ()) -> str | None:
    """Return the worker for a model of ``size`` bytes, or None where none can take it.

    One that has the files goes first, then the one with the fewest models, then the one with the most free disk.
    """
    out = frozenset(refused)
    able = [each for each in candidates if each.name not in out and (each.has_files or each.free >= size)]
    best = min(able, key=lambda each: (not each.has_files, each.loaded, -each.free, each.name), default=None)
    return best.name if best else None


def placed(held: Placement | None, model: str, node: str, now: float, refused: Iterable[str] = ()) -> Placement:
    """Return the wish that ``node`` loads ``model``, above whatever is held."""
    generation = held.generation + 1 if held else 1
    return Placement(model=model, nodes=(node,), refused=tuple(refused), generation=generation, placed_at=now)


def withdrawn(held: Placement, node: str, now: float) -> Placement:
    """Return the wish without ``node``."""
    nodes = tuple(name for name in held.nodes if name != node)
    return Placement(model=held.model, nodes=nodes, generation=held.generation + 1, placed_at=now)
