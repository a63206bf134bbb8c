from __future__ import annotations

import contextlib
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from stagecast.errors import Fenced, HoldersFailed, Interrupted, NotEnoughSpace, PieceCorrupt
from stagecast.manifest import Manifest, encode
from stagecast.part_files import PartFiles
from stagecast.partial import Partial
from stagecast.pieces import Piece, parse_numbers, pieces_of
from stagecast.store import Store
from stagecast.transfer import FileServer, Holder, Pulled, RateLimit, pull
from stagecast.transfer.exchange import Exchange
from tests.sample import contents_of, lay_out, manifest_of
from tests.transfer import hostile as faults
from tests.transfer.hostile import hostile

MIB = 1 << 20
PIECE = 64 * 1024
CONTENTS = {
    "config.json": b"{}",
    "empty": b"",
    "weights/deep/er/b.bin": random.Random(2).randbytes(3 * PIECE),
    "weights/a.bin": random.Random(1).randbytes(5 * PIECE + 77),
}
MANIFEST = manifest_of("tiny", CONTENTS, piece_size=PIECE)
SIZE = MANIFEST.size


@pytest.fixture
def good(tmp_path: Path) -> Iterator[FileServer]:
    with serving(tmp_path / "good", MANIFEST, CONTENTS) as server:
        yield server


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models", tmp_path / "data")


@contextlib.contextmanager
def serving(folder: Path, manifest: Manifest, contents: dict[str, bytes]) -> Iterator[FileServer]:
    lay_out(folder / "models" / manifest.model, contents)
    store = Store(folder / "models", folder / "data")
    store.record(manifest)
    with FileServer(store, "127.0.0.1") as server:
        yield server


class Caller:
    """Pulls into a partial, and keeps what it is told on the way."""

    def __init__(self, partial: Partial) -> None:
        self.partial = partial
        self.done = partial.verified_bytes
        self.entered: list[int] = []
        self.stop = threading.Event()

    def advance(self, count: int) -> None:
        assert count > 0
        self.done += count

    def pull(self, *holders: Holder, patience: float = 600.0, stall: float = 600.0, **options: object) -> Pulled:
        return self.pull_from(lambda: holders, patience=patience, stall=stall, **options)

    def pull_from(self, holders: Callable[[], Sequence[Holder]], **options: object) -> Pulled:
        arguments: dict[str, object] = {"advance": self.advance, "entered": self.entered.append, "stop": self.stop}
        return pull(self.partial.manifest, self.partial, holders, **(arguments | options))  # type: ignore[arg-type]


def holder(server: FileServer, name: str = "good") -> Holder:
    return Holder(name, server.url)


def pulling() -> list[threading.Thread]:
    """Return the threads that pulls have left; a holder's, which the test itself runs, may be at their end still."""
    return [thread for thread in threading.enumerate() if thread.name.startswith(("stagecast-pull", "stagecast-scout"))]


def gone() -> Holder:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return Holder("gone", f"http://127.0.0.1:{listener.getsockname()[1]}")


def assert_whole(partial: Partial, contents: dict[str, bytes] = CONTENTS) -> None:
    assert partial.missing() == []
    assert contents_of(partial.publish()) == contents


def test_every_file_arrives_and_every_byte_is_reported_once(store: Store, good: FileServer) -> None:
    with store.partial(MANIFEST) as partial:
        caller, received = Caller(partial), list[int]()

        pulled = caller.pull(holder(good), received=received.append)

        assert caller.done == pulled.bytes_received == pulled.bytes_verified == sum(received) == SIZE
        assert pulled.holders == {"good": SIZE}
        assert caller.entered == sorted(set(caller.entered))
        assert caller.entered[-1] == 3
        assert min(pulled.waits.network, pulled.waits.hash, pulled.waits.disk, pulled.seconds) > 0
        assert_whole(partial)


