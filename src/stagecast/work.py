"""Blocking work in a thread, for callers that may be cancelled."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(stop: threading.Event, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what ``work`` returns, run in a thread of its own.

    Cancelling sets ``stop``, which the work must heed, waits for the thread to end, and then goes on being cancelled:
    no thread outlives its caller.
    """
    thread = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait([thread])
        if not thread.cancelled():
            thread.exception()
        raise
