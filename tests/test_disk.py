from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagecast.disk import Disk, Space
from stagecast.errors import NotEnoughSpace
from stagecast.publication import WORKSHOP
from stagecast.reservation import Promise, Reservation


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    """A disk whose free space nobody else changes meanwhile."""
    (tmp_path / WORKSHOP).mkdir()
    found = Disk(tmp_path, "node-1")
    monkeypatch.setattr(found, "space", lambda: Space(1000, 2000))
    return found


def test_two_that_fit_alone_but_not_together_are_not_both_admitted(disk: Disk) -> None:
    said = r"node-1: .* has 1,000 bytes free, of which 700 are promised to other transfers, but 400 more are needed"
    with disk.reserve(700), pytest.raises(NotEnoughSpace, match=said) as refused:
        disk.reserve(400).__enter__()
    assert (refused.value.needed, refused.value.free, refused.value.promised) == (400, 1000, 700)
    with disk.reserve(1000):
        pass


def test_what_even_an_empty_disk_could_not_hold_is_hopeless(disk: Disk) -> None:
    for needed, is_hopeless in ((1001, False), (2001, True)):
        with pytest.raises(NotEnoughSpace) as refused:
            disk.reserve(needed).__enter__()
        assert refused.value.is_hopeless == is_hopeless


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


def test_nothing_is_left_of_a_promise(disk: Disk, tmp_path: Path) -> None:
    with disk.reserve(400, purpose="staging of owl"):
        assert disk.promises() == [Promise(400, "staging of owl")]
    assert disk.promises() == []
    assert list((tmp_path / WORKSHOP).iterdir()) == []


def test_nothing_more_needs_no_room(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "space", lambda: Space(0, 2000))
    with disk.reserve(0, 5) as reservation:
        reservation.landed(1)
        assert disk.promises() == []