def test_many_small_files_come_in_few_requests(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = {f"{number % 7}/{number}": random.Random(number).randbytes(number % 300) for number in range(1500)}
    manifest, requests = manifest_of("many", contents), list[str]()
    answer = Exchange._answer

    def counted(exchange: Exchange) -> None:
        requests.append(exchange._request.path)
        answer(exchange)

    monkeypatch.setattr(Exchange, "_answer", counted)
    with serving(tmp_path / "good", manifest, contents) as server, store.partial(manifest) as partial:
        caller = Caller(partial)
        pulled = caller.pull(holder(server), streams=4)
        assert pulled.bytes_received == caller.done == manifest.size
        bundled = [path.rpartition("/")[2] for path in requests if path.startswith("/bundles/")]
        numbers = [number for text in bundled for number in parse_numbers(text, 1500)]
        # One piece may be left over at the end, and is asked for alone; another stream's bundle may arrive after it.
        lone = [path for path in requests if not path.startswith("/bundles/")]
        assert len(lone) <= 1
        assert all(path.startswith("/files/") for path in lone)
        assert len(numbers) + len(lone) == len(set(numbers)) + len(lone) == sum(map(bool, contents.values()))
        assert len(requests) < 50
        assert_whole(partial, contents)


def test_a_file_that_the_holder_lacks_costs_no_other(store: Store, good: FileServer) -> None:
    """A bundle is not to be had where a piece is missing; its others are asked for one by one."""
    (good.store.models / "tiny" / "config.json").write_bytes(b"[]\n")
    with store.partial(MANIFEST) as partial:
        caller = Caller(partial)
        with pytest.raises(HoldersFailed, match="good: does not have it"):
            caller.pull(holder(good), patience=3.0)
        assert caller.done == SIZE - 2
        assert [MANIFEST.files[piece.file].path for piece in partial.missing()] == ["config.json"]


def test_what_is_whole_asks_nobody(store: Store, good: FileServer) -> None:
    with store.partial(MANIFEST) as partial:
        Caller(partial).pull(holder(good))

        assert Caller(partial).pull().bytes_received == 0
        assert_whole(partial)


def test_a_model_of_empty_files_only(store: Store) -> None:
    manifest = manifest_of("void", {"empty": b""})
    with store.partial(manifest) as partial:
        assert Caller(partial).pull().bytes_received == 0
        assert_whole(partial, {"empty": b""})


def test_a_model_that_is_one_plain_file(store: Store, tmp_path: Path) -> None:
    manifest = manifest_of("one.gguf", {"one.gguf": b"weights"}, single=True)
    lay_out(tmp_path / "upstream", {"one.gguf": b"weights"})
    upstream = Store(tmp_path / "upstream", tmp_path / "upstream-data")
    upstream.record(manifest)
    with FileServer(upstream, "127.0.0.1") as server, store.partial(manifest) as partial:
        Caller(partial).pull(holder(server))
        assert_whole(partial, {"one.gguf": b"weights"})


def test_several_holders_share_the_work(store: Store, good: FileServer, tmp_path: Path) -> None:
    with serving(tmp_path / "second", MANIFEST, CONTENTS) as second, store.partial(MANIFEST) as partial:
        pulled = Caller(partial).pull(holder(good), holder(second, "second"))

        assert pulled.holders.keys() == {"good", "second"}
        assert_whole(partial)


def test_the_token_is_shown(store: Store, good: FileServer) -> None:
    with FileServer(good.store, "127.0.0.1", token="secret") as server, store.partial(MANIFEST) as partial:
        caller = Caller(partial)
        with pytest.raises(HoldersFailed, match="good: refused the cluster's token; STAGECAST_TOKEN must be the same"):
            caller.pull(holder(server), patience=0.1)

        caller.pull(holder(server), token="secret")

        assert_whole(partial)


def test_a_flipped_byte_is_fetched_again_from_another_and_that_piece_alone(store: Store, good: FileServer) -> None:
    with hostile(faults.flip_a_byte, MANIFEST, CONTENTS) as bad, store.partial(MANIFEST) as partial:
        caller = Caller(partial)

        pulled = caller.pull(bad.holder, holder(good))

        assert bad.requests
        assert len(bad.ranges) == len(set(bad.ranges))
        assert pulled.bytes_received == SIZE + pulled.holders["bad"]
        assert pulled.holders["good"] == SIZE
        assert caller.done == SIZE
        assert_whole(partial)


def test_one_lie_among_many_truths_costs_one_piece(store: Store, good: FileServer) -> None:
    lies: list[int] = []
    guard = threading.Lock()

    def lie_once(request: faults.Request) -> None:
        with guard:
            is_first, _ = not lies, lies.append(1)
        (faults.flip_a_byte if is_first else faults.serve_well)(request)

    with hostile(lie_once, MANIFEST, CONTENTS) as bad, store.partial(MANIFEST) as partial:
        pulled = Caller(partial).pull(bad.holder, holder(good))

        assert SIZE < pulled.bytes_received <= SIZE + PIECE
        assert pulled.bytes_verified == SIZE
        assert_whole(partial)


def test_a_piece_that_all_serve_wrong_names_them_all(store: Store) -> None:
    with (
        hostile(faults.flip_a_byte, MANIFEST, CONTENTS, "one") as one,
        hostile(faults.flip_a_byte, MANIFEST, CONTENTS, "two") as two,
        store.partial(MANIFEST) as partial,
    ):
        with pytest.raises(PieceCorrupt, match=r"holder one, two served piece \d of") as caught:
            Caller(partial).pull(one.holder, two.holder, streams=1)

        file = next(file for file in MANIFEST.files if f" {file.path} " in caught.value.message)
        index = int(caught.value.message.partition("piece ")[2].partition(" ")[0])
        assert (file.digest, index * PIECE) in set(one.ranges) & set(two.ranges)

        assert partial.verified_bytes == 0


def test_a_prefix_from_one_holder_and_a_rest_from_another_blames_neither(store: Store, good: FileServer) -> None:
    def lie_and_close(request: faults.Request) -> None:
        request.head()
        request.connection.sendall(bytes(len(request.body) // 2))
        request.connection.shutdown(socket.SHUT_RDWR)

    manifest = manifest_of("tiny", {"weights/a.bin": CONTENTS["weights/a.bin"]}, piece_size=PIECE)
    with hostile(lie_and_close, MANIFEST, CONTENTS) as bad, store.partial(manifest) as partial:
        caller = Caller(partial)

        caller.pull(bad.holder, holder(good))

        assert bad.requests
        assert caller.done == manifest.size
        assert_whole(partial, {"weights/a.bin": CONTENTS["weights/a.bin"]})


def test_a_holder_that_always_closes_early_still_serves_all_of_it_once(store: Store) -> None:
    def close_after_a_bit(request: faults.Request) -> None:
        request.head()
        request.connection.sendall(request.body[: PIECE // 4])
        request.connection.shutdown(socket.SHUT_RDWR)

    with hostile(close_after_a_bit, MANIFEST, CONTENTS) as bad, store.partial(MANIFEST) as partial:
        caller = Caller(partial)

        pulled = caller.pull(bad.holder, patience=30.0)

        assert pulled.bytes_received == caller.done == SIZE
        assert_whole(partial)


def test_a_holder_that_comes_later_is_used(store: Store, good: FileServer) -> None:
    with store.partial(MANIFEST) as partial:
        known: list[Sequence[Holder]] = [(), (gone(),), (gone(), holder(good))]

        Caller(partial).pull_from(lambda: known.pop(0) if len(known) > 1 else known[0], patience=30.0)

        assert_whole(partial)


def test_nobody_to_ask(store: Store) -> None:
    with store.partial(MANIFEST) as partial, pytest.raises(HoldersFailed, match="nobody holds it"):
        Caller(partial).pull(patience=0.0)


def test_a_written_prefix_is_hashed_and_only_the_rest_is_asked_for(store: Store, good: FileServer) -> None:
    piece = Piece(2, 0, 0, PIECE)
    content = CONTENTS["weights/a.bin"]
    assert MANIFEST.files[2].path == "weights/a.bin"
    with store.partial(MANIFEST) as partial:
        partial.write(piece, 0, content[:1000])
        caller = Caller(partial)

        pulled = caller.pull(holder(good))

        assert pulled.bytes_received == SIZE - 1000
        assert caller.done == pulled.bytes_verified == SIZE
        assert_whole(partial)


def test_a_prefix_that_is_wrong_is_fetched_again(store: Store, good: FileServer) -> None:
    with store.partial(MANIFEST) as partial:
        partial.write(Piece(2, 0, 0, PIECE), 0, b"x" * 1000)
        caller = Caller(partial)

        pulled = caller.pull(holder(good))

        assert pulled.bytes_received == SIZE - 1000 + PIECE
        assert caller.done == SIZE
        assert_whole(partial)


def test_whole_pieces_that_were_not_checked_need_no_holder(store: Store) -> None:
    with store.partial(MANIFEST) as partial:
        for piece in partial.missing():
            content = CONTENTS[MANIFEST.files[piece.file].path]
            partial.write(piece, 0, content[piece.offset : piece.offset + piece.length])
        caller = Caller(partial)

        pulled = caller.pull()

        assert (pulled.bytes_received, pulled.bytes_verified, caller.done) == (0, SIZE, SIZE)
        assert_whole(partial)


@pytest.mark.parametrize("fault", [faults.hang, faults.hang_in_the_body])
def test_a_stop_is_heeded_in_silence(store: Store, fault: faults.Answer) -> None:
    with hostile(fault, MANIFEST, CONTENTS) as bad, store.partial(MANIFEST) as partial:
        caller = Caller(partial)
        stopped: list[float] = []

        def stop() -> None:
            bad.seen.wait(60)
            stopped.append(time.monotonic())
            caller.stop.set()

        stopper = threading.Thread(target=stop)
        stopper.start()
        with pytest.raises(Interrupted) as caught:
            caller.pull(bad.holder)

        assert time.monotonic() - stopped[0] < 60
        assert caught.value.verb == "cancel"
        stopper.join()
        assert pulling() == []


def test_a_stop_is_heeded_while_the_limit_holds_all_back(store: Store, good: FileServer) -> None:
    with store.partial(MANIFEST) as partial:
        caller = Caller(partial)
        stopped: list[float] = []

        def advance(count: int) -> None:
            stopped.append(time.monotonic())
            caller.stop.set()

        with pytest.raises(Interrupted):
            caller.pull(holder(good), limit=RateLimit(1000), advance=advance)

        assert time.monotonic() - stopped[0] < 60


def test_of_a_pull_that_is_stopped_every_byte_on_the_disk_was_told(store: Store, good: FileServer) -> None:
    with store.partial(MANIFEST) as partial:
        caller = Caller(partial)

        def received(_: int) -> None:
            caller.stop.set()

        with pytest.raises(Interrupted):
            caller.pull(holder(good), limit=RateLimit(200_000), received=received)

        pieces = [piece for piece in pieces_of(MANIFEST) if not partial.is_verified(piece)]
        assert caller.done == partial.verified_bytes + sum(map(partial.written, pieces)) > 0


def test_what_a_callback_raises_ends_the_pull(store: Store, good: FileServer) -> None:
    def fence(count: int) -> None:
        raise Fenced("staging:tiny@rack-1", 2)

    with store.partial(MANIFEST) as partial, pytest.raises(Fenced):
        Caller(partial).pull(holder(good), advance=fence)
    assert pulling() == []


def test_a_full_disk_ends_the_pull(store: Store, good: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: PartFiles, number: int, buffer: memoryview, offset: int) -> None:
        raise NotEnoughSpace("rack-1", "/models", 10, 5)

    monkeypatch.setattr(PartFiles, "write", full)
    with store.partial(MANIFEST) as partial, pytest.raises(NotEnoughSpace):
        Caller(partial).pull(holder(good))


def test_the_limit_holds_over_all_streams(store: Store, good: FileServer) -> None:
    with store.partial(MANIFEST) as partial:
        pulled = Caller(partial).pull(holder(good), limit=RateLimit(SIZE))

        assert 0.8 < pulled.seconds < 60
        assert_whole(partial)


def test_memory_is_bounded_by_the_streams(store: Store, tmp_path: Path) -> None:
    contents = {"big": bytes(64 * MIB)}
    manifest = manifest_of("big", contents, piece_size=16 * MIB)
    with serving(tmp_path / "upstream", manifest, contents) as server, store.partial(manifest) as partial:
        tracemalloc.start()
        try:
            Caller(partial).pull(holder(server), streams=4)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

    assert peak < 6 * MIB


def test_a_killed_process_is_gone_on_from_without_moving_much_again(store: Store, tmp_path: Path) -> None:
    contents = {"weights/a.bin": random.Random(3).randbytes(25 * MIB), "weights/b.bin": bytes(15 * MIB + 5)}
    manifest = manifest_of("killed", contents, piece_size=4 * MIB)
    (tmp_path / "manifest.json").write_bytes(encode(manifest))
    with serving(tmp_path / "upstream", manifest, contents) as server:
        command = [sys.executable, "-m", "tests.transfer.puller"]
        command += [
            str(tmp_path),
            server.url,
            str(tmp_path / "manifest.json"),
            str(12 * MIB),
            str(manifest.size * 2 // 5),
        ]
        done = subprocess.run(command, cwd=Path(__file__).parents[2], timeout=60, check=False)
        assert done.returncode == -signal.SIGKILL
        sent = server.bytes_sent
        assert sent < 0.6 * manifest.size

        with store.partial(manifest) as partial:
            caller = Caller(partial)
            pulled = caller.pull(holder(server))
            assert caller.done == manifest.size
            assert_whole(partial, contents)

    # What the sender gave to the network is more than either run has received.
    assert server.bytes_sent <= 1.05 * manifest.size
    assert pulled.bytes_received <= 0.65 * manifest.size


def test_what_was_here_and_is_hashed_again_is_told_apart_from_what_came(store: Store, good: FileServer) -> None:
    with store.partial(MANIFEST) as partial:
        whole, begun, *_ = (piece for piece in partial.missing() if piece.file == 3)
        content = CONTENTS["weights/deep/er/b.bin"]
        partial.write(whole, 0, content[: whole.length])
        partial.write(begun, 0, content[begun.offset : begun.offset + 1000])
        checked: list[int] = []
        caller = Caller(partial)
        pulled = caller.pull(holder(good), checked=checked.append)
        assert sum(checked) == whole.length + 1000
        assert caller.done == pulled.bytes_received == SIZE - sum(checked)
        assert_whole(partial)


@pytest.mark.parametrize(
    ("fault", "on"),
    [(None, "network"), (faults.hang, "source"), (faults.hang_in_the_body, "source"), (faults.fail, "source")],
)
def test_while_no_byte_comes_it_says_what_it_waits_for(store: Store, fault: faults.Answer | None, on: str) -> None:
    told: list[str] = []
    with contextlib.ExitStack() as stack:
        partial = stack.enter_context(store.partial(MANIFEST))
        bad = stack.enter_context(hostile(fault, MANIFEST, CONTENTS)).holder if fault else gone()
        with pytest.raises(HoldersFailed):
            Caller(partial).pull(bad, patience=0.4, stall=0.3, waiting=told.append)
    assert told.count(on) > len(told) / 2
    # What came before it hung is written first, which takes a busy disk a moment.
    before = {"target disk"} if fault is faults.hang_in_the_body else set()
    assert set(told) <= {on, "network", "source"} | before


def test_without_any_holder_it_waits_for_the_source(store: Store) -> None:
    told: list[str] = []
    with store.partial(MANIFEST) as partial, pytest.raises(HoldersFailed):
        Caller(partial).pull(patience=0.2, waiting=told.append)
    assert set(told) == {"source"}


def test_a_disk_that_takes_no_bytes_is_told_apart_from_a_holder_that_gives_none(
    store: Store, good: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, write = threading.Event(), PartFiles.write
    told: list[str] = []

    def slow(*arguments: object) -> None:
        go.wait(60)
        write(*arguments)  # type: ignore[arg-type]

    def tell(on: str) -> None:
        told.append(on)
        if told.count("target disk") > 3:
            go.set()

    monkeypatch.setattr(PartFiles, "write", slow)
    with store.partial(MANIFEST) as partial:
        Caller(partial).pull(holder(good), waiting=tell)
        assert "target disk" in told
        assert_whole(partial)
