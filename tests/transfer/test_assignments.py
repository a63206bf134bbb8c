from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagecast.pieces import Holder, Piece
from stagecast.transfer.active import Assignment
from stagecast.transfer.assignments import GRACE, NEED, SHARED, SMALL, STARVING, Assignments
from stagecast.transfer.rests import FIRST_REST, LONGEST_REST

PIECES = [Piece(0, index, index * 10, 10) for index in range(4)]
ONE, TWO, THREE = (Holder(name, f"http://{name}") for name in ("one", "two", "three"))


NEAR, FAR = (Holder(name, f"http://{name}", is_whole=False) for name in ("near", "far"))


def assignments(*holders: Holder, pieces: int = 4, whole: tuple[Piece, ...] = (), seed: int = 1) -> Assignments:
    made = Assignments(PIECES, PIECES[:pieces], whole, 0.0, random.Random(seed).random)
    made.know(holders, 0.0)
    return made


def taken(from_: Assignments, now: float = 0.0) -> Assignment:
    assignment = from_.next(now)
    assert assignment is not None
    return assignment


def test_pieces_go_out_in_order_and_spread_over_the_holders() -> None:
    work = assignments(ONE, TWO)

    out = [taken(work) for _ in PIECES]

    assert [assignment.piece for assignment in out] == PIECES
    assert [assignment.holder for assignment in out] == [ONE, TWO, ONE, TWO]
    assert work.next(0.0) is None


def test_it_is_complete_once_every_piece_is_done() -> None:
    work = assignments(ONE, pieces=2)
    first, second = taken(work), taken(work)

    work.done(first, 0.0)
    assert not work.is_complete
    work.done(second, 0.0)

    assert work.is_complete
    assert assignments(ONE, pieces=0).is_complete


def test_whole_pieces_are_checked_first_and_need_no_holder() -> None:
    work = assignments(whole=(PIECES[2],))

    assert taken(work) == Assignment(PIECES[2], None)
    assert work.next(0.0) is None


def test_a_whole_piece_that_is_wrong_is_fetched_from_one_holder() -> None:
    work = assignments(ONE, pieces=1, whole=(PIECES[0],))

    work.wrong(taken(work), "", 0.0, is_certain=True)

    assert taken(work) == Assignment(PIECES[0], ONE, is_alone=True)


def test_a_failed_piece_comes_back_first_and_goes_to_another() -> None:
    work = assignments(ONE, TWO)

    work.failed(taken(work), "refused", 0.0)

    assert taken(work) == Assignment(PIECES[0], TWO)
    assert work.causes == {"one": "refused"}


def test_a_holder_rests_longer_after_each_failure_up_to_a_bound() -> None:
    work, now, rests = assignments(ONE), 0.0, []
    for _ in range(8):
        work.failed(taken(work, now), "refused", now)
        began = now
        while work.next(now) is None:
            now += FIRST_REST / 4
        rests.append(now - began)
        work = _again(work, now)

    assert rests[0] < 2 * FIRST_REST
    assert rests == sorted(rests)
    assert LONGEST_REST <= rests[-1] < LONGEST_REST + FIRST_REST


def _again(work: Assignments, now: float) -> Assignments:
    """Hand back the piece that looking has taken."""
    work.given_back(Assignment(next(iter(work._active)), ONE))
    return work


def test_streams_that_fail_together_are_one_failure() -> None:
    work = assignments(ONE)
    out = [taken(work) for _ in PIECES]

    for assignment in out:
        work.failed(assignment, "closed", 0.0)

    assert work.next(FIRST_REST / 2) is None
    assert work.next(FIRST_REST) is not None


def test_a_holder_that_lacks_a_piece_is_asked_for_the_others_at_once_and_for_that_one_later() -> None:
    work = assignments(ONE)

    work.lacking(taken(work), "does not have it", 0.0)

    assert [taken(work).piece for _ in PIECES[1:]] == PIECES[1:]
    assert work.next(0.0) is None
    work.know([ONE], 0.0)
    assert taken(work) == Assignment(PIECES[0], ONE)
    assert work.causes == {"one": "does not have it"}


