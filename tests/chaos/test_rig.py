"""What a fault finds to break, or does not: the run goes on to its table."""

from __future__ import annotations

import random
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from chaos.__main__ import occurrence
from chaos.faults import FAULTS
from chaos.rig import NothingMoves, Rig
from chaos.timeline import Timeline
from tests.chaos.answers import row


def rig(timeline: Timeline, **parts: Any) -> Rig:
    given: dict[str, Any] = dict.fromkeys(
        ("cluster", "network", "judge", "readers", "witness", "load", "client", "arrivals", "_stack")
    )
    return Rig(**given | parts, timeline=timeline, random=random.Random(1), events=[], began=0.0)


async def test_what_is_in_the_middle_of_its_bytes_is_found() -> None:
    timeline = Timeline()
    timeline.shown(1.0, [row("early", done=1), row("middle", done=50), row("late", done=90)])
    found = await rig(timeline).transferring(lambda row: row.task_type == "staging", patience=0.0)
    assert found.job_id == "middle"


async def test_where_nothing_moves_that_is_said() -> None:
    with pytest.raises(NothingMoves, match="nothing was in the middle of its bytes for 0 s"):
        await rig(Timeline()).transferring(lambda _: True, patience=0.0)


async def test_an_occurrence_without_anything_to_break_is_an_outcome_of_its_own() -> None:
    class Idle(Rig):
        async def pause(self, least: float, most: float) -> None:
            """Let no time pass."""

        async def transferring(self, *_: Any, **__: Any) -> Any:
            """Find nothing."""
            raise NothingMoves(30.0)

    async def look() -> int:
        return 0

    parts = {"load": SimpleNamespace(begun=[], running=nullcontext), "arrivals": SimpleNamespace(look=look)}
    made = Idle(**vars(rig(Timeline(), **parts)))
    (fault,) = (fault for fault in FAULTS if fault.name == "worker-kill")
    outcome = await occurrence(made, fault)
    assert outcome.not_run == "nothing was in the middle of its bytes for 30 s"
