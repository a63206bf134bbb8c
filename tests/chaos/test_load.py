from __future__ import annotations

import asyncio
from typing import Any

import pytest

from chaos.load import Load, NoAnswer, answered


class Silent:
    """Stands for a client whose connection fell silent at each request but the last."""

    replica = "replica-1"

    def __init__(self, silent: int) -> None:
        self.silent = silent
        self.asked: list[tuple[str, str]] = []

    async def remove(self, model: str, node: str) -> None:
        """Delete, or raise what an answer that never came is made into."""
        self.asked.append((model, node))
        if len(self.asked) <= self.silent:
            raise NoAnswer("DELETE", 0.0)


async def test_a_request_without_an_answer_is_given_up_and_noted() -> None:
    noted: list[dict[str, Any]] = []
    with pytest.raises(NoAnswer, match="no answer to GET of x for 0 s"):
        async with answered("GET of x", lambda what, **facts: noted.append({"what": what, **facts}), 0.0):
            await asyncio.Event().wait()
    assert noted == [{"what": "no answer", "request": "GET of x"}]


async def test_a_copy_whose_deletion_was_not_answered_is_deleted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chaos.load._LOOK", 0.0)
    client: Any = Silent(2)
    load = Load(client, ["one"], ["worker-1"], lambda *_, **__: None, _copies={"worker-1": ["one"]})
    await load.clean()
    assert client.asked == [("one", "worker-1")] * 3
    assert load._copies == {"worker-1": []}