def test_what_one_lacks_is_asked_of_another() -> None:
    work = assignments(ONE, TWO)

    work.lacking(taken(work), "does not have it", 0.0)

    assert taken(work) == Assignment(PIECES[0], TWO)


def test_small_pieces_go_out_together_and_large_ones_alone() -> None:
    pieces = [Piece(0, number, 0, length) for number, length in enumerate([10, 10, SMALL + 1, 10, SMALL, 10])]
    work = Assignments(pieces, pieces, (), 0.0, random.Random(1).random)
    work.know([ONE], 0.0)

    out = [work.batch(0.0, SMALL, 3) for _ in range(5)]

    assert [[each.piece.index for each in batch] for batch in out] == [[0, 1], [2], [3, 4], [5], []]
    assert {each.holder for batch in out for each in batch} == {ONE}


def test_what_goes_out_together_is_one_stream_until_all_of_it_is_back() -> None:
    work = assignments(ONE, TWO)
    batch = work.batch(0.0, 100, 2)

    assert [each.holder for each in batch] == [ONE, ONE]
    work.done(batch[0], 0.0)
    assert taken(work).holder == TWO
    work.done(batch[1], 0.0)
    assert taken(work).holder == ONE


def test_a_failure_that_cost_long_weighs_more() -> None:
    work = assignments(ONE, TWO)
    first = taken(work, 0.0)

    work.failed(first, "hangs", 10.0, lost=10.0)

    assert [taken(work, 11.0).holder for _ in PIECES] == [TWO] * 4


def test_a_liar_is_not_asked_for_that_piece_again() -> None:
    work = assignments(ONE, TWO)
    lie = taken(work)
    assert lie.holder == ONE

    work.wrong(lie, "lied", 0.0, is_certain=True)

    assert taken(work, 1e6) == Assignment(PIECES[0], TWO, is_alone=True)


def test_where_it_is_not_certain_who_lied_the_same_holder_may_be_asked() -> None:
    work = assignments(ONE)

    work.wrong(taken(work), "lied", 0.0, is_certain=False)

    assert taken(work) == Assignment(PIECES[0], ONE, is_alone=True)
    assert work.hopeless() is None


def test_a_piece_that_all_serve_wrong_is_hopeless_and_the_others_go_on() -> None:
    work = assignments(ONE, TWO)
    for _ in range(2):
        work.wrong(taken(work), "lied", 0.0, is_certain=True)

    assert work.hopeless() == (PIECES[0], ["one", "two"])
    assert taken(work).piece == PIECES[1]


def test_a_new_holder_brings_hope() -> None:
    work = assignments(ONE)
    work.wrong(taken(work), "lied", 0.0, is_certain=True)

    work.know([ONE, THREE], 0.0)

    assert work.hopeless() is None
    assert taken(work) == Assignment(PIECES[0], THREE, is_alone=True)


def test_with_nobody_to_ask_there_is_nothing_to_do() -> None:
    work = assignments()

    assert work.next(0.0) is None
    assert not work.is_out_of_patience(30.0, 29.0)
    assert work.is_out_of_patience(30.0, 30.0)


def test_somebody_whom_nobody_has_asked_yet_is_a_hope() -> None:
    work = assignments(ONE)
    assert not work.is_out_of_patience(30.0, 31.0)
    work.failed(taken(work, 31.0), "refused", 32.0)
    assert work.is_out_of_patience(30.0, 32.0)


def test_patience_ends_only_once_everybody_has_failed_and_bytes_renew_it() -> None:
    work = assignments(ONE, TWO)
    slow, bad = taken(work), taken(work)
    assert not work.is_out_of_patience(30.0, 100.0)

    work.failed(bad, "refused", 100.0)
    assert not work.is_out_of_patience(30.0, 100.0)
    work.failed(slow, "hangs", 101.0)
    assert work.is_out_of_patience(30.0, 101.0)

    again = taken(work, 102.0)
    work.progressed(103.0, again.holder)
    assert not work.is_out_of_patience(30.0, 140.0)
    work.done(again, 150.0)
    assert not work.is_out_of_patience(30.0, 179.0)
    assert work.is_out_of_patience(30.0, 180.0)


