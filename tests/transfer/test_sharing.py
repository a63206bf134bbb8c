"""Receivers that pass on what they have verified, while they still receive."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path

import pytest

from stagecast.partial import Partial
from stagecast.pieces import Holder, decode_set, numbers, pieces_of
from stagecast.store import Store
from stagecast.transfer import FileServer, Pulled, scout, stream
from tests.sample import contents_of, fill, manifest_of
from tests.transfer.hostile import Request, hostile
from tests.transfer.test_pull import Caller, serving

PIECE = 64 * 1024
CONTENTS = {"a.bin": random.Random(1).randbytes(16 * PIECE), "b.bin": random.Random(2).randbytes(4 * PIECE + 5)}
MANIFEST = manifest_of("shared", CONTENTS, piece_size=PIECE)
PIECES = list(pieces_of(MANIFEST))


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[FileServer]:
    with serving(tmp_path / "origin", MANIFEST, CONTENTS) as server:
        yield server


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models", tmp_path / "data")


def put(partial: Partial, *indices: int, verified: bool = True) -> None:
    """Write some pieces of the first file."""
    for index in indices:
        partial.write(PIECES[index], 0, CONTENTS["a.bin"][index * PIECE : (index + 1) * PIECE])
        if verified:
            partial.verify(PIECES[index])


def get(server: FileServer, path: str, first: int = -1, last: int = -1) -> tuple[int, bytes]:
    """Return the status and body of an answer; a range of bytes where one is given."""
    connection = HTTPConnection(server.host, server.port, timeout=10)
    try:
        connection.request("GET", path, headers={"Range": f"bytes={first}-{last}"} if first >= 0 else {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_what_is_verified_is_served_and_nothing_else(store: Store) -> None:
    path = f"/files/{MANIFEST.files[0].digest}"
    with store.partial(MANIFEST) as partial, FileServer(store, "127.0.0.1") as server:
        put(partial, 1, 2)
        put(partial, 3, verified=False)
        content = CONTENTS["a.bin"]

        assert get(server, path, PIECE, 3 * PIECE - 1) == (206, content[PIECE : 3 * PIECE])
        assert get(server, path, PIECE + 5, PIECE + 9) == (206, content[PIECE + 5 : PIECE + 10])
        for first, last in ((0, 1), (3 * PIECE, 3 * PIECE), (PIECE, 3 * PIECE), (PIECE - 1, PIECE)):
            assert get(server, path, first, last)[0] == 404
        assert get(server, path)[0] == 404
        assert get(server, path, 16 * PIECE, 16 * PIECE)[0] == 416

        partial.forget(PIECES[1])
        assert get(server, path, PIECE, PIECE + 1)[0] == 404
        partial.discard()
        assert get(server, path, 2 * PIECE, 2 * PIECE + 1)[0] == 404
    with FileServer(store, "127.0.0.1") as server:
        assert get(server, path, 2 * PIECE, 2 * PIECE + 1)[0] == 404


def test_a_bundle_of_what_is_verified_is_served_and_no_other(store: Store) -> None:
    content = CONTENTS["a.bin"]
    with store.partial(MANIFEST) as partial, FileServer(store, "127.0.0.1") as server:
        put(partial, 1, 2)
        put(partial, 3, verified=False)

        assert get(server, f"/bundles/{MANIFEST.digest}/1-2") == (200, content[PIECE : 3 * PIECE])
        assert get(server, f"/bundles/{MANIFEST.digest}/1-3")[0] == 404
        partial.forget(PIECES[1])
        assert get(server, f"/bundles/{MANIFEST.digest}/1-2")[0] == 404


def test_it_says_which_pieces_are_here(store: Store, origin: FileServer) -> None:
    path, size = f"/pieces/{MANIFEST.digest}", -(-len(PIECES) // 8)
    with store.partial(MANIFEST) as partial, FileServer(store, "127.0.0.1") as server:
        put(partial, 1, 2)
        put(partial, 3, verified=False)
        status, body = get(server, path)
        assert (status, len(body)) == (200, 2 * size)
        assert list(numbers(decode_set(body[:size], len(PIECES)))) == [1, 2]
        assert not any(body[size:])
        assert list(numbers(decode_set(get(origin, path)[1][:size], len(PIECES)))) == list(range(len(PIECES)))
    with FileServer(store, "127.0.0.1") as server:
        assert get(server, path)[0] == 404


def test_a_second_receiver_gets_pieces_from_the_first_which_still_receives(store: Store, origin: FileServer) -> None:
    first = store.partial(MANIFEST)
    with first, FileServer(store, "127.0.0.1") as server, ExitStack() as stack:
        put(first, *range(12))
        second = stack.enter_context(Store(store.models.parent / "two", store.data / "two").partial(MANIFEST))
        receiver, whole = Holder("first", server.url, is_whole=False), Holder("origin", origin.url)
        caller = Caller(second)

        # The origin comes late, or it would have given everything before it is known who else has some of it.
        pulled = caller.pull_from(lambda: [whole, receiver] if caller.done else [receiver], patience=30.0)

        assert second.missing() == []
        assert len(first.missing()) == len(PIECES) - 12
        assert pulled.holders["first"] > 0
        assert pulled.bytes_received == MANIFEST.size
        second.publish()
        assert contents_of(store.models.parent / "two" / "shared") == CONTENTS


def test_receivers_that_begin_together_share_what_the_origin_sends(tmp_path: Path, origin: FileServer) -> None:
    count, origins = 4, Holder("origin", origin.url)
    with ExitStack() as stack:
        stores = [Store(tmp_path / f"{number}", tmp_path / f"data-{number}") for number in range(count)]
        servers = [stack.enter_context(FileServer(each, "127.0.0.1")) for each in stores]
        callers = [Caller(stack.enter_context(each.partial(MANIFEST))) for each in stores]
        everybody = [Holder(f"w{number}", server.url, is_whole=False) for number, server in enumerate(servers)]
        pulled: list[Pulled] = []
        threads = [
            threading.Thread(target=_pulls(caller, origins, everybody, me, pulled)) for me, caller in enumerate(callers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [caller.done for caller in callers] == [MANIFEST.size] * count
        assert sum(each.bytes_received for each in pulled) == count * MANIFEST.size


def _pulls(
    caller: Caller, origin: Holder, everybody: list[Holder], me: int, into: list[Pulled]
) -> Callable[[], object]:
    others = [holder for number, holder in enumerate(everybody) if number != me]
    return lambda: into.append(caller.pull(origin, *others, patience=30.0, stall=10.0))


def test_a_receiver_that_tells_of_pieces_which_it_serves_wrong_loses_its_share(
    store: Store, origin: FileServer, tmp_path: Path
) -> None:
    liar = Store(tmp_path / "liar", tmp_path / "liar-data")
    wrong = {name: bytes(len(content)) for name, content in CONTENTS.items()}
    with (
        liar.partial(MANIFEST) as lies,
        FileServer(liar, "127.0.0.1") as server,
        store.partial(MANIFEST) as partial,
    ):
        fill(lies, wrong)

        pulled = Caller(partial).pull(Holder("origin", origin.url), Holder("liar", server.url, is_whole=False))

        assert partial.missing() == []
        assert pulled.holders["origin"] >= MANIFEST.size
        partial.publish()
        assert contents_of(store.models / "shared") == CONTENTS


def test_without_anybody_who_has_the_rest_it_waits_for_those_who_get_it(store: Store, tmp_path: Path) -> None:
    two = Store(tmp_path / "two", tmp_path / "two-data")
    with (
        store.partial(MANIFEST) as first, FileServer(store, "127.0.0.1") as server, two.partial(MANIFEST) as second,
    ):  # fmt: skip
        put(first, *range(8))
        caller = Caller(second)
        thread = threading.Thread(
            target=lambda: caller.pull(Holder("first", server.url, is_whole=False), patience=60.0, stall=10.0)
        )
        thread.start()
        fill(first, CONTENTS)
        thread.join()
        assert second.missing() == []


def test_a_receiver_that_is_silent_does_not_keep_the_news_of_others(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scout, "STALL", 600.0)
    asked, two = threading.Event(), Store(tmp_path / "two", tmp_path / "two-data")

    def say_nothing(request: Request) -> None:
        asked.set()
        request.connection.recv(1)

    with (
        hostile(say_nothing, MANIFEST, CONTENTS, tell=say_nothing) as silent,
        two.partial(MANIFEST) as first,
        FileServer(two, "127.0.0.1") as server,
        store.partial(MANIFEST) as partial,
    ):
        fill(first, CONTENTS)
        known = [silent.holder._replace(is_whole=False)]
        near = Holder("near", server.url, is_whole=False)

        Caller(partial).pull_from(lambda: [*known, near] if asked.is_set() else known, patience=60.0)

        assert partial.missing() == []


def test_a_receiver_that_falls_silent_is_left_soon_for_another_one(
    store: Store, origin: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "HUSH", 0.3)

    def fall_silent(request: Request) -> None:
        request.head()
        request.connection.sendall(request.body[:1000])
        request.connection.recv(1)

    with hostile(fall_silent, MANIFEST, CONTENTS) as silent, store.partial(MANIFEST) as partial:
        caller, near, whole = Caller(partial), silent.holder._replace(is_whole=False), Holder("origin", origin.url)

        pulled = caller.pull_from(lambda: [near, whole] if silent.requests else [near], patience=600.0, stall=600.0)

        assert partial.missing() == []
        assert pulled.bytes_received == MANIFEST.size, "what came of a piece came once"
        assert 0 < pulled.holders["bad"] < MANIFEST.size / 2
