"""Whether embeddings are what they should be. Pure: vectors in, figures out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

WIDTH: Final = 384
TEXTS: Final = (
    "The cat sat on the warm windowsill in the sun.",
    "A cat was resting on a sunny window ledge.",
    "The central bank raised interest rates by a quarter point.",
)
"""Two paraphrases and an unrelated sentence."""

Vector = Sequence[float]


class Comparison(NamedTuple):
    """``length``: the one farthest from 1; ``difference``: the largest of a component between two answers."""

    width: int
    length: float
    paraphrases: float
    unrelated: float
    difference: float
    answers: int

    @property
    def is_sound(self) -> bool:
        """Whether they are as wide and as long as they should be, and the paraphrases are the nearest pair."""
        return self.width == WIDTH and abs(self.length - 1) < 1e-4 and self.paraphrases > self.unrelated + 0.2

    @property
    def are_equal(self) -> bool:
        """Whether everybody answered with the same vectors."""
        return self.difference < 1e-6


def compare(answers: Mapping[str, Sequence[Vector]]) -> Comparison:
    """Return the figures of what each source answered to `TEXTS`."""
    first, *others = answers.values()
    one, other, unrelated = first
    lengths = [math.hypot(*vector) for vector in first]
    return Comparison(
        width=len(one) if len({len(vector) for answer in answers.values() for vector in answer}) == 1 else 0,
        length=max(lengths, key=lambda length: abs(length - 1)),
        paraphrases=_dot(one, other),
        unrelated=max(_dot(one, unrelated), _dot(other, unrelated)),
        difference=max((_difference(first, each) for each in others), default=0.0),
        answers=len(answers),
    )


def _dot(one: Vector, other: Vector) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def _difference(one: Sequence[Vector], other: Sequence[Vector]) -> float:
    if [len(vector) for vector in one] != [len(vector) for vector in other]:
        return math.inf
    pairs = zip(one, other, strict=True)
    return max(abs(a - b) for mine, theirs in pairs for a, b in zip(mine, theirs, strict=True))
