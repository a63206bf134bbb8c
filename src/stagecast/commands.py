"""Commands: cancel, pause, resume, retry and dismiss, given on any replica, obeyed by whoever owns the operation.

A living owner is asked and answers once the log shows the effect. Where nobody works on the operation, or its owner
does not answer, the command is written straight into the log: the fence stops an owner that only slept.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final, TypeVar

import msgspec

from stagecast import archive, operations, subjects
from stagecast.errors import (
    AppendConflict,
    BusError,
    BusUnavailable,
    CommandLost,
    NameTaken,
    NodeRefused,
    StagecastError,
    Unknown,
    WrongState,
)
from stagecast.messages import Command, CommandReply, GalleryCancel, GalleryStatus, NodeVerb, Record, Verb
from stagecast.mirror import Mirror
from stagecast.revision import Revision
from stagecast.tracker import Tracker

_logger = logging.getLogger(__name__)

PING_TIMEOUT: Final = 1.0
OWNER_TIMEOUT: Final = 1.5
"""Seconds within which an owner obeys; then the command is written over its head, all in 2 s."""


_Answer = TypeVar("_Answer")
Question = Callable[[msgspec.Raw], Awaitable[object]]


class Commands:
    """Gives commands to other processes' operations, and obeys those for this process's own.

    Who ``judges`` also gives those that are broadcast to whoever owns an operation, where nobody does.
    """

    def __init__(self, tracker: Tracker, *, judges: bool = False) -> None:
        self._tracker = tracker
        self._judges = judges
        self._tasks: set[asyncio.Task[None]] = set()
        self.drain: Callable[[bool], None] | None = None
        """What draining means for this process's node, if it has one."""
        self.questions: dict[str, Question] = {}
        """What this process's node can be asked, by verb."""
        self.ended: Callable[[str], Record | None] = lambda _: None
        """Finds the last end of an operation that the log has no more, by id or job, where this process keeps them."""
        self.is_behind: Callable[[], bool] = lambda: False
        """Tells whether it has yet to read some of them."""

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Commands, None]:
        """Obey for as long as the block lasts."""
        await self._tracker.bus.answer(subjects.command(self._tracker.process), self._answer)
        await self._tracker.bus.subscribe(subjects.GALLERY_CANCEL, self._hear_gallery_cancel)
        try:
            yield self
        finally:
            self._judges = False
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def give(self, operation: str, verb: Verb, *, keep_partial: bool = False) -> tuple[Record, Revision]:
        """Make ``verb`` come true for an operation, named by id or job; return its record and where the log has it.

        Where that holds already, nothing is written. ``keep_partial``: a cancel leaves on the disk what has arrived.

        Raises:
            CommandLost: the bus is away; the error says whether the command may have been done all the same.
            Unknown: nobody knows the operation.
            WrongState: its state forbids the verb.
        """
        may_be_done = False
        try:
            while True:
                record, sequence = await self._standing(operation, verb)
                if sequence is None:
                    return record, self._tracker.revision
                if operations.is_fulfilled(record, verb, keep_partial=keep_partial):
                    slot = self._tracker.fold.slots.get(record.id)
                    if slot is not None and slot.record == record:  # the log itself may have come back without it
                        return record, Revision(self._tracker.revision.identity, slot.sequence)
                    revision = await self._tracker.place(sequence) if sequence else self._tracker.revision
                    return await self._seen(record, revision), revision
                operations.commanded(record, verb, 0.0, keep_partial=keep_partial)  # raises where it is not allowed
                may_be_done = self._tracker.bus.is_connected
                command = Command(verb=verb, id=record.id, keep_partial=keep_partial)
                written = await self._ask_owner(record, command) or await self._write(record, command)
                if written is not None:
                    return await self._seen(record, written), written
        except BusUnavailable as error:
            raise CommandLost(operation, verb, error.why, may_be_done=may_be_done) from error

    async def _standing(self, operation: str, verb: Verb) -> tuple[Record, int | None]:
        """Return the log's last word on the run that is meant, and its sequence; None where nothing can be done to it.

        Raises:
            Unknown: nobody knows it.
            WrongState: another run has followed it, and the verb is not for the past.
        """
        known = self._tracker.fold.record(operation) or self.ended(operation)
        if known is None and (self._tracker.is_degraded or self.is_behind()):
            raise BusUnavailable("this replica does not hear the log")
        if known is None:
            raise Unknown("operation", operation)
        held, sequence = await self._tracker.standing(known.id, known.kind, known.model, known.node)
        if held is None and not operations.is_ended(known):
            raise BusUnavailable("this replica has yet to hear how it ended while it slept")
        is_past = held is None or (held.job != known.job and operation == known.job)
        if not is_past and held is not None:
            return held, sequence
        if operations.is_fulfilled(known, verb) or (verb == "dismiss" and operations.is_ended(known)):
            return known, None  # what is past is not in the list either
        if held is not None:
            raise WrongState(operation, f"{known.state}, and another run has followed it", verb)
        return known, sequence

    async def _seen(self, record: Record, revision: Revision) -> Record:
        """Return what an operation is at ``revision``, or later; from the log itself where this process lags behind."""
        if await self._tracker.reached(revision, OWNER_TIMEOUT):
            return self._tracker.fold.record(record.id) or record
        held, _ = await self._tracker.standing(record.id, record.kind, record.model, record.node)
        return held or record

    async def give_foreign(self, mirror: Mirror, verb: Verb) -> None:
        """Ask a foreign publisher to cancel its installation; nothing else can be asked of it (WIRE section 2).

        Raises:
            WrongState: it takes no such command.
        """
        if verb != "cancel" or mirror.done or not isinstance(mirror.status, GalleryStatus):
            raise WrongState(mirror.id, "another system's", verb)
        wanted = msgspec.json.encode(GalleryCancel(id=mirror.job))
        await self._tracker.bus.publish(subjects.gallery_cancel(mirror.job), wanted)

    async def give_node(self, name: str, verb: NodeVerb) -> None:
        """Make a node drain, or end its drain.

        Raises:
            Unknown: no node of this name is known.
            BusError: its process does not answer.
        """
        await self._request(name, Command(verb=verb, id=name), OWNER_TIMEOUT)
        await self._tracker.until(lambda: self._tracker.fold.nodes[name].draining == (verb == "drain"), OWNER_TIMEOUT)

    async def ask_node(
        self, name: str, verb: NodeVerb, question: object, answer: type[_Answer], timeout: float = OWNER_TIMEOUT
    ) -> _Answer:
        """Ask a node about its own disk, or to do something there, and return what it answers.

        Raises:
            BusError: its process does not answer within ``timeout`` seconds.
            NodeRefused: it could not, with the cause.
            Unknown: no node of this name is known.
        """
        command = Command(verb=verb, id=name, question=msgspec.Raw(msgspec.json.encode(question)))
        try:
            reply = msgspec.json.decode(await self._request(name, command, timeout), type=CommandReply)
            if reply.error:
                raise NodeRefused(name, reply.error)
            return msgspec.json.decode(reply.answer, type=answer)
        except msgspec.DecodeError as error:
            raise NodeRefused(name, f"its answer is not understood: {error}") from None

    async def _request(self, name: str, command: Command, timeout: float) -> bytes:
        node = self._tracker.fold.nodes.get(name)
        if node is None or node.left:
            raise Unknown("node", name, [each.name for each in self._tracker.fold.nodes.values() if not each.left])
        subject = subjects.command(node.process)
        return await self._tracker.bus.request(subject, msgspec.json.encode(command), timeout)

    async def check_name(self, name: str) -> None:
        """Raise `NameTaken` where another living process speaks for a node of this name."""
        node = self._tracker.fold.nodes.get(name)
        if node is None or node.left or node.process == self._tracker.process:
            return
        command = msgspec.json.encode(Command(verb="ping", id=name))
        with suppress(BusError):
            await self._tracker.bus.request(subjects.command(node.process), command, PING_TIMEOUT)
            raise NameTaken(name, node.kind)

    async def _ask_owner(self, record: Record, command: Command) -> Revision | None:
        if not _is_in_hand(record):
            return None
        try:
            subject = subjects.command(record.owner)
            answer = await self._tracker.bus.request(subject, msgspec.json.encode(command), OWNER_TIMEOUT)
            reply = msgspec.json.decode(answer, type=CommandReply)
        except (BusError, msgspec.DecodeError) as error:
            _logger.info("%s of %s: its owner does not answer (%s)", command.verb, record.id, error)
            return None
        return await self._tracker.place(reply.sequence) if reply.sequence else None

    async def _write(self, asked: Record, command: Command) -> Revision | None:
        held, sequence = await self._tracker.standing(asked.id, asked.kind, asked.model, asked.node)
        if held is None and not operations.is_ended(asked):
            return None  # it has ended since, so long ago that it was forgotten: to be looked at anew
        verb: Verb = msgspec.convert(command.verb, Verb)
        record = operations.commanded(held or asked, verb, self._tracker.now(), keep_partial=command.keep_partial)
        if held is None:
            record = msgspec.structs.replace(record, era=max(record.era, await self._tracker.present_era()))
        if verb == "retry":
            await archive.keep(self._tracker.bus.history, held or asked)
        with suppress(AppendConflict):
            return await self._tracker.write(record, sequence)
        return None

    async def _answer(self, payload: bytes) -> bytes:
        try:
            command = msgspec.json.decode(payload, type=Command)
            reply = await self._obey(command)
        except (msgspec.DecodeError, StagecastError, OSError) as error:
            reply = CommandReply(error=str(error))
        return msgspec.json.encode(reply)

    async def _obey(self, command: Command) -> CommandReply:
        if command.verb in {"drain", "undrain"} and self.drain is not None:
            self.drain(command.verb == "drain")
            return CommandReply()
        if command.verb == "ping":
            return CommandReply()
        if command.verb in self.questions:
            answer = await self.questions[command.verb](command.question)
            return CommandReply(answer=msgspec.Raw(msgspec.json.encode(answer)))
        ownership = self._tracker.owned.get(command.id)
        if ownership is None:
            return CommandReply(error="not owned here")
        if command.verb not in {"cancel", "pause"}:
            return CommandReply(error="the owner has no part in this")
        ownership.halt("cancel" if command.verb == "cancel" else "pause", keep_partial=command.keep_partial)
        await ownership.released.wait()
        verb: Verb = "cancel" if command.verb == "cancel" else "pause"
        if not operations.is_fulfilled(ownership.record, verb, keep_partial=command.keep_partial):
            return CommandReply(error="it came too late")
        return CommandReply(sequence=ownership.sequence)

    def _hear_gallery_cancel(self, _subject: str, payload: bytes) -> None:
        with suppress(msgspec.DecodeError):
            wanted = msgspec.json.decode(payload, type=GalleryCancel).id
            owned = [each for each in self._tracker.owned.values() if wanted in {each.record.id, each.record.job}]
            for ownership in owned:
                ownership.halt("cancel")
            record = self._tracker.fold.record(wanted)
            is_elsewhere = record is not None and not (_is_in_hand(record) and record.owner == self._tracker.process)
            if self._judges and record is not None and is_elsewhere and not operations.is_ended(record):
                task = asyncio.create_task(self._pass_on_cancel(record), name=f"cancel of {wanted}")
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _pass_on_cancel(self, record: Record) -> None:
        """Cancel what has no owner that obeys. All who judge do; the log takes it once.

        A living owner hears of it, too. One that has died a moment ago is still taken for alive: it gets its time.
        """

        def is_over() -> bool:
            held = self._tracker.fold.record(record.job)
            return held is None or operations.is_ended(held)

        if _is_in_hand(record) and await self._tracker.until(is_over, OWNER_TIMEOUT):
            return
        try:
            await self.give(record.job, "cancel")
        except StagecastError as error:
            _logger.info("a gallery's cancel of %s: %s", record.id, error.message)


def _is_in_hand(record: Record) -> bool:
    """Tell whether somebody works on an operation, as far as the log knows: its owner, who is to hear of commands."""
    is_at_it = record.state == "running" or (record.state == "stalled" and record.waits_on != "owner")
    return bool(record.owner) and is_at_it
