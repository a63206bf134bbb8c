"""What a process that starts takes for written over; the rest of mending is in test_wire.py, on a real nats-server."""

from __future__ import annotations

import asyncio
import random

import pytest

from stagecast import mending, subjects
from stagecast.bus.memory import MemoryBus
from stagecast.fold import Change, Fold
from stagecast.mending import Mender
from tests.peers import a_record

OURS = subjects.operation(a_record())


def a_mender(**options: bool) -> Mender:
    return Mender(MemoryBus().log, "p", **({"mends": True} | options), chance=random.Random(1))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "subject", "is_whole"),
    [
        (Change("foreign", "staging:m"), "staging.m.progress", True),
        (Change("foreign", "staging:m"), OURS, False),
        (Change("malformed", OURS), OURS, False),
        (Change("operation", "staging:m@n"), OURS, True),
        (Change("nothing", "staging:m@n"), OURS, True),
        (Change("foreign", "staging:m"), subjects.mirror("staging", "staging:m"), True),
        (Change("foreign", "staging:x"), subjects.mirror("staging", "staging:m"), False),
    ],
)
async def test_a_subject_of_ours_that_bears_another_s_word_is_doubtful(
    change: Change, subject: str, is_whole: bool
) -> None:
    mender = a_mender()
    mender.look(change, subject)
    assert mender.is_whole is is_whole


async def test_it_waits_until_the_last_one_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mending, "MEND_PATIENCE", 10.0)
    mender = a_mender()
    other = subjects.operation(a_record(id="staging:m@o", node="o"))
    for subject in (OURS, other):
        mender.look(Change("malformed", subject), subject)
    waiting = asyncio.create_task(mender.mended())
    await asyncio.sleep(0)
    mender.look(Change("operation", "staging:m@n"), OURS)
    await asyncio.sleep(0)
    assert not waiting.done()
    mender.look(Change("operation", "staging:m@o"), other)
    async with asyncio.timeout(60):
        await waiting


async def test_who_does_not_mend_leaves_the_words_of_others_alone() -> None:
    log = MemoryBus().log
    mender = Mender(log, "p", mends=False, chance=random.Random(1))
    sequence = await log.append(OURS, b"{")
    for repair in mender.repairs(Change("malformed", OURS, displaced=a_record(owner="other")), sequence, Fold):
        await repair
    entry = await log.last(OURS)
    assert entry is not None
    assert entry.payload == b"{"
    for repair in mender.repairs(Change("malformed", OURS, displaced=a_record(owner="p")), sequence, Fold):
        await repair
    entry = await log.last(OURS)
    assert entry is not None
    assert entry.payload != b"{", "its own it puts back at once"