def test_a_holder_that_brings_bytes_before_it_fails_rests_only_briefly() -> None:
    work, now = assignments(ONE), 0.0
    for _ in range(8):
        assignment = taken(work, now)
        work.progressed(now, assignment.holder)
        work.failed(assignment, "closed", now)
        now += FIRST_REST


def test_a_measured_holder_that_is_ten_times_slower_gets_no_piece_where_another_is_free() -> None:
    work = assignments(ONE, TWO)
    for assignment, seconds in ((taken(work), 1.0), (taken(work), 10.0)):
        work.reached(assignment.piece, 1, 0.0)
        work.reached(assignment.piece, 10, seconds)
        work.done(assignment, seconds)

    assert [taken(work, 20.0).holder for _ in range(2)] == [ONE, ONE]


@given(st.integers(0, 2**32), st.sets(st.integers(0, 3)), st.sets(st.integers(0, 3)))
def test_a_receiver_is_asked_for_nothing_but_what_it_has_and_no_piece_twice(
    seed: int, near: set[int], far: set[int]
) -> None:
    work = assignments(ONE, NEAR, FAR, seed=seed)
    has = {ONE: {0, 1, 2, 3}, NEAR: near, FAR: far}
    for holder, pieces in ((NEAR, near), (FAR, far)):
        work.learn(holder.name, sum(1 << number for number in pieces), 0, 0.0)

    out = []
    while (assignment := work.next(0.0)) is not None:
        assert assignment.holder is not None
        assert assignment.piece.index in has[assignment.holder]
        out.append(assignment)

    assert len({assignment.piece for assignment in out}) == len(out)
    assert sum(assignment.holder == ONE for assignment in out) <= 1
    assert {assignment.piece.index for assignment in out} >= near | far
    for assignment in out:
        work.done(assignment, 1.0)
    assert len(out) == 4 or not work.is_complete


@pytest.mark.parametrize("seed", range(20))
def test_what_nobody_else_has_or_gets_is_taken_from_the_one_that_has_everything(seed: int) -> None:
    work = assignments(ONE, NEAR, seed=seed)
    work.learn("one", 0b1111, 0b0001, 0.0)
    work.learn("near", 0b0010, 0, 0.0)

    assert taken(work) == Assignment(PIECES[1], NEAR, wish="yes")
    assert taken(work) in {Assignment(PIECES[number], ONE, wish="first") for number in (2, 3)}


@pytest.mark.parametrize("seed", range(20))
def test_a_piece_that_was_given_to_somebody_else_makes_way_for_another_at_once(seed: int) -> None:
    work = assignments(ONE, NEAR, seed=seed)
    first = taken(work)
    assert (first.holder, first.wish) == (ONE, "first")

    work.busy(first, "gave it to somebody else", 0.0, is_given=True)

    other = taken(work)
    assert (other.holder, other.wish) == (ONE, "first")
    assert other.piece != first.piece
    work.learn("one", 0b1111, 0b1111, 0.0)
    work.done(other, 1.0)
    assert taken(work, 1.0).wish == "yes", "and in the end it is asked for all the same"


def test_equals_are_chosen_by_the_chance_that_it_is_given() -> None:
    firsts = {seed: taken(assignments(ONE, NEAR, seed=seed)).piece for seed in range(40)}

    assert set(firsts.values()) == set(PIECES)
    assert firsts == {seed: taken(assignments(ONE, NEAR, seed=seed)).piece for seed in range(40)}


