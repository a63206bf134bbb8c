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


async def promised(stack: ExitStack, ownership: Ownership, node: Node, needed: int, present: int) -> Reservation:
    """Return the promise of ``needed`` bytes, which ``stack`` keeps; ``present`` bytes are there already.

    Raises:
        NotEnoughSpace: there is no room, and nobody wants to wait for it or it could never be had.
    """
    record, has_asked = ownership.record, False
    while True:
        try:
            asked = node.store.reserve(needed, present, record.id)
            return await in_thread(ownership.stop, stack.enter_context, asked)
        except NotEnoughSpace as error:
            if not error.is_hopeless and not has_asked and await node.make_room(needed):
                has_asked = True
                continue
            if WAIT_FOR_SPACE not in record.parameters or error.is_hopeless:
                raise
            begins = f"it begins once {needed:,} bytes are free and promised to nobody"
            ownership.tell(f"waiting for room: {begins}")
            ownership.wait("room", f"{begins}; {error.free:,} are free, {error.promised:,} of them promised")
        await asyncio.sleep(POLL)
