"""An event loop over many processes in virtual time: one seed, one order of everything, no clock and no thread.

Each callback and each timer belongs to a process. Inside a process asyncio's own order holds, first in, first out;
which process takes the next step is drawn at random. Time passes only while nobody has anything to do, so minutes of a
quiet cluster cost what its timers cost. A process can be paused at any step (its callbacks, and the timers that mature
meanwhile, wait for it) and killed at any step (its callbacks are dropped, and nothing of it reaches the outside).
"""

from __future__ import annotations

import asyncio
import heapq
import random
import sys
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any


class Violation(Exception):
    """A law is broken. Raised out of the step that broke it."""


class Handle:
    """A callback that waits for its turn, or for its time."""

    __slots__ = ("args", "callback", "context", "process")

    def __init__(
        self, process: Process, callback: Callable[..., object], args: tuple[Any, ...], context: Context | None
    ) -> None:
        self.process = process
        self.callback: Callable[..., object] | None = callback
        self.args = args
        self.context = context

    def cancel(self) -> None:
        """Never run it."""
        self.callback, self.args = None, ()

    def cancelled(self) -> bool:
        """Tell whether it was cancelled."""
        return self.callback is None


class Process:
    """Whoever takes steps: one process of the cluster, the server, or the world around them."""

    __slots__ = ("countdown", "is_dead", "is_paused", "loop", "name", "ready", "tasks", "trigger", "watch")

    def __init__(self, loop: Loop, name: str) -> None:
        self.loop = loop
        self.name = name
        self.ready: deque[Handle] = deque()
        self.tasks: list[asyncio.Task[Any]] = []
        self.is_paused = False
        self.is_dead = False
        self.watch: Callable[[], None] | None = None
        """Called after each of its steps."""
        self.countdown = 0
        self.trigger: Callable[[], None] | None = None
        """Called after ``countdown`` more of its steps: by that a fault lands between any two of them."""

    def spawn(self, work: Coroutine[Any, Any, Any], name: str = "") -> asyncio.Task[Any]:
        """Begin a task of this process, from outside."""
        before, self.loop.current = self.loop.current, self
        try:
            return self.loop.create_task(work, name=name or self.name)
        finally:
            self.loop.current = before

    def post(self, callback: Callable[..., object], *args: Any) -> Handle:
        """Queue a callback of this process, from outside."""
        return self.loop.post(self, Handle(self, callback, args, None))

    def post_at(self, when: float, callback: Callable[..., object], *args: Any) -> Handle:
        """Queue a callback of this process for a time. Of those for one time the first to be queued comes first."""
        return self.loop.post_at(when, Handle(self, callback, args, None))

    def pause(self) -> None:
        """Let it take no step until it wakes."""
        if not self.is_paused:
            self.is_paused = True
            if self.ready and not self.is_dead:
                self.loop.runnable.remove(self)

    def wake(self) -> None:
        """Let it go on; whatever came meanwhile waits in order."""
        if self.is_paused:
            self.is_paused = False
            if self.ready and not self.is_dead:
                self.loop.runnable.append(self)

    def kill(self) -> None:
        """End it between two steps, as SIGKILL does."""
        if not self.is_dead:
            if self.ready and not self.is_paused:
                self.loop.runnable.remove(self)
            self.is_dead = True
            self.ready.clear()
            self.trigger, self.watch = None, None


