from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagecast.disk import Disk, Reservation, Space
from stagecast.errors import NotEnoughSpace


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    """A disk whose free space nobody else changes meanwhile."""
    found = Disk(tmp_path, "node-1")
    monkeypatch.setattr(found, "space", lambda: Space(1000, 2000))
    return found


def test_two_that_fit_alone_but_not_together_are_not_both_admitted(disk: Disk) -> None:
    with disk.reserve(700), pytest.raises(NotEnoughSpace, match=r"node-1.* has 300 bytes free, but 400 more"):
        disk.reserve(400).__enter__()
    with disk.reserve(1000):
        pass


def test_what_has_landed_is_not_promised_any_more(disk: Disk) -> None:
    with disk.reserve(700) as reservation:
        reservation.landed(500)
        with disk.reserve(800):
            pass


def test_equal_promises_are_kept_apart(disk: Disk) -> None:
    with disk.reserve(400):
        with disk.reserve(400):
            pass
        with pytest.raises(NotEnoughSpace):
            disk.reserve(601).__enter__()


def test_a_promise_ends_with_an_error(disk: Disk) -> None:
    with pytest.raises(ValueError, match="transfer"), disk.reserve(1000):
        raise ValueError("the transfer broke")
    with disk.reserve(1000):
        pass


@given(st.integers(0, 100), st.lists(st.integers(0, 50)))
def test_a_promise_never_falls_below_nothing(count: int, landed: list[int]) -> None:
    reservation = Reservation(count)
    for part in landed:
        reservation.landed(part)
    assert reservation.left == max(0, count - sum(landed))
