"""Ways to break the design, each of which the invariants must catch. The first four are the issue's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final, NamedTuple
from unittest.mock import patch

from nats.js.api import ConsumerConfig, DeliverPolicy

from stagecast import leases, operations, ownership
from stagecast.bus import nats
from stagecast.bus.consumer import Consumer, position
from stagecast.bus.whole import Whole
from stagecast.duty import Duty
from stagecast.messages import Entry, Record
from stagecast.restatement import Restatement
from stagecast.revision import Revision
from tests.simulation.client import JetStream, Msg

_publish, _configured, _is_free = JetStream.publish, nats._configured, Duty._is_free


def _never(*_: object) -> bool:
    return False


def _always(*_: object) -> bool:
    return True


def _none(*_: object) -> list[Any]:
    return []


def _order_without_ends(record: Record) -> tuple[int, int, int]:
    return (record.attempt, 0, record.seq)


async def _publish_in_any_case(
    self: JetStream, subject: str, payload: bytes, stream: str = "", headers: dict[str, str] | None = None
) -> Any:
    return await _publish(self, subject, payload, stream, None)


def _live_only(inbox: str, held: int) -> ConsumerConfig:
    return _configured(inbox, held).evolve(deliver_policy=DeliverPolicy.NEW)


def _deliver_whatever_comes(self: Consumer, message: Msg) -> None:
    sequence, in_consumer, moment = position(message.reply)
    self._delivered = in_consumer
    self._whole.take(Entry(message.subject, sequence, message.data, moment))


def _take_without_gaps(self: Whole, entry: Entry) -> None:
    self._position = entry.sequence
    self._waiting.append(entry)
    self._release()


async def _restate_nothing(self: Restatement) -> None:
    self._missing.clear()


def _leave_what_was_lost_sight_of(self: Duty, record: Record) -> bool:
    return record.owner != self._tracker.process and _is_free(self, record)


class Mutant(NamedTuple):
    """What is broken, by which replacements, and in which schedules it shows."""

    replacements: tuple[tuple[Any, str, Any], ...]
    theme: str = ""


MUTANTS: Final = {
    "the fence": Mutant(((ownership, "_fences", _never), (ownership.Ownership, "is_taken_by", _never)), "sleeper"),
    "the compare-and-set": Mutant(((JetStream, "publish", _publish_in_any_case),)),
    "the terminal rule": Mutant(((operations, "_order", _order_without_ends),), "apart"),
    "the catch-up": Mutant(((nats, "_configured", _live_only),)),
    "the gap in the deliveries": Mutant(((Consumer, "_deliver", _deliver_whatever_comes),)),
    "the gap that compaction leaves": Mutant(((Whole, "take", _take_without_gaps),)),
    "the lease": Mutant(((leases, "verdicts", _none),), "long storm"),
    "the revision that a client has seen": Mutant(((Revision, "reached_by", _always),)),
    "the restatement": Mutant(((Restatement, "write", _restate_nothing),), "apart"),
    "the claim whose answer was lost": Mutant(((Duty, "_is_free", _leave_what_was_lost_sight_of),)),
}
WANTED: Final = ("the fence", "the compare-and-set", "the terminal rule", "the catch-up")


@contextmanager
def broken(name: str) -> Iterator[None]:
    """Break one part of the production code for the block."""
    with ExitStack() as stack:
        for target, attribute, replacement in MUTANTS[name].replacements:
            stack.enter_context(patch.object(target, attribute, replacement))
        yield
