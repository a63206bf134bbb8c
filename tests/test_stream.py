from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stagecast.errors import BadInput, HolderFailed, Interrupted, SourceRefused
from stagecast.stream import Stream, probe, read
from tests.upstream_server import UpstreamServer

CONTENT = bytes(range(256)) * 4096


@pytest.fixture
def server() -> Iterator[UpstreamServer]:
    with UpstreamServer({"/m.bin": CONTENT, "/a%20b%23c%3Fd%25.bin?e=%2F": b"odd"}).running() as server:
        yield server


@pytest.fixture
def stop() -> threading.Event:
    return threading.Event()


def test_the_bytes_come_in_order(server: UpstreamServer, stop: threading.Event) -> None:
    with Stream(f"{server.url}/m.bin", 1000, '"one"', stop=stop) as stream:
        assert stream.head.start == 1000
        assert b"".join(stream) == CONTENT[1000:]


def test_odd_keys_arrive_as_they_are(server: UpstreamServer, stop: threading.Event) -> None:
    assert read(f"{server.url}/a%20b%23c%3Fd%25.bin?e=%2F", 10, stop=stop) == b"odd"


def test_a_body_of_unknown_length_ends_with_the_connection(server: UpstreamServer, stop: threading.Event) -> None:
    server.tells_length = False
    with Stream(f"{server.url}/m.bin", stop=stop) as stream:
        assert stream.head.size is None
        assert b"".join(stream) == CONTENT


def test_a_body_that_ends_early_is_a_failure(server: UpstreamServer, stop: threading.Event) -> None:
    server.cut_after = [1000]
    with (
        pytest.raises(HolderFailed, match=f"closed {len(CONTENT) - 1000:,} bytes too early"),
        Stream(f"{server.url}/m.bin", stop=stop) as stream,
    ):
        list(stream)


def test_a_hanging_body_is_a_failure_and_ends_its_thread(server: UpstreamServer, stop: threading.Event) -> None:
    server.hang_after = 0
    with (
        pytest.raises(HolderFailed, match=r"no byte for 0\.3 s|hangs"),
        Stream(f"{server.url}/m.bin", stop=stop, stall=0.3) as stream,
    ):
        list(stream)


def test_a_stop_ends_a_hanging_body_at_once(server: UpstreamServer, stop: threading.Event) -> None:
    server.hang_after = 65536
    with Stream(f"{server.url}/m.bin", stop=stop) as stream:
        assert server.hanging.wait(60)
        stop.set()
        since = time.monotonic()
        with pytest.raises(Interrupted):
            list(stream)
    assert time.monotonic() - since < 20
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("upstream")]


def test_a_stop_ends_a_source_that_never_answers(stop: threading.Event) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        timer = threading.Timer(0.05, stop.set)
        timer.start()
        since = time.monotonic()
        with pytest.raises(Interrupted), Stream(f"http://127.0.0.1:{silent.getsockname()[1]}/m", stop=stop):
            pass
        assert time.monotonic() - since < 20
        timer.join()


def test_nobody_listens(stop: threading.Event) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(HolderFailed, match="refused"):
            read(f"http://127.0.0.1:{bound.getsockname()[1]}/m", 10, stop=stop)


def test_a_reader_that_leaves_early_leaves_nothing_behind(server: UpstreamServer, stop: threading.Event) -> None:
    with Stream(f"{server.url}/m.bin", stop=stop) as stream:
        next(iter(stream))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("upstream")]


def test_a_local_file_that_changes_meanwhile_is_a_failure(tmp_path: Path, stop: threading.Event) -> None:
    path = tmp_path / "m"
    path.write_bytes(bytes(16 * 1024 * 1024))  # more than is read ahead
    with Stream(path.as_uri(), stop=stop) as stream:
        next(iter(stream))
        with path.open("r+b") as file:
            file.write(b"new")
        with pytest.raises(HolderFailed, match="changed while it was read"):
            list(stream)


def test_a_probe_moves_no_bytes(server: UpstreamServer, stop: threading.Event) -> None:
    assert probe(f"{server.url}/m.bin", stop=stop).size == len(CONTENT)
    assert server.sent.total() == 0


def test_a_probe_asks_for_one_byte_where_nothing_else_works(server: UpstreamServer, stop: threading.Event) -> None:
    server.head_status = 403
    assert probe(f"{server.url}/m.bin", stop=stop).size == len(CONTENT)
    deadline = time.monotonic() + 60
    while not server.sent.total() and time.monotonic() < deadline:
        pass  # its thread counts what it has sent after it was received
    assert server.sent.total() == 1
    with pytest.raises(SourceRefused, match="answers 404"):
        probe(f"{server.url}/gone", stop=stop)


def test_a_small_file_is_no_larger_than_told(server: UpstreamServer, stop: threading.Event) -> None:
    with pytest.raises(BadInput, match="more than 1,000 bytes"):
        read(f"{server.url}/m.bin", 1000, stop=stop)
