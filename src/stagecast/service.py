"""A service: any asyncio program whose long-running work shows the same on every one of its replicas.

Alone or with NATS it is the very participant that every process of Stagecast is; only what the work is, is the
program's own. Several programs, and a Stagecast cluster, may share one NATS server: each then shows all.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import socket
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

from stagecast import operations, rows
from stagecast.bus import Bus
from stagecast.bus.memory import MemoryBus
from stagecast.duty import Duty, Perform
from stagecast.errors import BadInput, Busy, NotReady, StagecastError, WrongState
from stagecast.manifest import check_name
from stagecast.messages import Kind, Record, Verb
from stagecast.operation import Operation, check_kind, check_work, whole
from stagecast.ownership import Ownership
from stagecast.participant import ALONE_LOG, Participant, outlive, participating
from stagecast.revision import Revision
from stagecast.rows import Row
from stagecast.settings import Bounds
from stagecast.tracker import Tracker
from stagecast.work import in_thread

if TYPE_CHECKING:
    from stagecast.frontend.mounted import Mounted
    from stagecast.proxy import Receive, Scope, Send

Handler = Callable[[Operation], Awaitable[None]] | Callable[[Operation], None]
HandlerT = TypeVar("HandlerT", bound=Handler)


class Service:
    """One process of a program that has long-running work.

    ``nats`` is the URL of a NATS server with JetStream that all replicas share; without one this process is alone, and
    nothing is broadcast. What there was then ends with the process, or is kept in the folder ``data`` for the next one.
    ``name`` is what people see as the replica that answers, by default host and process id. With
    an ``api_key`` the mounted routes ask for it; without one, who may use them is the program's own matter.

    Everything but `performs` and `app` needs the lifespan to have begun, and raises `StagecastError` without.
    """

    def __init__(
        self, *, nats: str | None = None, data: str | Path | None = None, name: str = "", api_key: str = ""
    ) -> None:
        self.name = name or f"{socket.gethostname()}-{os.getpid()}"
        check_name(self.name, "service")
        self._nats = nats or ""
        self._data = Path(data) if data else None
        self._api_key = api_key
        self._performers: dict[Kind, tuple[Handler, int]] = {}
        self._blocks: set[str] = set()
        self._participant: Participant | None = None
        self._mounted: Mounted | None = None
        self._is_served = False
        self._written = Revision("", 0)

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncGenerator[None, None]:  # noqa: ARG002  # a framework's form
        """Take part for as long as the block lasts. It begins when the log was read: what runs is known by then (L4).

        Made for ``FastAPI(lifespan=service.lifespan)``; ``app`` is not looked at, so a lifespan of one's own can say
        ``async with service.lifespan(): ...``. What this process performs at the end is left to another one.

        Raises:
            BusError: NATS cannot be reached, or cannot carry the log.
            StagecastError: another process has the data folder, or it cannot be written.
        """
        if self._participant is not None:
            raise BadInput(f"{self.name} takes part already; one Service has one lifespan at a time")
        async with AsyncExitStack() as stack:
            bus = await stack.enter_async_context(self._bus())
            kinds = tuple(self._performers)
            participant = await stack.enter_async_context(participating(bus, self.name, judges=True, performs=kinds))
            if not self._nats:
                outlive(participant)
            self._participant = participant
            stack.callback(self._forget)
            if self._is_served:
                self._mount()
            for kind, (handler, at_once) in self._performers.items():
                duty = Duty(participant.tracker, kind, _performing(handler), at_once=at_once)
                await stack.enter_async_context(duty.running())
            stack.callback(participant.tracker.close)
            stack.enter_context(_ended_by_signals(participant.tracker.close))
            yield

    def performs(self, kind: Kind, *, at_once: int = 1) -> Callable[[HandlerT], HandlerT]:
        """Decorate the function that does work of one kind; whichever process has one and is free takes what is queued.

        A function that returns has succeeded, one that raises has failed with that cause. Cancelling or pausing, from
        any replica, cancels a coroutine; a plain function runs in a thread of its own and stops at its next
        `Operation.advance`. Where a process dies, another one that performs the kind goes on, with ``attempt`` + 1.
        ``at_once`` is how many of them one process does at a time; 0 sets no limit.

        Raises:
            BadInput: the kind cannot be one, or this service performs it already, or has begun.
        """
        check_kind(kind)
        whole(at_once, "at_once")
        if kind in self._performers or self._participant is not None:
            why = "is performed already" if kind in self._performers else "comes after the lifespan has begun"
            raise BadInput(f"{kind} {why}; decorate one function for it, where the module is imported")

        def keep(handler: HandlerT) -> HandlerT:
            self._performers[kind] = (handler, at_once)
            return handler

        return keep

    async def submit(
        self, kind: Kind, name: str, *, total: int = 0, parameters: Mapping[str, str] | None = None
    ) -> Row:
        """Queue a piece of work for whoever `performs` its kind, here or elsewhere; return its row, as all see it now.

        ``total`` counts units of the program's own, 0 while it is not known. Work of this kind and name that has not
        ended is returned as it stands. Where no living process performs the kind it stays queued and says so.

        Raises:
            BadInput: kind, name, total or parameters cannot be meant.
            BusError: the log cannot be written; nothing was queued, or it shows.
        """
        check_work(kind, name, parameters or {})
        tracker = self._running.tracker
        record, revision = await tracker.open(
            kind, name, cause="submit", parameters=dict(parameters or {}), bytes_total=whole(total, "total")
        )
        self._written = self._written.later(revision)
        await tracker.reached(revision, 2.0)
        return rows.row(tracker.fold.record(record.id) or record)

    @asynccontextmanager
    async def operation(
        self, kind: Kind, name: str, *, total: int = 0, parameters: Mapping[str, str] | None = None
    ) -> AsyncGenerator[Operation, None]:
        """Show what the block does as an operation. It is bound to this process: no other goes on with it.

        A block that returns has succeeded, one that raises has failed with that cause, and the exception goes on.
        Cancelling or pausing, from any replica, cancels the block; then `Interrupted` is raised in its place.

        Raises:
            BadInput: kind, name, total or parameters cannot be meant.
            Busy: it is being worked on already.
            WrongState: somebody has paused it.
            BusError: the log cannot be written.
            Interrupted: it was cancelled or paused while the block ran.
        """
        check_work(kind, name, parameters or {})
        tracker, identifier = self._running.tracker, operations.operation_id(kind, name)
        if identifier in self._blocks or identifier in tracker.owned:
            raise Busy(identifier, self.name)
        self._blocks.add(identifier)
        try:
            record, _ = await tracker.open(
                kind, name, cause=operations.BLOCK, parameters=dict(parameters or {}),
                bytes_total=whole(total, "total"), claim=True,
            )  # fmt: skip
            _check_free(record, tracker.process)
            async with tracker.own(record, passes_on=True) as ownership:
                if ownership is None:
                    raise Busy(identifier, "another process")
                await _shown(tracker, ownership)
                yield (working := Operation(ownership))
            await _shown(tracker, ownership)
            if ownership.stopped_by is not None:
                raise working.interruption()
        finally:
            self._blocks.discard(identifier)

    def operations(self) -> list[Row]:
        """Return what is under way, and what has failed and nobody dismissed: by start time, then id. No I/O."""
        return rows.listed(self._running.fold)

    def row(self, operation: str) -> Row:
        """Return one operation by its id or jobID, also after its end. Raises `Unknown`. No I/O."""
        return self._running.row(operation)

    @property
    def revision(self) -> str:
        """How far this process has folded the log, or written it: opaque, to be sent along as ``Stagecast-Revision``.

        Who sends it back as ``Stagecast-Min-Revision`` is shown nothing older, on whichever replica that lands.
        """
        return str(self._written.later(self._running.tracker.revision))

    async def ended(self, operation: str) -> Row:
        """Wait until an operation, by its id or jobID, has succeeded, failed or been cancelled; return its row.

        Raises:
            Unknown: nobody knows it.
            StagecastError: this process ends first.
        """
        participant = self._running
        participant.row(operation)
        tracker = participant.tracker
        await tracker.until(lambda: tracker.is_closing or participant.row(operation).state in operations.ENDED)
        row = participant.row(operation)
        if row.state not in operations.ENDED:
            raise NotReady(f"{self.name} ends; wait for {operation} on another replica")
        return row

    async def command(self, operation: str, verb: Verb) -> Row:
        """Cancel, pause, resume, retry or dismiss an operation, wherever it runs; return its row once that is so.

        Raises:
            Unknown: nobody knows the operation.
            WrongState: its state forbids the verb.
            BusError: the log cannot be written.
        """
        participant = self._running
        mirror = participant.mirror(operation)
        if mirror is not None:
            await participant.commands.give_foreign(mirror, verb)
            return rows.mirror_row(mirror)
        record, revision = await participant.commands.give(operation, verb)
        self._written = self._written.later(revision)
        return rows.detailed(record, rows.shares(participant.fold, record))

    @property
    def app(self) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
        """The routes as an ASGI application: the list, ``/stream``, ``/history``, ``/{id}`` and ``/{id}/{verb}``.

        Where it is mounted, anywhere in one's own application, is a base URL for `Client` and ``stagecast ops --url``.
        """
        self._is_served = True
        return self._serve

    async def refuse(self, request: object, error: Exception) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
        """Return the answer to a request that raised a `StagecastError`: its status, its word and its message as JSON.

        That is FastAPI's and Starlette's form: ``exception_handlers={stagecast.StagecastError: service.refuse}``.
        """
        from stagecast.frontend.refusals import refuse

        del request
        refusal = error if isinstance(error, StagecastError) else StagecastError(str(error))

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            del scope, receive
            await refuse(refusal, "", send)

        return answer

    @property
    def _running(self) -> Participant:
        if self._participant is None:
            raise NotReady("the service's lifespan has not begun, or is over: see Service.lifespan")
        return self._participant

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self._mounted or self._mount())(scope, receive, send)

    def _mount(self) -> Mounted:
        from stagecast.frontend.mounted import Mounted

        self._mounted = Mounted(self._running, self._api_key)
        return self._mounted

    def _forget(self) -> None:
        self._participant = self._mounted = None

    @asynccontextmanager
    async def _bus(self) -> AsyncGenerator[Bus, None]:
        if self._nats:
            from stagecast.bus.nats import connect

            async with connect(self._nats, self.name) as shared:
                yield shared
        elif self._data is not None:
            from stagecast.bus.sqlite import opened

            async with opened(self._data / ALONE_LOG, Bounds()) as kept:
                yield kept
        else:
            yield MemoryBus()


def _performing(handler: Handler) -> Perform:
    async def perform(ownership: Ownership) -> None:
        working = Operation(ownership)
        if inspect.iscoroutinefunction(handler):
            await handler(working)
            return
        found = await in_thread(ownership.stop, handler, working)
        if inspect.isawaitable(found):  # a callable object, or a wrapper, that does not look like a coroutine function
            await found

    return perform


async def _shown(tracker: Tracker, ownership: Ownership) -> None:
    """Return once this process shows what the owner has written last: whoever asks here next sees it (law L5)."""
    await tracker.reached(Revision(tracker.identity, ownership.sequence), 2.0)


def _check_free(record: Record, process: str) -> None:
    """Raise `Busy` where a living process has an operation that this one wants, `WrongState` where it is paused."""
    if record.state == "paused":
        raise WrongState(record.id, record.state, "begin")
    is_left = record.state == "stalled" and record.waits_on == "owner"
    if record.owner not in {"", process} and not is_left:
        raise Busy(record.id, record.owner)


@contextmanager
def _ended_by_signals(close: Callable[[], None]) -> Iterator[None]:
    """Call ``close`` as soon as the process is told to end, beside whatever the server does then.

    A server first waits for its responses and only then ends the lifespan; event streams would keep it for ever.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    kept = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        kept[number] = held = signal.getsignal(number)
        if callable(held):
            signal.signal(number, _preceded(held, partial(loop.call_soon_threadsafe, close)))
    ours = {number: signal.getsignal(number) for number in kept}
    try:
        yield
    finally:
        for number, held in kept.items():
            if signal.getsignal(number) is ours[number]:
                signal.signal(number, held)


def _preceded(handle: Callable[[int, FrameType | None], object], first: Callable[[], object]) -> Callable[..., None]:
    def both(number: int, frame: FrameType | None) -> None:
        first()
        handle(number, frame)

    return both
