"""Ways to break the design, each of which the invariants must catch. The first four are the issue's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final, NamedTuple
from unittest.mock import patch

from nats.js.api import ConsumerConfig, DeliverPolicy

from stagecast import horizon, leases, operations, ownership
from stagecast.bus import nats
from stagecast.bus.consumer import Consumer, position
from stagecast.bus.whole import Whole
from stagecast.duty import Duty
from stagecast.fold import Change, Fold
from stagecast.forgetting import Forgetting
from stagecast.history import History
from stagecast.messages import Entry, Horizon, Record
from stagecast.restatement import Restatement
from stagecast.revision import Revision
from stagecast.tracker import Tracker
from tests.simulation.client import JetStream, Msg

_publish, _configured, _is_free = JetStream.publish, nats._configured, Duty._is_free
_due, _apply_horizon = horizon.due, Fold._apply_horizon


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


def _due_at_once(fold: Fold, now: float, is_wanted: Callable[[Record], bool]) -> Horizon | None:
    return _due(fold, now + horizon.AGE + horizon.STEP, is_wanted)


async def _forget_alone(self: Forgetting, now: float) -> None:
    fold = self._tracker.fold
    found = _due(fold, now, _never)
    if found is not None:
        _apply_horizon(fold, found, fold.revision.sequence)


def _forget_what_is_known_to_have_ended(self: Fold, horizon: Horizon, sequence: int) -> Change:
    live = {slot.sequence for slot in self.live_slots() if slot.sequence <= horizon.through}
    kept = {*horizon.kept, *(horizon.through - at for at in live)}
    change = _apply_horizon(self, Horizon(through=horizon.through, kept=tuple(kept)), sequence)
    self.horizon = horizon
    return change


async def _always_the_first_era(_: Tracker) -> int:
    return 0


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
    "the history before the forgetting": Mutant(
        ((horizon, "due", _due_at_once), (History, "lacks", _never)), "ever new"
    ),
    "the place in the log at which all forget": Mutant(((Forgetting, "sweep", _forget_alone),), "ever new"),
    "what a sleeper forgets": Mutant(((Fold, "_apply_horizon", _forget_what_is_known_to_have_ended),), "ever new"),
    "the era": Mutant(((Tracker, "present_era", _always_the_first_era),), "ever new"),
    "the claim whose answer was lost": Mutant(((Duty, "_is_free", _leave_what_was_lost_sight_of),), "mislaid"),
}
WANTED: Final = ("the fence", "the compare-and-set", "the terminal rule", "the catch-up")


@contextmanager
def broken(name: str) -> Iterator[None]:
    """Break one part of the production code for the block."""
    with ExitStack() as stack:
        for target, attribute, replacement in MUTANTS[name].replacements:
            stack.enter_context(patch.object(target, attribute, replacement))
        yield
