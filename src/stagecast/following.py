"""Follow operations to their ends."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing

import msgspec

from stagecast import operations
from stagecast.answers import Operations
from stagecast.client import Client
from stagecast.event_stream import StreamEvent
from stagecast.rows import Row


async def follow(client: Client, rows: Iterable[Row]) -> AsyncGenerator[Row, None]:
    """Yield each new word on these runs of operations, until all of them have ended.

    Raises what `Client.stream` and `Client.operation` raise.
    """
    waiting = {row.job_id for row in rows if row.state not in operations.ENDED}
    async with aclosing(client.stream()) as stream:
        while waiting:
            event = await anext(stream)
            found = {row.job_id: row for row in _rows(event)}
            if event.event == "snapshot":
                # What a snapshot does not show has ended before it was taken.
                found |= {job: await client.operation(job) for job in waiting - found.keys()}
            for row in (found[job] for job in sorted(waiting & found.keys())):
                if row.state in operations.ENDED:
                    waiting.discard(row.job_id)
                yield row


def _rows(event: StreamEvent) -> Iterator[Row]:
    if event.event == "snapshot":
        yield from msgspec.json.decode(event.data, type=Operations).operations
    elif event.event == "operation":
        yield msgspec.json.decode(event.data, type=Row)