class Loop(asyncio.AbstractEventLoop):
    """The loop that all simulated processes share."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.steps = 0
        self.runnable: list[Process] = []
        self.processes: list[Process] = []
        self.current = self.process("world")
        self.world = self.current
        self.violation: Violation | None = None
        """Set by whoever finds one inside of a task, where raising it would be that task's own affair."""
        self.failures: list[str] = []
        """What went wrong outside of anybody's care: an exception in a callback, or one that no task waited for."""
        self._now = 0.0
        self._timers: list[tuple[float, int, Handle]] = []
        self._queued = 0
        self._is_running = False

    def process(self, name: str) -> Process:
        """Make a process."""
        process = Process(self, name)
        self.processes.append(process)
        return process

    def post(self, process: Process, handle: Handle) -> Handle:
        """Let ``process`` run the handle after all that is ready in it."""
        if not process.is_dead:
            if not process.ready and not process.is_paused:
                self.runnable.append(process)
            process.ready.append(handle)
        return handle

    def post_at(self, when: float, handle: Handle) -> Handle:
        """Let the handle's process run it at ``when``."""
        if not handle.process.is_dead:
            self._queued += 1
            heapq.heappush(self._timers, (when, self._queued, handle))
        return handle

    def run(self, until: Callable[[], bool], limit: float) -> bool:
        """Take steps until ``until``, asked whenever time is about to pass, or up to virtual time ``limit``.

        Return whether ``until`` held. Raises whatever a process's ``watch`` raises.
        """
        events._set_running_loop(self)
        self._is_running = True
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(finalizer=_ignore)
        try:
            while True:
                self._run_ready()
                if until():
                    return True
                if not self._pass_time(limit):
                    return False
        finally:
            self._is_running = False
            sys.set_asyncgen_hooks(*hooks)
            events._set_running_loop(None)

    def run_until_complete(self, future: Any) -> Any:
        """Run a coroutine as a task of the world and return what it returns, for the tests of the parts."""
        task = self.create_task(future)
        if not self.run(task.done, float("inf")):
            raise RuntimeError("nothing is left to wait for")
        return task.result()

    def _run_ready(self) -> None:
        runnable, chance = self.runnable, self.random.random
        while runnable:
            process = runnable[int(chance() * len(runnable))] if len(runnable) > 1 else runnable[0]
            ready = process.ready
            handle = ready.popleft()
            if not ready:
                runnable.remove(process)
            callback = handle.callback
            if callback is None:
                continue
            self.current = process
            self.steps += 1
            try:
                if handle.context is None:
                    callback(*handle.args)
                else:
                    handle.context.run(callback, *handle.args)
            except Violation:
                raise
            except Exception as error:  # noqa: BLE001  # whatever it is, the run fails with it
                self.failures.append(f"{process.name}: {callback} raised {error!r}")
            if process.watch is not None:
                process.watch()
            if self.violation is not None:
                raise self.violation
            if process.countdown:
                self._count_down(process)
        self.current = self.world

    def _count_down(self, process: Process) -> None:
        process.countdown -= 1
        if not process.countdown and process.trigger is not None:
            trigger, process.trigger = process.trigger, None
            self.current = self.world
            trigger()

    def _pass_time(self, limit: float) -> bool:
        timers = self._timers
        while timers and (timers[0][2].callback is None or timers[0][2].process.is_dead):
            heapq.heappop(timers)
        if not timers or timers[0][0] > limit:
            self._now = max(self._now, limit) if limit != float("inf") else self._now
            return False
        self._now = max(self._now, timers[0][0])
        while timers and timers[0][0] <= self._now:
            handle = heapq.heappop(timers)[2]
            if handle.callback is not None:
                self.post(handle.process, handle)
        return True

    def destroy(self) -> None:
        """End every process and close its coroutines, of which nothing can reach anybody any more."""
        for process in self.processes:
            process.kill()
        self._timers.clear()
        hook, sys.unraisablehook = sys.unraisablehook, _ignore
        events._set_running_loop(self)
        try:
            for process in self.processes:
                self.current = process
                while process.tasks:
                    _close(process.tasks.pop())
        finally:
            events._set_running_loop(None)
            sys.unraisablehook = hook

    # What asyncio asks of its loop.

    def time(self) -> float:
        """Return the virtual time in seconds since the start."""
        return self._now

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> Any:
        """Let the process that takes this step call back after all that is ready in it."""
        return self.post(self.current, Handle(self.current, callback, args, context))

    call_soon_threadsafe = call_soon

    def call_later(self, delay: float, callback: Any, *args: Any, context: Context | None = None) -> Any:
        """Let the process that takes this step call back in ``delay`` seconds."""
        return self.post_at(self._now + delay, Handle(self.current, callback, args, context))

    def call_at(self, when: float, callback: Any, *args: Any, context: Context | None = None) -> Any:
        """Let the process that takes this step call back at ``when``."""
        return self.post_at(when, Handle(self.current, callback, args, context))

    def create_future(self) -> Any:
        """Return a future."""
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: Any = None, context: Context | None = None) -> Any:
        """Return a task of the process that takes this step."""
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, name=name or self.current.name, context=context)
        tasks = self.current.tasks
        tasks.append(task)
        if len(tasks) > 200:
            tasks[:] = [each for each in tasks if not each.done()]
        return task

    def is_running(self) -> bool:
        """Tell whether a step is being taken."""
        return self._is_running

    def is_closed(self) -> bool:
        """Never: it is thrown away."""
        return False

    def get_debug(self) -> bool:
        """Never."""
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Note what asyncio complains of."""
        if not self.current.is_dead:
            self.failures.append(f"{self.current.name}: {context.get('message')} {context.get('exception')!r}")


def _close(task: asyncio.Task[Any]) -> None:
    """Close a task's coroutine, however often it goes on waiting."""
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # asyncio's own way to say: it is meant
    coroutine: Any = task.get_coro()
    # Not by `close`: that throws away what waits again on its way out, half done, and is loud about it later.
    for _ in range(100):
        try:
            coroutine.throw(_Dead())
        except BaseException:  # noqa: BLE001  # nobody hears it any more
            return


class _Dead(BaseException):
    """The process is no more."""


def _ignore(_: object) -> None:
    """Take no notice: what a dead process's finalizers say."""
