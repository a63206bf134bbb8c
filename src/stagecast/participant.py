"""A participant: one process that takes part in the log. Every process of ours is one, and so is another program's.

It folds the log, holds a lease, obeys commands for what it owns, and can answer for all that is under way. It knows
nothing of models, files or HTTP.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

import msgspec

from stagecast import operations, rows, subjects
from stagecast.announcer import Announcer
from stagecast.bus import Bus
from stagecast.commands import Commands
from stagecast.errors import BusUnavailable, Unknown
from stagecast.feed import Feed
from stagecast.fold import Fold
from stagecast.forgetting import Forgetting
from stagecast.history import History
from stagecast.messages import MODEL_KINDS, Kind
from stagecast.mirror import Mirror
from stagecast.past import Sought
from stagecast.presence import Presence
from stagecast.rows import Row
from stagecast.settings import Bounds
from stagecast.tracker import Tracker
from stagecast.view import View

ALONE_LOG: Final = "log.sqlite3"
"""Where a process alone keeps its log and history, in its data folder."""


@dataclass(frozen=True)
class Participant:
    """The parts of the CONTROL column that every process has. ``history`` is kept only where it ``judges``."""

    name: str
    tracker: Tracker
    presence: Presence
    commands: Commands
    announcer: Announcer
    history: History
    view: View
    feed: Feed

    @property
    def fold(self) -> Fold:
        """The picture at this process's revision."""
        return self.tracker.fold

    def knows(self, kind: Kind) -> bool:
        """Tell whether there can be operations of this kind: ours, one that somebody performs, or one that was seen."""
        is_known = kind in MODEL_KINDS or self.presence.has_heard_of(kind)
        is_known = is_known or any(slot.record.kind == kind for slot in self.fold.slots.values())
        return is_known or bool(self.history.page(Sought(kind=kind), limit=1).records)

    def row(self, operation: str) -> Row:
        """Return the row of an operation by its id or job, also after its end. Raises `Unknown`, `BusUnavailable`."""
        mirror = self.mirror(operation)
        record = None if mirror else self.fold.record(operation) or self.history.find(operation)
        if record is not None:
            return rows.detailed(record, rows.shares(self.fold, record))
        mirror = mirror or self.fold.mirror(operation)
        if mirror is None and self.history.is_behind:
            raise BusUnavailable(f"{self.name} has yet to read what has ended")
        if mirror is None:
            raise Unknown("operation", operation)
        return rows.mirror_row(mirror)

    def mirror(self, operation: str) -> Mirror | None:
        """Return a foreign operation by its id or job, unless one of ours is what people mean by that.

        That is what the list shows: where ours of the same id has ended, it is the foreign one.
        """
        found, record = self.fold.mirror(operation), self.fold.record(operation)
        if found is None or (record is not None and (operations.is_listed(record) or found.done)):
            return None
        return None if found.done and self.history.find(operation) else found


@asynccontextmanager
async def participating(
    bus: Bus, name: str, *, judges: bool, performs: tuple[Kind, ...] = (), bounds: Bounds | None = None,
    tracker: Tracker | None = None,
) -> AsyncGenerator[Participant, None]:  # fmt: skip
    """Take part for as long as the block lasts, from when the log, and by who judges the history, was read once.

    Who ``judges`` answers for everybody: it says who is dead, puts right what was written over, keeps the history
    within ``bounds``, and has what ended long ago forgotten. ``performs`` are the kinds of another program's work that
    this process takes, which everybody is to know. ``tracker`` is for whoever has a clock, or a process's name, of its
    own.

    Raises:
        NameTaken: another living process speaks for a node of this name.
    """
    tracker = tracker or Tracker(bus, f"{name}/{secrets.token_hex(4)}", mends=judges)
    history = History(tracker, bounds)
    forgetting = Forgetting(tracker, history) if judges else None
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(tracker.running())
        presence = await stack.enter_async_context(Presence(tracker, judges=judges, performs=performs).running())
        commands = await stack.enter_async_context(Commands(tracker, judges=judges).running())
        await tracker.caught_up.wait()
        await commands.check_name(name)
        announcer = await stack.enter_async_context(Announcer(tracker).running())
        commands.ended, commands.is_behind = history.find, lambda: history.is_behind
        if forgetting is not None:
            await stack.enter_async_context(history.running())
            # What the log has forgotten is answered from there: late is complete (law L4).
            await history.caught_up.wait()
            await stack.enter_async_context(forgetting.running())
        view = View(tracker)
        yield Participant(name, tracker, presence, commands, announcer, history, view, Feed(tracker, view))


def outlive(participant: Participant) -> None:
    """Take every other process for gone, and nodes of other names for left: the log of one alone had no others.

    What an earlier process left behind is then gone on with at once, whatever this machine was called then.
    """
    fold, leases, process = participant.fold, participant.presence.leases, participant.tracker.process
    for record in fold.live():
        if record.owner not in {"", process}:
            leases.leave(record.owner)
    for node in fold.nodes.values():
        leases.leave(node.process)
        if node.name != participant.name and not node.left:
            participant.announcer.say(subjects.node(node.name), msgspec.structs.replace(node, left=True))
