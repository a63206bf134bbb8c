"""The work that goes on under the faults: each worker gets one model after the other, for as long as it lasts."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from stagecast import operations
from stagecast.client import ApiError, Client
from stagecast.errors import StagecastError
from stagecast.rows import Row

FILES: Final = 12
FILE: Final = 2 * 1024 * 1024
"""Bytes of a file, which is one piece: the least that moves again where a verified piece does."""
MODELS: Final = 12
SIZE: Final = FILES * FILE
RATE: Final = 5 * 1024 * 1024
"""Bytes per second that a worker pulls at most: a staging takes five seconds."""
_LOOK: Final = 0.25
PATIENCE: Final = 60.0
"""Seconds that what is under way may take once nothing new is begun."""
ANSWER: Final = 10.0
"""Seconds that one answer may take; without them a connection that fell silent is held for five minutes."""

Note = Callable[..., None]


class NoAnswer(StagecastError):
    """A request was not answered at all."""

    code = "no_answer"

    def __init__(self, what: str, patience: float) -> None:
        super().__init__(f"no answer to {what} for {patience:g} s")


@asynccontextmanager
async def answered(what: str, note: Note, patience: float = ANSWER) -> AsyncGenerator[None, None]:
    """Give a request in the block up after a while, and note that. Raises `NoAnswer`."""
    try:
        async with asyncio.timeout(patience):
            yield
    except TimeoutError:
        note("no answer", request=what)
        raise NoAnswer(what, patience) from None


def lay_out(folder: Path) -> list[str]:
    """Write the models, of random bytes, into ``folder``; return their names."""
    names = [f"model-{number:02}" for number in range(1, MODELS + 1)]
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(1, FILES + 1):
            (folder / name / f"{number}.bin").write_bytes(os.urandom(FILE))
    return names


@dataclass
class Begun:
    """One operation that was asked for and taken up (202)."""

    job: str
    id: str
    model: str
    node: str
    time: float
    end: Row | None = None
    unknown: int = 0
    """How often a replica said that there is no such operation."""


@dataclass
class Load:
    """What was begun, and how it ended."""

    client: Client
    models: Sequence[str]
    nodes: Sequence[str]
    note: Note
    begun: list[Begun] = field(default_factory=list)
    _copies: dict[str, list[str]] = field(default_factory=dict)
    _stopping: bool = False

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Load, None]:
        """Begin stagings for as long as the block lasts; then wait for the last ones and delete the copies."""
        self._stopping = False
        tasks = [asyncio.create_task(self._feed(node, number)) for number, node in enumerate(self.nodes)]
        try:
            yield self
            self._stopping = True
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def clean(self) -> None:
        """Delete every copy on the workers, as far as that can be done in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await asyncio.gather(*(self._clean(node) for node in self._copies))

    def has_ended(self, job: str) -> bool:
        """Tell whether the end of a run is known here."""
        return any(begun.job == job and begun.end is not None for begun in self.begun)

    async def watch(self, begun: Begun) -> None:
        """Wait until an operation has ended. Goes on through whatever a replica or the balancer says meanwhile."""
        while begun.end is None:
            await asyncio.sleep(_LOOK)
            try:
                async with answered(f"GET of {begun.id}", self.note):
                    row = await self.client.operation(begun.job)
            except ApiError as error:
                begun.unknown += error.status == 404
                if error.status == 404 and begun.unknown == 1:
                    self.note("unknown", job=begun.job, id=begun.id, replica=self.client.replica)
            except StagecastError:
                pass
            else:
                if row.state in operations.ENDED:
                    begun.end = row
        end = begun.end
        self.note("ended", job=begun.job, id=begun.id, state=end.state, attempt=end.attempt, error=str(end.error or ""))

    async def _clean(self, node: str) -> None:
        copies = self._copies[node]
        while copies:
            await self._remove(copies[-1], node)
            copies.pop()

    async def _feed(self, node: str, turn: int) -> None:
        copies = self._copies.setdefault(node, [])
        while not self._stopping:
            if len(copies) == len(self.models):
                await self._remove(copies.pop(0), node)
            model = self.models[turn % len(self.models)]
            turn += 1
            if model in copies:
                continue
            begun = await self._stage(model, node)
            if begun is not None:
                copies.append(model)
                await self.watch(begun)

    async def _stage(self, model: str, node: str) -> Begun | None:
        loop = asyncio.get_running_loop()
        row: Row | None
        try:
            async with answered(f"POST of staging:{model}@{node}", self.note):
                row = (await self.client.stage(model, [node]))[0]
        except StagecastError as error:
            self.note("refused", id=f"staging:{model}@{node}", error=str(error))
            row = await self._taken(f"staging:{model}@{node}")
            if row is None:
                await asyncio.sleep(_LOOK)
                return None
        begun = Begun(row.job_id, row.id, model, node, loop.time())
        self.begun.append(begun)
        self.note("begun", job=begun.job, id=begun.id, replica=self.client.replica)
        return begun

    async def _taken(self, identifier: str) -> Row | None:
        """Return the operation that was taken up although the answer was lost."""
        with suppress(StagecastError):
            async with answered(f"GET of {identifier}", self.note):
                row = await self.client.operation(identifier)
            if row.state not in operations.ENDED and all(row.job_id != begun.job for begun in self.begun):
                return row
        return None

    async def _remove(self, model: str, node: str) -> None:
        for _ in range(20):
            try:
                async with answered(f"DELETE of {model}@{node}", self.note):
                    await self.client.remove(model, node)
            except ApiError as error:
                if error.status == 404:
                    return
                await asyncio.sleep(_LOOK)
            except StagecastError:
                await asyncio.sleep(_LOOK)
            else:
                return
        self.note("not removed", model=model, node=node)
