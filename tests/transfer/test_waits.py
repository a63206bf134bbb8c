"""Where the time goes: told apart by what the holder's kernel counts, over real connections, slow in each way."""

from __future__ import annotations

import os
import random
import socket
import struct
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagecast.messages import Bottleneck
from stagecast.store import Store
from stagecast.transfer import Holder, RateLimit, Waits, exchange, outlet, pull, tcp_info
from stagecast.transfer.waits import Blame, Sent, parse_sent, split
from tests.sample import manifest_of
from tests.transfer.test_pull import serving

SO_MAX_PACING_RATE = 47
SLOW = 12_000_000
"""Bytes per second: far below what each part of this does otherwise, also on a slow machine."""
seconds = st.floats(0, 100)


@given(seconds, seconds)
def test_a_wait_is_split_and_nothing_of_it_is_lost(waited: float, under_way: float) -> None:
    told = split(waited, under_way)
    assert told.source + told.network == pytest.approx(waited)
    assert 0 <= told.network <= under_way or told.network == waited
    assert told.source >= 0


@given(st.lists(st.tuples(st.sampled_from(["wait", "hear", "deaf", "part"]), seconds), max_size=20))
def test_blame_accounts_for_every_second_whatever_it_is_told(script: list[tuple[str, float]]) -> None:
    blame, total, busy = Blame(), 0.0, 0.0
    for what, amount in script:
        if what == "wait":
            blame.wait(amount, trips=1)
            total += amount
        elif what == "hear":
            busy += amount
            blame.hear(Sent(busy, 0.001))
        elif what == "deaf":
            blame.hear(None)
        else:
            blame.part()
        waits = blame.waits
        assert waits.source + waits.network + waits.remote == pytest.approx(total)


def test_what_was_not_told_of_yet_is_told_like_what_was_before_it() -> None:
    blame = Blame()
    blame.wait(2.0)
    assert blame.waits == Waits(remote=2.0), "nobody can tell yet"
    blame.hear(Sent(busy=1.5, rtt=0.0))
    assert blame.waits == Waits(source=0.5, network=1.5)
    blame.wait(4.0)
    assert blame.waits == Waits(source=1.5, network=4.5)
    blame.part()
    blame.hear(Sent(busy=0.0, rtt=0.0))
    assert blame.waits == Waits(source=1.5, network=4.5)


def test_a_round_trip_of_a_request_is_the_network_s() -> None:
    blame = Blame()
    blame.wait(0.05, trips=1)
    blame.hear(Sent(busy=0.0, rtt=0.04))
    assert blame.waits.network == pytest.approx(0.04)


def test_a_connection_that_began_anew_counts_from_nothing() -> None:
    blame = Blame()
    blame.hear(Sent(busy=50.0, rtt=0.0))
    blame.wait(3.0)
    blame.hear(Sent(busy=2.0, rtt=0.0))
    assert blame.waits == Waits(source=1.0, network=2.0)


@pytest.mark.parametrize("said", ["", "busy=1", "busy=x; rtt=1", "busy=-1; rtt=2", f"busy={'9' * 16}; rtt=1", "ä=1"])
def test_what_makes_no_sense_says_nothing(said: str) -> None:
    assert parse_sent(said) is None


def test_the_kernel_s_word_can_be_read() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        sent = parse_sent(tcp_info.said(client))
        assert sent is not None
        assert 0 <= sent.busy < 60
        assert 0 < sent.rtt < 60
    with socket.socket(socket.AF_UNIX) as other:
        assert tcp_info.said(other) == ""


CONTENTS = {"a.bin": random.Random(7).randbytes(9 << 20)}
MANIFEST = manifest_of("slow", CONTENTS, piece_size=3 << 20)


def most(folder: Path, limit: RateLimit | None = None) -> tuple[Bottleneck, Mapping[Bottleneck, float], Waits]:
    """Pull the model; return on what most of the time went, as the caller was told at last, and the result's word."""
    told: list[Mapping[Bottleneck, float]] = []
    store = Store(folder / "models", folder / "data")
    with serving(folder / "holder", MANIFEST, CONTENTS) as server, store.partial(MANIFEST) as arriving:
        pulled = pull(
            MANIFEST, arriving, lambda: [Holder("holder", server.url)], streams=2, limit=limit,
            advance=lambda _: None, entered=lambda _: None, spent=told.append, stop=threading.Event(),
        )  # fmt: skip
    spent = told[-1]
    assert spent == pulled.waits.seconds()
    return max(spent, key=lambda on: spent[on]), spent, pulled.waits


def test_a_holder_that_reads_slowly_is_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really = os.sendfile

    def slowly(out: int, into: int, offset: int, count: int) -> int:
        # Long against what a busy machine needs to let the receiver acknowledge.
        time.sleep(0.12)
        return really(out, into, offset, min(count, 512 * 1024))

    monkeypatch.setattr(outlet.os, "sendfile", slowly)
    on, spent, _ = most(tmp_path)
    assert (on, spent.get("source or network", 0.0)) == ("source", 0.0)


def test_a_narrow_way_is_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really = exchange.Exchange._prepare

    def narrow(self: Any) -> None:
        really(self)
        self._connection.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, struct.pack("I", SLOW // 2))

    monkeypatch.setattr(exchange.Exchange, "_prepare", narrow)
    assert most(tmp_path)[0] == "network"


def test_a_rate_limit_is_the_limit(tmp_path: Path) -> None:
    assert most(tmp_path, RateLimit(SLOW))[0] == "limit"


def test_a_disk_that_takes_no_bytes_is_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stagecast.partial import Partial

    really = Partial.write

    def slowly(self: Any, piece: Any, position: int, data: Any) -> None:
        time.sleep(len(data) / SLOW)
        really(self, piece, position, data)

    monkeypatch.setattr(Partial, "write", slowly)
    assert most(tmp_path)[0] == "target disk"


def test_of_a_holder_that_says_nothing_nobody_can_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp_info, "said", lambda _: "")
    _, spent, waits = most(tmp_path)
    assert "source or network" in spent
    assert waits.source == waits.network == 0.0