def test_the_uplink_of_who_has_everything_is_shared() -> None:
    pair = assignments(ONE, NEAR)
    assert [pair.next(0.0) is not None for _ in range(SHARED // 2 + 1)] == [True] * (SHARED // 2) + [False]

    many = assignments(ONE, *(Holder(f"r{number}", "", is_whole=False) for number in range(9)))
    assert [many.next(0.0) is not None for _ in range(2)] == [True, False]


def test_a_busy_holder_is_asked_again_soon_and_has_not_failed() -> None:
    work = assignments(ONE)

    work.busy(taken(work), "has enough to do", 0.0)

    assert work.next(FIRST_REST / 2) is None
    assert taken(work, FIRST_REST) == Assignment(PIECES[0], ONE)
    assert not work.is_out_of_patience(30.0, 100.0)


def test_who_waits_for_others_to_be_served_has_not_lost_patience_while_they_are() -> None:
    work = assignments(ONE, NEAR)
    for now in (1.0, 29.0, 58.0):
        assert not work.is_out_of_patience(30.0, now)
        work.busy(taken(work, now), "has enough to do", now)
    work.learn("near", 0b0001, 0, 87.0)
    assert not work.is_out_of_patience(30.0, 116.0), "there is one piece more in the world"
    work.learn("near", 0b0001, 0, 116.0)
    assert work.is_out_of_patience(30.0, 118.0), "nothing has changed"


def test_who_has_had_nothing_to_do_for_a_while_says_so_to_those_who_receive() -> None:
    work = assignments(NEAR)
    work.learn("near", 0b0111, 0, 0.0)
    first = taken(work, NEED)
    assert first.wish == "yes"
    work.busy(first, "has enough to do", NEED)

    again = taken(work, 2 * NEED)
    assert again.wish == "need"
    assert taken(work, 2 * NEED).wish == "yes", "now there is something to do"
    work.done(again, 2 * NEED)
    assert taken(work, 2 * NEED).wish == "yes"

    work = assignments(ONE, NEAR)
    work.learn("one", 0b1111, 0b1111, 0.0)
    whole = taken(work, 2 * NEED)
    assert (whole.holder, whole.wish) == (ONE, "yes"), "what nobody else has yet goes before that"


def test_who_starves_in_a_crowd_turns_to_who_has_everything() -> None:
    crowd = [Holder(f"r{number}", "", is_whole=False) for number in range(100_000)]
    work = assignments(ONE, *crowd)
    assert ONE not in work.holders
    work.know([ONE, *crowd], STARVING / 2)
    assert ONE not in work.holders
    work.know([ONE, *crowd], STARVING + 1.0)
    assert ONE in work.holders


def test_at_the_end_a_piece_is_taken_from_a_holder_that_would_hold_it_back() -> None:
    work = assignments(ONE, TWO, pieces=2)
    slow, fast = taken(work), taken(work)
    for assignment, position in ((slow, 0), (fast, 0), (slow, 1), (fast, 9)):
        work.reached(assignment.piece, 1 + position, float(position > 0))
    work.done(fast, 1.1)

    work.reconsider(GRACE / 2)
    assert not work.is_unwanted(slow.piece)
    work.reconsider(GRACE + 1.0)
    assert work.is_unwanted(slow.piece)
    work.given_back(slow)

    assert taken(work, 3.0) == Assignment(slow.piece, TWO)


def test_nothing_is_taken_away_where_nobody_else_would_be_faster() -> None:
    work = assignments(ONE, NEAR, pieces=1)
    slow = taken(work)
    work.reached(slow.piece, 1, 0.0)

    work.reconsider(1e3)

    assert not work.is_unwanted(slow.piece)


def test_what_others_have_served_wrong_is_hopeless_only_if_nobody_else_has_it() -> None:
    work = assignments(ONE, NEAR)
    work.learn("near", 0b0001, 0, 0.0)
    lie = taken(work)
    assert lie.holder == NEAR
    work.wrong(lie, "lied", 0.0, is_certain=True)
    assert work.hopeless() is None

    again = taken(work, 10.0)
    while again.piece != lie.piece:
        work.done(again, 10.0)
        again = taken(work, 10.0)
    work.wrong(again, "lied", 10.0, is_certain=True)

    assert work.hopeless() == (lie.piece, ["near", "one"])
