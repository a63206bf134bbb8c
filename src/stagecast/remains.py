"""Remains: what has arrived of a model that is not whole, which the cancel of its operation frees, or keeps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from stagecast.errors import Interrupted
from stagecast.messages import Record
from stagecast.ownership import Ownership


class Remains:
    """What lies on this disk, by the model's name: ``arrived`` counts its bytes, ``discard`` frees them. Both block."""

    def __init__(self, arrived: Callable[[str], int], discard: Callable[[str], int]) -> None:
        self._arrived = arrived
        self._discard = discard

    @asynccontextmanager
    async def of(self, ownership: Ownership) -> AsyncGenerator[None, None]:
        """Free or keep, as the cancel says that ends the work in the block; what else ends it leaves all there."""
        try:
            yield
        except (asyncio.CancelledError, Interrupted):
            if ownership.stopped_by == "cancel":
                await asyncio.shield(self._leave(ownership))
            raise

    async def clear(self, record: Record) -> None:
        """Free what stands of an operation that was cancelled while nobody worked on it: paused, queued, stalled.

        Processes may share one folder: whoever is first frees it, and what another one works on stays.
        """
        if not record.keep_partial:
            await asyncio.to_thread(self._discard, record.model)

    async def _leave(self, ownership: Ownership) -> None:
        if ownership.keep_partial:
            ownership.bytes_kept = await asyncio.to_thread(self._arrived, ownership.record.model)
        else:
            await asyncio.to_thread(self._discard, ownership.record.model)
