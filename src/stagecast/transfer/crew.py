"""The threads of one pull: as many as are worth it, and none of them outlives it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Self

from stagecast.transfer.ledger import Ledger
from stagecast.transfer.ramp import Ramp


class Crew:
    """Use as ``with Crew(ledger, run, ramp) as crew``; ``run`` is the body of each thread.

    It takes from the ledger until that has no more, or no longer wants so many. Leaving halts all of them and waits.
    """

    def __init__(self, ledger: Ledger, run: Callable[[], None], ramp: Ramp) -> None:
        self._ledger = ledger
        self._run = run
        self._ramp = ramp
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ledger.halted.set()
        for thread in self._threads:
            thread.join()

    def tend(self, received: int, now: float) -> None:
        """Have as many streams as the bytes received so far say; call it every now and then."""
        self._ramp = self._ramp.after(received, now)
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        for _ in range(self._ledger.want(self._ramp.streams)):
            thread = threading.Thread(target=self._run, name="stagecast-pull", daemon=True)
            self._threads.append(thread)
            thread.start()
