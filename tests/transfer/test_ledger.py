"""What a pull's ledger tells its caller, whatever the order in which streams end."""

from __future__ import annotations

from pathlib import Path

import pytest

from stagecast.store import Store
from stagecast.transfer.ledger import Ledger
from stagecast.transfer.report import Told
from tests.transfer.test_pull import MANIFEST


@pytest.mark.parametrize("ends", [(1, 0), (0, 1)])
def test_the_furthest_file_is_entered_also_where_it_was_whole_first(tmp_path: Path, ends: tuple[int, int]) -> None:
    entered: list[int] = []
    completed: list[int] = []
    tell = Told(
        advance=lambda _: None, checked=lambda _: None, entered=entered.append, completed=completed.append,
        waiting=lambda _: None,
    )  # fmt: skip
    with Store(tmp_path / "models", tmp_path / "data").partial(MANIFEST) as partial:
        ledger = Ledger(MANIFEST, partial, 1.0)
        ledger._news.moves({0, 1})
        ledger._report(tell)
        for file in ends:
            ledger._news.completed(file)
            ledger._report(tell)
    assert entered == [0, 1]
    assert completed == list(ends)
