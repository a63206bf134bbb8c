"""A scout: what asks other receivers, for a pull, which pieces they have, while there are any."""

from __future__ import annotations

import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Self

from stagecast.errors import HolderFailed, Interrupted
from stagecast.pieces import Holder
from stagecast.transfer.ledger import Ledger
from stagecast.transfer.rests import Rests
from stagecast.transfer.source import Source

LOOK: Final = 0.5
"""Seconds between two looks at what all of them have."""

LONGEST: Final = 8.0
"""Seconds after which one is asked again that did not answer; it begins with `LOOK`, and doubles."""

STALL: Final = 2.0
"""Seconds for which an answer is waited for."""

AT_ONCE: Final = 4
"""Holders that are asked at a time, each in a thread: one that is silent must not keep the news of others."""


class Scout:
    """Use as ``with Scout(ledger, token, tls)``. Leaving halts the ledger and waits for the threads."""

    def __init__(self, ledger: Ledger, token: str, tls: ssl.SSLContext | None) -> None:
        self._ledger = ledger
        self._token = token
        self._tls = tls
        self._digest = ledger.digest
        self._sources: dict[Holder, Source] = {}
        self._asking: set[Holder] = set()
        self._rests = Rests(LOOK)
        self._thread = threading.Thread(target=self._run, name="stagecast-scout", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ledger.halted.set()
        self._thread.join()

    def _run(self) -> None:
        # It starts a thread only when there is something to ask, so that a lone pull has none of them.
        with ThreadPoolExecutor(AT_ONCE, "stagecast-scout") as threads:
            while not self._ledger.halted.is_set():
                for holder in self._among(self._ledger.neighbours()):
                    self._asking.add(holder)
                    threads.submit(self._ask, holder, self._source(holder))
                self._ledger.halted.wait(LOOK)
        self._among([])

    def _among(self, holders: list[Holder]) -> list[Holder]:
        """Return whom to ask now; those who are none of these any more are forgotten."""
        for holder in self._sources.keys() - set(holders) - self._asking:
            self._sources.pop(holder).close()
            self._rests.forgive(holder.name)
        now = time.monotonic()
        return [holder for holder in holders if holder not in self._asking and not self._rests.is_on(holder.name, now)]

    def _source(self, holder: Holder) -> Source:
        if holder not in self._sources:
            self._sources[holder] = Source(holder, self._token, self._ledger.halted, stall=STALL, tls=self._tls)
        return self._sources[holder]

    def _ask(self, holder: Holder, source: Source) -> None:
        try:
            self._look(holder, source)
        except Interrupted:
            pass
        except BaseException as caught:  # noqa: BLE001  # raised again in the thread that called pull
            self._ledger.broke(caught)
        finally:
            self._asking.discard(holder)

    def _look(self, holder: Holder, source: Source) -> None:
        try:
            self._ledger.learn(holder.name, *source.pieces(self._digest, len(self._ledger.number)))
        except HolderFailed:
            self._rests.begin(holder.name, time.monotonic(), LONGEST)
            self._ledger.learn(holder.name, 0, 0)
        else:
            self._rests.forgive(holder.name)
