"""Room for a staging: promised before its first byte, or waited for where whoever asked wants that."""

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
    record, clock, asked_at = ownership.record, asyncio.get_running_loop().time, float("-inf")
    is_told, begins = False, f"it begins once {needed:,} bytes are free and promised to nobody"
    while True:
        try:
            asked = node.store.reserve(needed, present, record.id)
            return await in_thread(ownership.stop, stack.enter_context, asked)
        except NotEnoughSpace as error:
            refusal = error
        if not refusal.is_hopeless and clock() - asked_at >= ASK_AGAIN:
            asked_at = clock()
            if await node.make_room(needed):
                continue
        if WAIT_FOR_SPACE not in record.parameters or refusal.is_hopeless:
            raise refusal
        if not is_told:
            ownership.tell(f"waiting for room: {begins}")
            is_told = True
        ownership.wait("room", f"{begins}; {refusal.free:,} are free, {refusal.promised:,} of them promised")
        await asyncio.sleep(POLL)
