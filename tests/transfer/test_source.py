from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stagecast.errors import HolderBusy, HolderFailed, Interrupted, PieceGiven
from stagecast.manifest import encode
from stagecast.store import Store
from stagecast.transfer import FileServer, Holder, fetch_manifest
from stagecast.transfer.sends import SMALL
from stagecast.transfer.source import Source
from stagecast.transfer.wanted import Range
from tests.sample import lay_out, manifest_of
from tests.transfer.hostile import hostile, send_too_much, serve_well

CONTENTS = {"a": bytes(range(256)) * 40}
MANIFEST = manifest_of("tiny", CONTENTS)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FileServer]:
    lay_out(tmp_path / "models" / "tiny", CONTENTS)
    store = Store(tmp_path / "models", tmp_path / "data")
    store.record(MANIFEST)
    with FileServer(store, "127.0.0.1", token="secret") as server:
        yield server


@contextmanager
def answering(*answers: bytes) -> Iterator[Holder]:
    """Yield a holder that gives one answer per connection, whatever it is asked, and closes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for answer in answers:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    connection.recv(65536)
                    connection.sendall(answer)
                    connection.shutdown(socket.SHUT_WR)
                    connection.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        yield Holder("odd", f"http://127.0.0.1:{listener.getsockname()[1]}")
        thread.join()


def receive(source: Source, count: int) -> bytes:
    buffer, filled = memoryview(bytearray(count)), 0
    while filled < count:
        filled += source.receive(buffer[filled:])
    return bytes(buffer)


def test_ranges_come_over_one_connection(server: FileServer) -> None:
    digest, content = MANIFEST.files[0].digest, CONTENTS["a"]
    with Source(Holder("one", server.url), "secret", threading.Event()) as source:
        for start, stop in [(0, 1), (5, 10000), (10239, 10240)]:
            source.request(digest, start, stop, len(content))
            assert receive(source, stop - start) == content[start:stop]
        assert len(server._open) == 1


def test_a_connection_that_was_closed_while_it_rested_is_made_anew(server: FileServer) -> None:
    digest = MANIFEST.files[0].digest
    with Source(Holder("one", server.url), "secret", threading.Event()) as source:
        source.request(digest, 0, 10, 10240)
        receive(source, 10)
        deadline = time.monotonic() + 60
        while not server._open and time.monotonic() < deadline:
            pass  # its thread notes the connection when it gets its turn
        (connection,) = server._open
        connection.shutdown(socket.SHUT_RDWR)

        source.request(digest, 0, 10, 10240)

        assert receive(source, 10) == CONTENTS["a"][:10]


def test_a_manifest_is_fetched_and_checked(server: FileServer) -> None:
    assert fetch_manifest(Holder("one", server.url), MANIFEST.digest, "secret") == MANIFEST


def test_a_manifest_that_is_not_there(server: FileServer) -> None:
    with pytest.raises(HolderFailed, match="holder one: does not have it"):
        fetch_manifest(Holder("one", server.url), "0" * 64, "secret")


def test_a_token_that_is_refused(server: FileServer) -> None:
    with pytest.raises(HolderFailed, match="refused the cluster's token; STAGECAST_TOKEN must be the same on both"):
        fetch_manifest(Holder("one", server.url), MANIFEST.digest, "wrong")


def _response(body: bytes, fields: str = "") -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n{fields}\r\n".encode() + body


OTHER = encode(manifest_of("tiny", {"a": b"other"}))


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (_response(OTHER), "sent manifest .* where .* was asked for"),
        (_response(b"<html>"), "not usable"),
        (_response(encode(MANIFEST))[:-5], "closed the connection too early"),
        (_response(b""), "no usable length"),
        (b"HTTP/1.1 200 OK\r\n\r\n{}", "no usable length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n{}", "no usable length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n{}", "no usable length"),
        (_response(encode(MANIFEST), "Content-Encoding: gzip\r\n"), "no usable length"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\n\r\n", "answered HTTP 302"),
        (b"220 smtp ready\r\n\r\n", "does not speak HTTP"),
        (b"x" * 20000, "no HTTP response that makes sense"),
        (b"", "closed the connection too early"),
    ],
)
def test_a_manifest_that_cannot_be_meant(answer: bytes, why: str) -> None:
    with answering(answer) as holder, pytest.raises(HolderFailed, match=why):
        fetch_manifest(holder, MANIFEST.digest)


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:80", "ftp://127.0.0.1", "http://", "http://127.0.0.1:port", "http://127.0.0.1:99999"]
)
def test_an_address_that_cannot_be_meant(url: str) -> None:
    with pytest.raises(HolderFailed, match="is not like http://host:port"):
        fetch_manifest(Holder("odd", url), MANIFEST.digest)


def test_a_name_that_no_host_has() -> None:
    for host in ("no-such-host.invalid", "a..b"):
        with pytest.raises(HolderFailed):
            fetch_manifest(Holder("odd", f"http://{host}:1"), MANIFEST.digest)


def test_a_holder_that_nobody_is_behind() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(HolderFailed, match="refused"):
        fetch_manifest(Holder("gone", f"http://127.0.0.1:{port}"), MANIFEST.digest)


def test_a_connection_that_nobody_accepts_ends_with_the_stall_time() -> None:
    with full_listener() as url, pytest.raises(HolderFailed, match=r"within 0\.3 s"):
        fetch_manifest(Holder("full", url), MANIFEST.digest, stall=0.3)


def test_a_stop_is_heeded_while_connecting() -> None:
    stop = threading.Event()
    stop.set()
    with full_listener() as url, pytest.raises(Interrupted):
        fetch_manifest(Holder("full", url), MANIFEST.digest, stop=stop)


@contextmanager
def full_listener() -> Iterator[str]:
    """Yield the URL of a listener whose queue is full, so that a connection neither fails nor succeeds."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
            fillers.append(filler)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        for filler in fillers:
            filler.close()


