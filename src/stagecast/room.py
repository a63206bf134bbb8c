"""Room for a transfer: promised before its first byte, or waited for where whoever asked wants that."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import Final

from stagecast.errors import NotEnoughSpace
from stagecast.node import Node
from stagecast.ownership import Ownership
from stagecast.plan import WAIT_FOR_SPACE
from stagecast.reservation import Reservation
from stagecast.work import in_thread

POLL: Final = 0.5
"""Seconds between two looks at a disk that has no room: what frees it may be no process of ours."""
ASK_AGAIN: Final = 10.0
"""Seconds between two times at which models that may go are asked for their room: that reads all of the disk."""


async def promised(stack: ExitStack, ownership: Ownership, node: Node, needed: int, present: int) -> Reservation:
    """Return the promise of ``needed`` bytes, which ``stack`` keeps; ``present`` bytes are there already.

    Raises:
        NotEnoughSpace: there is no room, and nobody wants to wait for it or it could never be had.
    """
    waiting, record = WaitForRoom(ownership, node), ownership.record
    while True:
        try:
            asked = node.store.reserve(needed, present, record.id)
            return await in_thread(ownership.stop, stack.enter_context, asked)
        except NotEnoughSpace as error:
            refusal = error
        await waiting.look_again(refusal)


class WaitForRoom:
    """One operation's wait for room on its node's disk."""

    def __init__(self, ownership: Ownership, node: Node) -> None:
        self._ownership = ownership
        self._node = node
        self._clock = asyncio.get_running_loop().time
        self._asked_at = float("-inf")
        self._is_told = False

    async def until_there_is_some(self, refusal: NotEnoughSpace) -> None:
        """Return once there is room for what was refused. Raises `NotEnoughSpace` as `look_again` does."""
        store, purpose = self._node.store, self._ownership.record.id
        while True:
            await self.look_again(refusal)
            try:
                with store.reserve(refusal.needed, refusal.present, purpose):
                    return
            except NotEnoughSpace as error:
                refusal = error

    async def look_again(self, refusal: NotEnoughSpace) -> None:
        """Return when it is worth to look at the disk again: models that may go made room, or a while has passed.

        Raises:
            NotEnoughSpace: the refusal, where nobody wants to wait, or the room could never be had.
        """
        if not refusal.is_hopeless and self._clock() - self._asked_at >= ASK_AGAIN:
            self._asked_at = self._clock()
            if await self._node.make_room(refusal.needed):
                return
        if WAIT_FOR_SPACE not in self._ownership.record.parameters or refusal.is_hopeless:
            raise refusal
        begins = f"it begins once {refusal.needed:,} bytes are free and promised to nobody"
        if not self._is_told:
            self._ownership.tell(f"waiting for room: {begins}")
            self._is_told = True
        free = f"{refusal.free:,} are free, {refusal.promised:,} of them promised"
        self._ownership.wait("room", f"{begins}; {free}")
        await asyncio.sleep(POLL)
