from __future__ import annotations

from stagecast.pieces import Piece
from stagecast.transfer.assignments import FIRST_REST, LONGEST_REST, Assignment, Assignments
from stagecast.transfer.source import Holder

PIECES = [Piece(0, index, index * 10, 10) for index in range(4)]
ONE, TWO, THREE = (Holder(name, f"http://{name}") for name in ("one", "two", "three"))


def assignments(*holders: Holder, pieces: int = 4, whole: tuple[Piece, ...] = ()) -> Assignments:
    made = Assignments(PIECES[:pieces], whole, 0.0)
    made.know(holders)
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
    piece = next(iter(work._active))
    work._return(piece)
    work._close(ONE)
    return work


def test_streams_that_fail_together_are_one_failure() -> None:
    work = assignments(ONE)
    out = [taken(work) for _ in PIECES]

    for assignment in out:
        work.failed(assignment, "closed", 0.0)

    assert work.next(FIRST_REST / 2) is None
    assert work.next(FIRST_REST) is not None


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

    work.know([ONE, THREE])

    assert work.hopeless() is None
    assert taken(work) == Assignment(PIECES[0], THREE, is_alone=True)


def test_with_nobody_to_ask_there_is_nothing_to_do() -> None:
    work = assignments()

    assert work.next(0.0) is None
    assert not work.is_out_of_patience(30.0, 29.0)
    assert work.is_out_of_patience(30.0, 30.0)


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
