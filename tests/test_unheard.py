from __future__ import annotations

import msgspec

from stagecast import broadcast, subjects
from stagecast.fold import Fold
from stagecast.messages import Entry, Horizon, Record
from stagecast.revision import Revision, first_of
from stagecast.unheard import Unheard
from tests.peers import a_record

FIRST = first_of(2)


def entry(record: Record, sequence: int) -> Entry:
    return Entry(subjects.operation(record), sequence, broadcast.encode(record), 1.0)


def test_a_word_counts_until_it_or_a_later_one_is_heard() -> None:
    unheard, fold = Unheard(), Fold(Revision("s", 0))
    unheard.note(a_record(seq=3), FIRST + 1, fold)
    unheard.hear(a_record(seq=2))
    word = unheard.get("staging:m@n")
    assert word is not None
    assert (word.record.seq, word.sequence) == (3, FIRST + 1)
    assert [record.seq for record in unheard] == [3]
    unheard.hear(a_record(seq=3))
    assert not len(unheard)


def test_of_two_words_the_later_one_counts_in_whichever_order_they_are_noted() -> None:
    unheard, fold = Unheard(), Fold(Revision("s", 0))
    unheard.note(a_record(seq=4), FIRST + 2, fold)
    unheard.note(a_record(seq=3), FIRST + 1, fold)
    assert [record.seq for record in unheard] == [4]


def test_what_was_heard_before_it_was_acknowledged_is_not_noted() -> None:
    unheard, fold = Unheard(), Fold(Revision("s", 0))
    fold.apply(entry(a_record(seq=3), FIRST))
    unheard.note(a_record(seq=3), FIRST, fold)
    assert not len(unheard)


def test_what_was_written_before_a_horizon_is_let_go_and_what_came_after_it_is_not() -> None:
    unheard, fold = Unheard(), Fold(Revision("s", 0))
    unheard.note(a_record(), FIRST + 1, fold)
    unheard.note(a_record(model="other"), FIRST + 3, fold)
    unheard.let_go(FIRST + 2)
    assert [record.model for record in unheard] == ["other"]
    fold.apply(Entry(subjects.HORIZON, FIRST + 5, msgspec.json.encode(Horizon(number=1, through=FIRST + 4)), 1.0))
    unheard.note(a_record(), FIRST + 1, fold)
    assert [record.model for record in unheard] == ["other"]


def test_a_word_in_another_log_than_the_horizon_is_not_let_go() -> None:
    unheard, fold = Unheard(), Fold(Revision("s", 0))
    unheard.note(a_record(), FIRST + 1, fold)
    unheard.let_go(first_of(9))
    assert len(unheard) == 1
