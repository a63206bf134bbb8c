"""What makes embeddings sound."""

from __future__ import annotations

import math

import pytest

from stagecast.demo_vectors import WIDTH, compare


def unit(*angles: float) -> list[list[float]]:
    return [[math.cos(angle), math.sin(angle)] + [0.0] * (WIDTH - 2) for angle in angles]


GOOD = unit(0, 0.3, 1.5)


def test_sound_and_equal() -> None:
    found = compare({"balancer": GOOD, "replica-1": [list(vector) for vector in GOOD]})
    assert found.is_sound
    assert found.are_equal
    assert (found.width, found.answers) == (384, 2)
    assert found.paraphrases == pytest.approx(math.cos(0.3))
    assert found.unrelated == pytest.approx(math.cos(1.2))


@pytest.mark.parametrize(
    "vectors",
    [
        [vector[:100] for vector in GOOD],
        [[2 * value for value in vector] for vector in GOOD],
        unit(0, 1.5, 0.3),
        unit(0, 0.1, 0.1),
    ],
    ids=["narrow", "long", "an unrelated pair is nearer", "no difference"],
)
def test_not_sound(vectors: list[list[float]]) -> None:
    assert not compare({"balancer": vectors}).is_sound


def test_different_answers() -> None:
    assert not compare({"balancer": GOOD, "replica-1": unit(0, 0.3, 1.5001)}).are_equal
    assert compare({"balancer": GOOD, "replica-1": [vector[:9] for vector in GOOD]}).difference == math.inf
