"""Commands: cancel, pause, resume, retry and dismiss, given on any replica, obeyed by whoever owns the operation.

A living owner is asked and answers once the log shows the effect. Where nobody works on the operation, or its owner
does not answer, the command is written straight into the log: the fence stops an owner that only slept.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

import msgspec

from stagecast import archive, operations, subjects
from stagecast.errors import AppendConflict, BusError, NameTaken, StagecastError, Unknown, WrongState
from stagecast.fold import Mirror
from stagecast.messages import Command, CommandReply, GalleryCancel, GalleryStatus, NodeVerb, Record, State, Verb
from stagecast.revision import Revision
from stagecast.tracker import Tracker

_logger = logging.getLogger(__name__)

_EFFECTS: Final[dict[str, State]] = {"cancel": "cancelled", "pause": "paused"}
PING_TIMEOUT: Final = 1.0
OWNER_TIMEOUT: Final = 2.0
"""Seconds within which an owner obeys; then the command is written over its head."""


class Commands:
    """Gives commands to other processes' operations, and obeys those for this process's own."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self.drain: Callable[[bool], None] | None = None
        """What draining means for this process's node, if it has one."""

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Commands, None]:
        """Obey for as long as the block lasts."""
        await self._tracker.bus.answer(subjects.command(self._tracker.process), self._answer)
        await self._tracker.bus.subscribe(subjects.GALLERY_CANCEL, self._hear_gallery_cancel)
        yield self

    async def give(self, operation: str, verb: Verb) -> tuple[Record, Revision]:
        """Make ``verb`` come true for an operation, named by id or job; return its record and where the log has it.

        Raises:
            Unknown: nobody knows the operation.
            WrongState: its state forbids the verb.
        """
        while True:
            record = self._tracker.fold.record(operation)
            if record is None:
                raise Unknown("operation", operation)
            operations.check_allowed(record, verb)
            revision = await self._ask_owner(record, verb) or await self._write(record, verb)
            if revision is not None:
                return await self._seen(record, revision), revision

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
        node = self._tracker.fold.nodes.get(name)
        if node is None or node.left:
            raise Unknown("node", name, [each.name for each in self._tracker.fold.nodes.values() if not each.left])
        command = msgspec.json.encode(Command(verb=verb, id=name))
        await self._tracker.bus.request(subjects.command(node.process), command, OWNER_TIMEOUT)
        await self._tracker.until(lambda: self._tracker.fold.nodes[name].draining == (verb == "drain"), OWNER_TIMEOUT)

    async def check_name(self, name: str) -> None:
        """Raise `NameTaken` where another living process speaks for a node of this name."""
        node = self._tracker.fold.nodes.get(name)
        if node is None or node.left or node.process == self._tracker.process:
            return
        command = msgspec.json.encode(Command(verb="ping", id=name))
        with suppress(BusError):
            await self._tracker.bus.request(subjects.command(node.process), command, PING_TIMEOUT)
            raise NameTaken(name, node.kind)

    async def _ask_owner(self, record: Record, verb: Verb) -> Revision | None:
        if not record.owner or record.state != "running":
            return None
        command = msgspec.json.encode(Command(verb=verb, id=record.id))
        try:
            answer = await self._tracker.bus.request(subjects.command(record.owner), command, OWNER_TIMEOUT)
            reply = msgspec.json.decode(answer, type=CommandReply)
        except (BusError, msgspec.DecodeError) as error:
            _logger.info("%s of %s: its owner does not answer (%s)", verb, record.id, error)
            return None
        return await self._tracker.place(reply.sequence) if reply.sequence else None

    async def _write(self, record: Record, verb: Verb) -> Revision | None:
        held, sequence = await self._tracker.standing(record.id, record.kind, record.model, record.node)
        now = operations.commanded(held or record, verb, self._tracker.now())
        if verb == "retry":
            await archive.keep(self._tracker.bus.history, held or record)
        with suppress(AppendConflict):
            return await self._tracker.write(now, sequence)
        return None

    async def _answer(self, payload: bytes) -> bytes:
        try:
            command = msgspec.json.decode(payload, type=Command)
            reply = await self._obey(command)
        except (msgspec.DecodeError, StagecastError) as error:
            reply = CommandReply(error=str(error))
        return msgspec.json.encode(reply)

    async def _obey(self, command: Command) -> CommandReply:
        if command.verb in {"drain", "undrain"} and self.drain is not None:
            self.drain(command.verb == "drain")
            return CommandReply()
        if command.verb == "ping":
            return CommandReply()
        ownership = self._tracker.owned.get(command.id)
        if ownership is None:
            return CommandReply(error="not owned here")
        if command.verb not in {"cancel", "pause"}:
            return CommandReply(error="the owner has no part in this")
        ownership.halt("cancel" if command.verb == "cancel" else "pause")
        await ownership.released.wait()
        # It may have been stopped for another reason just before, or have ended by itself: then this did nothing.
        if ownership.record.state != _EFFECTS[command.verb]:
            return CommandReply(error=f"it is {ownership.record.state}")
        return CommandReply(sequence=ownership.sequence)

    def _hear_gallery_cancel(self, _subject: str, payload: bytes) -> None:
        with suppress(msgspec.DecodeError):
            wanted = msgspec.json.decode(payload, type=GalleryCancel).id
            for ownership in list(self._tracker.owned.values()):
                if wanted in {ownership.record.id, ownership.record.job}:
                    ownership.halt("cancel")