def test_silence_is_a_failure_after_the_stall_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(HolderFailed, match=r"sent no byte for 0\.3 s"):
            fetch_manifest(Holder("silent", url), MANIFEST.digest, stall=0.3)


def test_more_than_was_asked_for_is_a_failure() -> None:
    digest = MANIFEST.files[0].digest

    def ask_twice(source: Source) -> None:
        for _ in range(2):
            source.request(digest, 0, 1024, 10240)
            receive(source, 1024)

    with hostile(serve_well, MANIFEST, CONTENTS) as good, Source(good.holder, "", threading.Event()) as source:
        ask_twice(source)
    with (
        hostile(send_too_much, MANIFEST, CONTENTS) as bad,
        Source(bad.holder, "", threading.Event()) as source,
        pytest.raises(HolderFailed),
    ):
        ask_twice(source)


def test_the_first_copy_of_a_piece_is_given_to_one_and_the_connection_serves_the_other_all_the_same(
    tmp_path: Path,
) -> None:
    content = bytes(SMALL) + b"more"
    manifest = manifest_of("large", {"a": content}, piece_size=SMALL)
    lay_out(tmp_path / "models" / "large", {"a": content})
    store = Store(tmp_path / "models", tmp_path / "data")
    store.record(manifest)
    first = Range(manifest.files[0].digest, 0, SMALL, len(content), "first")
    with FileServer(store, "127.0.0.1") as server:
        holder, stop = Holder("whole", server.url), threading.Event()
        with Source(holder, "", stop) as one, Source(holder, "", stop) as other:
            one.ask([first])
            one.begin()
            assert receive(one, SMALL) == content[:SMALL]
            other.ask([first])
            with pytest.raises(PieceGiven, match="gave it to somebody else just now"):
                other.begin()
            other.ask([first._replace(start=SMALL, stop=len(content)), first._replace(wish="yes")])
            other.begin()
            assert receive(other, 4) == b"more"
            other.begin()
            assert receive(other, SMALL) == content[:SMALL]


def test_after_a_refusal_what_was_asked_for_beyond_it_is_not_taken_for_the_next_answer() -> None:
    busy = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
    wanted = [Range("0" * 64, start, start + 1, 4) for start in range(3)]
    last = b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 2-2/4\r\nContent-Length: 1\r\n\r\nc"
    with answering(busy + busy, last) as holder, Source(holder, "", threading.Event()) as source:
        source.ask(wanted[:2])
        with pytest.raises(HolderBusy):
            source.begin()
        source.ask(wanted[2:])
        source.begin()
        assert receive(source, 1) == b"c"
