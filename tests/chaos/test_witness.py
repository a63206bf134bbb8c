from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from chaos.judge import Judge
from chaos.witness import Witness


async def test_the_witness_ends_though_its_last_answer_comes_together_with_its_end() -> None:
    asked, arrived = asyncio.Event(), asyncio.get_running_loop().create_future()

    async def stream_info(_: str) -> Any:
        # As the NATS client waits for an answer.
        asked.set()
        return await asyncio.wait_for(arrived, 60.0)

    client: Any = SimpleNamespace(jetstream=lambda timeout: SimpleNamespace(stream_info=stream_info))  # noqa: ARG005
    async with asyncio.timeout(60):
        async with Witness(client, Judge()).watching():
            await asked.wait()
            arrived.set_result(SimpleNamespace(created=1, state=SimpleNamespace(last_seq=1)))
