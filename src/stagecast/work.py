"""Blocking work in a thread, for callers that may be cancelled."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(stop: threading.Event, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what ``work`` returns, run in a thread of its own.

    Cancelling sets ``stop``, which the work must heed, waits for the thread to end, and then goes on being cancelled:
    no thread outlives its caller, however often that is cancelled.
    """
    # Not in the loop's pool, which has few threads: long work would keep others waiting that are said to be at it, and
    # whoever else has something short to do there.
    outcome: Future[T] = Future()
    outcome.set_running_or_notify_cancel()
    run = partial(copy_context().run, work, *args, **kwargs)
    name = f"stagecast-{getattr(work, '__name__', type(work).__name__)}"
    ended = asyncio.wrap_future(outcome)
    threading.Thread(target=_settle, args=(outcome, run), name=name, daemon=False).start()
    try:
        return await asyncio.shield(ended)
    except asyncio.CancelledError:
        stop.set()
        while not ended.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([ended])
        ended.exception()
        raise


def _settle(outcome: Future[T], work: Callable[[], T]) -> None:
    try:
        outcome.set_result(work())
    except BaseException as error:  # noqa: BLE001  # it is raised where the caller waits
        # Python before 3.12 cannot raise a StopIteration where somebody awaits: the caller would wait for ever.
        is_odd = isinstance(error, StopIteration)
        outcome.set_exception(RuntimeError(f"it raised {error!r}") if is_odd else error)
        del outcome  # the error's traceback holds this frame: together they would wait for the garbage collector
