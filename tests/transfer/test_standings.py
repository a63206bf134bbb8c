from __future__ import annotations

from stagecast.transfer.standings import DULL, LASTS, TRIED, Standings

USEFUL = {"fast": True, "slow": True}


def test_who_is_much_slower_is_dull_as_long_as_somebody_faster_has_what_is_wanted_and_that_is_known() -> None:
    standings = Standings()
    assert not standings.dull(USEFUL, 0.0), "nobody knows anything"
    standings.measured("fast", DULL + 1, 0.0)
    standings.measured("slow", 1.0, 1.0)
    assert set(standings.dull(USEFUL, 1.0)) == {"slow"}
    assert not standings.dull({**USEFUL, "fast": False}, 1.0), "nobody else has it"
    assert not standings.dull({"slow": True}, 1.0)
    assert not standings.dull(USEFUL, 1.0 + LASTS), "it may be another one now"
    standings.measured("slow", 5.0, 2.0)
    assert not standings.dull(USEFUL, 2.0), "one that is a little slower is worth it"


def test_so_many_of_unknown_speed_are_tried_at_a_time_once_any_speed_is_known() -> None:
    standings, strangers = Standings(), {f"stranger-{number}": True for number in range(TRIED + 2)}
    for name in list(strangers)[:TRIED]:
        standings.opened(name)
    assert not standings.dull({"known": True, **strangers}, 0.0)
    standings.measured("known", 1.0, 0.0)
    assert set(standings.dull({"known": True, **strangers}, 0.0)) == set(strangers)
    standings.closed("stranger-0")
    assert not standings.dull({"known": True, **strangers}, 0.0)
