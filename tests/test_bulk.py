from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest

from stagecast import reading
from stagecast.bulk import NICENESS, aside, stand_back
from stagecast.node import Node
from stagecast.reading import Slice, digests
from stagecast.work import in_thread
from tests.nodes import Nodes


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


async def test_what_is_done_aside_stands_back_and_nobody_else_does() -> None:
    before = niceness()
    assert await in_thread(threading.Event(), aside(niceness)) == max(NICENESS, before)
    assert await asyncio.to_thread(niceness) == niceness() == before


async def test_who_stands_back_further_stays_there() -> None:
    """Only root may come forward again."""

    def far_back() -> int:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        stand_back()
        return niceness()

    assert await in_thread(threading.Event(), far_back) == 19


def test_who_hashes_files_stands_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, found = reading.digest_of, list[int]()

    def digest_of(piece: Slice, stop: threading.Event, *, afresh: bool = False) -> str | OSError:
        found.append(niceness())
        return real(piece, stop, afresh=afresh)

    monkeypatch.setattr(reading, "digest_of", digest_of)
    (tmp_path / "file").write_bytes(b"0123456789")
    assert len(list(digests([Slice(tmp_path / "file", 0, 5), Slice(tmp_path / "file", 5, 5)], threading.Event()))) == 2
    assert min(found) >= NICENESS


async def test_who_deletes_a_model_stands_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To give back what a large file holds keeps a core busy for a while."""
    real, found = Node._free, list[int]()

    def free(node: Node, model: str) -> int:
        found.append(niceness())
        return real(node, model)

    monkeypatch.setattr(Node, "_free", free)
    async with Nodes(tmp_path).node("n", {"owl/a": b"a"}) as member:
        await member.until_held("owl")
        await member.tracker.open("deletion", "owl", "n", cause="test")
        await member.until_held()
    assert found
    assert found[0] >= NICENESS
