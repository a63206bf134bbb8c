from __future__ import annotations

import random

from stagecast.pieces import Holder
from stagecast.transfer.swarm import Swarm

WHOLE, NEAR, FAR = Holder("whole", ""), Holder("near", "", is_whole=False), Holder("far", "", is_whole=False)


def swarm(*holders: Holder) -> Swarm:
    made = Swarm(4, random.Random(1).random)
    made.know(holders)
    return made


def new(of: Swarm) -> list[int]:
    return [number for number in range(4) if of.is_new(number)]


def test_new_is_what_no_receiver_has_and_nobody_just_gets() -> None:
    made = swarm(WHOLE, NEAR, FAR)
    assert new(made) == [0, 1, 2, 3]
    made.learn("near", 0b0001, 0)
    made.learn("whole", 0b1111, 0b0010)
    assert new(made) == [2, 3]
    made.gave("whole", 2)
    made.gave("stranger", 3)
    assert new(made) == [3]
    made.know([WHOLE, FAR])
    assert new(made) == [0, 3], "who is gone is forgotten with what it had"


def test_nothing_is_new_to_who_receives_alone() -> None:
    assert new(swarm(WHOLE)) == []


def test_where_pieces_are_few_who_has_everything_is_asked_for_what_nobody_else_has_unless_in_need() -> None:
    few = [WHOLE, *(Holder(f"w{number}", "", is_whole=False) for number in range(5))]
    made = swarm(*few)
    assert made.offers("whole", is_needy=False) == 0b1111, "nobody has any yet"
    made.learn("w1", 0b0001, 0)
    made.learn("whole", 0b1111, 0b0110)
    assert made.offers("whole", is_needy=False) == 0b1000, "nor what somebody just gets"
    assert made.offers("whole", is_needy=True) == 0b1111
    assert made.offers("w1", is_needy=False) == 0b0001, "who receives passes on all that it has"
    made.know(few[:5])
    assert made.offers("whole", is_needy=False) == 0b1111, "as many pieces as receivers"
