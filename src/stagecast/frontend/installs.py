"""Installations: a replica pulls a model from upstream into the models folder. Any replica can go on with another's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import wait
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Final

from stagecast import gallery, installation
from stagecast.draft import draft_bytes
from stagecast.duty import Duty
from stagecast.errors import BadInput, DigestMismatch, Interrupted, NotEnoughSpace, Unknown
from stagecast.frontend.replica import Replica
from stagecast.gallery import Source
from stagecast.installation import PATIENCE
from stagecast.manifest import Manifest
from stagecast.messages import Hindrance, Record
from stagecast.ownership import Ownership
from stagecast.plan import WAIT_FOR_SPACE
from stagecast.remains import Remains
from stagecast.revision import Revision
from stagecast.room import WaitForRoom
from stagecast.stream import STALL
from stagecast.throttle import Throttle
from stagecast.work import in_thread

_UNLESS_A_BYTE_COMES: Final = f"it asks again, and fails after {PATIENCE:.0f} s without one"

_POLL: Final = 0.1
_PATIENCE: Final = 6.0
"""Seconds without a byte of an index for which somebody waits for the answer to a request."""


class Installs:
    """Starts installations, and takes over those whose owner is dead."""

    def __init__(self, replica: Replica, throttle: Throttle | None = None) -> None:
        self._limit = throttle.limit if throttle else None
        self._replica = replica
        self._tracker = replica.tracker
        store = replica.node.store
        self._remains = Remains(partial(draft_bytes, store.models), partial(installation.discard, store))
        self._duty = Duty(replica.tracker, "installation", self._install, clear=self._remains.clear)

    async def start(
        self, reference: str, index: str, name: str, sha256: str, *, wait_for_space: bool = False
    ) -> tuple[Record, Revision]:
        """Resolve what is meant and begin to install it; return the operation as it stands.

        ``wait_for_space``: where the disk has no room now, it is waited for, instead of failing.

        Raises:
            BadInput: the reference, the index or an entry of it cannot be used.
            Unknown: the index has no such entry.
        """
        parameters = {"reference": reference, "gallery": index, "name": name, "sha256": sha256}
        parameters |= {WAIT_FOR_SPACE: "yes"} if wait_for_space else {}
        source = await asyncio.to_thread(self._resolve, parameters, threading.Event(), stall=_PATIENCE)
        record, revision = await self._tracker.open(
            "installation", source.model, cause="api", parameters=parameters, claim=True
        )
        if record.owner == self._tracker.process:
            self._duty.take(record)
        await self._tracker.reached(revision, 2.0)
        return self._tracker.fold.record(record.id) or record, revision

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Installs, None]:
        """Take over for as long as the block lasts; what is owned then is left for others to take over."""
        async with self._duty.running():
            yield self

    async def _install(self, ownership: Ownership) -> None:
        try:
            async with self._remains.of(ownership):
                await self._bring(ownership)
        except DigestMismatch as error:
            raise (error.given() if ownership.record.parameters.get("sha256") else error) from None

    async def _bring(self, ownership: Ownership) -> None:
        store = self._replica.node.store
        waiting = partial(ownership.wait, then=_UNLESS_A_BYTE_COMES)
        await ownership.change(phase="planning")
        source = await in_thread(ownership.stop, self._resolve, ownership.record.parameters, ownership.stop, waiting)
        source = await in_thread(ownership.stop, installation.measure, source, stop=ownership.stop, waiting=waiting)
        present = await asyncio.to_thread(installation.staged_bytes, source, store)
        await ownership.change(
            phase="transferring", bytes_done=present, bytes_present=present, total_files=len(source.files),
            bytes_total=source.size or ownership.record.bytes_total,
        )  # fmt: skip
        loop = asyncio.get_running_loop()
        install = partial(
            installation.install, source, store,
            advance=ownership.advance, found=ownership.find, checked=partial(ownership.check, total=0),
            waiting=waiting, spent=ownership.spend, stop=ownership.stop, limit=self._limit,
            entered=lambda index: ownership.enter(index + 1, source.files[index].path),
            completed=lambda index: ownership.complete(index + 1, source.files[index].path),
            whole=lambda: until_decided(ownership, loop),
        )  # fmt: skip
        manifest = await self._with_room(ownership, install)
        await ownership.change(phase="publishing", bytes_total=manifest.size, bytes_done=manifest.size)
        ownership.settle()
        await self._replica.node.announce(manifest.model)
        await self._replica.node.settled()

    async def _with_room(self, ownership: Ownership, install: Callable[[], Manifest]) -> Manifest:
        """Return what ``install`` returns, once there is room for it."""
        room = WaitForRoom(ownership, self._replica.node)
        while True:
            try:
                return await in_thread(ownership.stop, install)
            except NotEnoughSpace as error:
                refusal = error
            await room.until_there_is_some(refusal)

    def _resolve(
        self, parameters: dict[str, str], stop: threading.Event, waiting: Callable[[Hindrance], None] = lambda _: None,
        stall: float = STALL,
    ) -> Source:  # fmt: skip
        """Return what is meant, from the index that was named, else from the first configured one that has it."""
        reference, name, sha256 = parameters["reference"], parameters["name"], parameters["sha256"]
        is_address = "://" in reference or reference.startswith("/")
        if not is_address and not parameters["gallery"] and not self._replica.galleries:
            raise BadInput(f"{reference!r} is neither a URL nor an absolute path, and no gallery is named that has it")
        indexes = [parameters["gallery"]] if parameters["gallery"] else list(self._replica.galleries)
        found = partial(gallery.resolve, reference, name=name, sha256=sha256, stop=stop, stall=stall, waiting=waiting)
        for index in indexes[:-1]:
            with suppress(Unknown):
                return found(index)
        return found(indexes[-1] if indexes else "")


def until_decided(ownership: Ownership, loop: asyncio.AbstractEventLoop) -> None:
    """Block a thread until the installation is past stopping. Raises `Fenced`, or `Interrupted` if it was stopped."""
    deciding = asyncio.run_coroutine_threadsafe(_decide(ownership), loop)
    while not wait([deciding], _POLL).done:
        # The log may be away for long, and the process about to end meanwhile.
        if ownership.stop.is_set() and deciding.cancel():
            raise Interrupted("cancel")
    deciding.result()


async def _decide(ownership: Ownership) -> None:
    """Let nothing stop the installation any more, and say so, unless something has by now."""
    await ownership.change(phase="publishing")
    if ownership.stopped_by is not None:
        raise Interrupted(ownership.stopped_by)
    ownership.settle()
