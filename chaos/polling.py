"""Readers of the operations: a browser and a page through the load balancer, and newcomers at one replica each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from chaos.judge import Answer, Judge
from chaos.timeline import Agreement, Timeline
from stagecast import answers, operations, revision
from stagecast.client import Client
from stagecast.errors import StagecastError
from stagecast.event_stream import StreamEvent
from stagecast.rows import Row

BROWSER: Final = "browser"
PAGE: Final = "page"
RATE: Final = 50.0
"""Polls a second through the balancer, and as many over all newcomers together."""
_EAGER: Final = 0.01
_PATIENCE: Final = 8.0
"""Seconds after which a person would have pressed reload."""


class Readers:
    """What all readers were shown."""

    def __init__(self, judge: Judge, timeline: Timeline) -> None:
        self.judge = judge
        self.timeline = timeline
        self.page: dict[str, Row] = {}
        """What the page has on the screen, by jobID."""
        self._page_is_degraded = False
        self._agreements: list[Agreement] = []
        self._decoded: dict[bytes, answers.Operations] = {}

    async def browse(self, url: str, key: str) -> None:
        """Poll through the balancer as a browser does, until cancelled."""
        loop = asyncio.get_running_loop()
        async with Client(url, api_key=key, patience=0) as client:
            due = loop.time()
            while True:
                try:
                    async with asyncio.timeout(_PATIENCE):
                        await self._poll(client, BROWSER)
                except (StagecastError, msgspec.DecodeError, TimeoutError) as error:
                    self.judge.missed(BROWSER, loop.time(), str(error) or f"no answer for {_PATIENCE:g} s")
                due = max(due + 1 / RATE, loop.time())
                await asyncio.sleep(due - loop.time())

    async def follow(self, url: str, key: str) -> None:
        """Follow the event stream through the balancer as the page does, until cancelled."""
        async with Client(url, api_key=key) as client:
            while True:
                try:
                    async for event in client.stream():
                        self._show(event, client.replica)
                except (StagecastError, msgspec.DecodeError) as error:
                    self.judge.missed(PAGE, asyncio.get_running_loop().time(), str(error))

    def _show(self, event: StreamEvent, replica: str) -> None:
        at, now = revision.parse(event.id), asyncio.get_running_loop().time()
        if event.event == "snapshot":
            said = msgspec.json.decode(event.data, type=answers.Operations)
            self.page = {row.job_id: row for row in said.operations}
            self._page_is_degraded = said.degraded
        elif event.event == "operation":
            row = msgspec.json.decode(event.data, type=Row)
            self.page[row.job_id] = row
        else:
            return
        if at is None:
            raise msgspec.DecodeError(f"{event.id!r} is no revision")
        self.judge.told(Answer(PAGE, replica, now, now, at, self._page_is_degraded, tuple(self.page.values())))
        self.page = {job: row for job, row in self.page.items() if row.state not in operations.ENDED}

    async def visit(self, url: Callable[[], str], name: str, key: str, interval: float) -> None:
        """Ask one replica every ``interval`` seconds, carrying nothing, until cancelled; it may be dead at times."""
        while True:
            async with Client(url(), api_key=key, patience=0) as client:
                try:
                    while client.url == url():
                        client.revision = ""
                        await self._poll(client, f"newcomer at {name}", name)
                        # Where they are waited for to agree, no revision may pass between two looks.
                        await asyncio.sleep(_EAGER if self._agreements else interval)
                except (StagecastError, msgspec.DecodeError):
                    await asyncio.sleep(interval)

    async def agreed(self, replicas: Iterable[str], since: float, patience: float) -> float | None:
        """Wait until these replicas agree; return how long after ``since`` they did, None if they did not in time."""
        agreement = Agreement(since, replicas)
        self._agreements.append(agreement)
        loop = asyncio.get_running_loop()
        try:
            while agreement.seconds is None and loop.time() < since + patience:
                await asyncio.sleep(0.02)
        finally:
            self._agreements.remove(agreement)
        return agreement.seconds

    async def _poll(self, client: Client, source: str, name: str = "") -> None:
        loop = asyncio.get_running_loop()
        asked = loop.time()
        answer = await client.operations_as_sent()
        answered = loop.time()
        said = self._decode(answer.body)
        at = revision.parse(said.revision)
        if at is None:
            raise msgspec.DecodeError(f"{said.revision!r} is no revision")
        heard = Answer(
            source, name or client.replica, asked, answered, at, said.degraded, tuple(said.operations), answer.body
        )
        self.judge.heard(heard)
        if source == BROWSER:
            self.timeline.shown(answered, said.operations)
        else:
            for agreement in self._agreements:
                agreement.heard(heard)

    def _decode(self, body: bytes) -> answers.Operations:
        """Return an answer; most of them are the same as one of a moment ago."""
        found = self._decoded.get(body)
        if found is None:
            found = msgspec.json.decode(body, type=answers.Operations)
            self._decoded[body] = found
            if len(self._decoded) > 100:
                self._decoded.pop(next(iter(self._decoded)))
        return found
