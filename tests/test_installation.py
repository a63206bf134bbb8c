from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from stagecast.draft import Draft, draft_records, drafts
from stagecast.errors import (
    Busy,
    DigestMismatch,
    HolderFailed,
    Interrupted,
    InvalidManifest,
    NotEnoughSpace,
    SourceRefused,
    TransferFailed,
)
from stagecast.gallery import Source, SourceFile, resolve
from stagecast.installation import measure
from stagecast.manifest import PIECE_SIZE
from stagecast.store import Store
from stagecast.transfer.limit import RateLimit
from tests.installing import CONTENTS, KEY, WEIGHTS, Work, script_of, source_of
from tests.killing import dying_at, in_child
from tests.sample import contents_of, lay_out
from tests.upstream_server import UpstreamServer


@pytest.fixture
def server() -> Iterator[UpstreamServer]:
    with UpstreamServer({f"/{path}": content for path, content in CONTENTS.items()}).running() as server:
        yield server


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models", tmp_path / "data", "node-1")


@pytest.mark.parametrize("published", [True, False])
def test_a_model_arrives_whole(server: UpstreamServer, store: Store, published: bool) -> None:
    work = Work(source_of(server, published=published), store)
    manifest = work.succeeds()
    assert work.entered == work.completed == [0, 1, 2]
    assert [file.sha256 for file in manifest.files] == [file.sha256 for file in work.source.files]
    assert store.manifest("m") == manifest
    assert server.sent[KEY] == len(WEIGHTS)


def test_what_is_here_does_not_move(server: UpstreamServer, store: Store) -> None:
    first = Work(source_of(server), store).succeeds()
    server.requests.clear()
    assert Work(source_of(server), store).succeeds() == first
    assert server.requests == []


def test_a_file_that_another_model_has_is_not_fetched_and_stored_once(server: UpstreamServer, store: Store) -> None:
    first = Work(source_of(server), store).succeeds()
    server.requests.clear()
    twin = Work(replace(source_of(server), model="twin"), store)
    assert twin.succeeds().digest == first.digest
    assert server.requests == []
    one, two = (store.models / model / "sub" / "weights.bin" for model in ("m", "twin"))
    assert one.stat().st_nlink == two.stat().st_nlink
    assert store.recorded("m") == first
    store.remove("m")
    assert store.recorded("twin") is not None
    assert contents_of(store.models / "twin") == CONTENTS


def test_a_file_in_two_drafts_is_begun_anew_without_harm_to_the_other(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_bytes(b"theirs")
    with Draft(tmp_path, "m") as draft:
        draft.keep(["a"])
        with draft.file("a", "http://x/a") as file:
            file.begin("", None)
        (draft.folder / "files" / "a").unlink()
        os.link(tmp_path / "theirs", draft.folder / "files" / "a")
        with draft.file("a", "http://x/a") as file:
            file.begin("", None)
            file.write(b"ours")
    assert (tmp_path / "theirs").read_bytes() == b"theirs"


def test_a_copy_by_other_means_does_not_move(server: UpstreamServer, store: Store) -> None:
    lay_out(store.models / "m", CONTENTS)
    Work(source_of(server), store).succeeds()
    assert server.requests == []


def test_a_new_revision_replaces_the_old(server: UpstreamServer, store: Store) -> None:
    lay_out(store.models / "m", {"older": b"1"})
    Work(source_of(server), store).succeeds()


def test_one_file_by_its_odd_url(store: Store) -> None:
    with UpstreamServer({"/x/a%20b%23c%3Fd%25.gguf?sig=%2F": b"weights"}).running() as server:
        source = measure(resolve(f"{server.url}/x/a b%23c%3Fd%.gguf?sig=%2F"))
        assert source.size == 7
        manifest = Work(source, store).succeeds({"a b#c?d%.gguf": b"weights"})
    assert manifest.single
    assert store.manifest(source.model).digest == manifest.digest


@pytest.mark.parametrize("by_uri", [True, False])
def test_a_folder_and_a_file_by_their_path(tmp_path: Path, store: Store, by_uri: bool) -> None:
    lay_out(tmp_path / "from", CONTENTS)
    for path, contents in ((tmp_path / "from", CONTENTS), (tmp_path / "from" / "config.json", {"config.json": b"{}"})):
        Work(resolve(path.as_uri() if by_uri else str(path)), store).succeeds(contents)


def test_a_server_that_loses_connections_is_gone_on_with(server: UpstreamServer, store: Store) -> None:
    server.cut_after = [10_000_000, 20_000_000]
    Work(replace(source_of(server), files=source_of(server).files[2:]), store).succeeds({"sub/weights.bin": WEIGHTS})
    assert server.sent[KEY] == len(WEIGHTS)
    assert [asked for _, _, asked in server.requests] == [None, "bytes=10000000-", "bytes=30000000-"]


def test_a_server_that_is_busy_is_asked_again(server: UpstreamServer, store: Store) -> None:
    server.statuses = [503, 200, 429]
    Work(source_of(server), store).succeeds()


def test_without_ranges_a_file_starts_over(server: UpstreamServer, store: Store) -> None:
    server.has_ranges = False
    server.cut_after = [2, 0, 40_000_000]
    Work(source_of(server), store).succeeds()
    assert server.sent[KEY] == 40_000_000 + len(WEIGHTS)


def test_a_source_that_starts_over_for_ever_is_given_up(server: UpstreamServer, store: Store) -> None:
    server.has_ranges = False
    server.contents["/config.json"] = bytes(1000)
    server.cut_after = [500] * 100
    with pytest.raises(TransferFailed, match=r"config\.json did not arrive: .*closed 500 bytes too early; no new byte"):
        Work(source_of(server), store).run(patience=1)


def test_bytes_that_nothing_identifies_start_over(server: UpstreamServer, store: Store) -> None:
    server.etag = None
    server.cut_after = [2, 0, 20_000_000]
    Work(source_of(server, published=False), store).succeeds()
    assert server.sent[KEY] == 20_000_000 + len(WEIGHTS)


@pytest.mark.parametrize("heeds", [True, False])
def test_a_file_that_changes_in_the_middle_starts_over(server: UpstreamServer, store: Store, heeds: bool) -> None:
    changed = os.urandom(len(WEIGHTS))
    server.heeds_if_range = heeds
    server.cut_after = [2, 0, PIECE_SIZE + 100]
    work = Work(source_of(server, published=False), store)

    def change() -> None:
        if work.moved == PIECE_SIZE + 102:
            server.etag, server.contents[KEY] = '"two"', changed

    work.on_advance = change
    work.succeeds(CONTENTS | {"sub/weights.bin": changed})


def test_a_wrong_file_is_discarded_and_the_others_stay(server: UpstreamServer, store: Store) -> None:
    server.contents[KEY] = bytes(len(WEIGHTS))
    with pytest.raises(DigestMismatch, match=r"sub/weights\.bin has SHA-256"):
        Work(source_of(server), store).run()
    assert store.names() == []
    assert {path: record.position for path, record in draft_records(store.models, "m").items()} == {
        "config.json": 2,
        "empty": 0,
        "sub/weights.bin": 0,
    }
    server.contents[KEY] = WEIGHTS
    server.requests.clear()
    Work(source_of(server), store).succeeds()
    assert [path for _, path, _ in server.requests] == [KEY]


def test_a_web_page_is_not_a_model(server: UpstreamServer, store: Store) -> None:
    server.contents["/config.json"] = b"<html>please log in</html>"
    server.media_type = "text/html"
    with pytest.raises(SourceRefused, match=r"a web page \(HTML\) instead of config\.json"):
        Work(source_of(server), store).run()
    server.media_type = "application/octet-stream"
    with pytest.raises(DigestMismatch):
        Work(source_of(server), store).run()
    assert store.names() == []


def test_a_web_page_in_the_middle_costs_nothing(server: UpstreamServer, store: Store) -> None:
    server.cut_after = [2, 0, PIECE_SIZE + 1]
    work = Work(source_of(server), store)

    def expire() -> None:
        if work.moved >= PIECE_SIZE:
            server.media_type, server.has_ranges = "text/html", False

    work.on_advance = expire
    with pytest.raises(SourceRefused):
        work.run()
    assert drafts(store.models)[0].bytes_done == PIECE_SIZE + 2


def test_a_missing_file_ends_it_at_once(server: UpstreamServer, store: Store) -> None:
    del server.contents[KEY]
    since = time.monotonic()
    with pytest.raises(SourceRefused, match="answers 404"):
        Work(source_of(server), store).run(patience=100)
    with pytest.raises(SourceRefused, match="answers 404"):
        measure(source_of(server))
    assert time.monotonic() - since < 60


def test_a_hanging_source_is_given_up_with_its_cause(server: UpstreamServer, store: Store) -> None:
    server.hang_after = 0
    with pytest.raises(TransferFailed, match=r"did not arrive: .*(no byte for|hangs)"):
        Work(source_of(server), store).run(patience=0.1, stall=0.3)


def test_a_cancel_reaches_a_hanging_source(server: UpstreamServer, store: Store) -> None:
    server.hang_after = PIECE_SIZE + 65536
    work = Work(source_of(server), store)
    since = float("inf")
    has_come = threading.Event()
    work.on_advance = lambda: has_come.set() if work.moved == server.hang_after + 2 else None

    def cancel() -> None:
        nonlocal since
        assert has_come.wait(60)
        since = time.monotonic()
        work.stop.set()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    with pytest.raises(Interrupted):
        work.run(patience=600, stall=600)
    assert time.monotonic() - since < 60
    canceller.join()
    server.release.set()
    server.hang_after = None
    assert Work(work.source, store).begun == PIECE_SIZE + 2
    Work(work.source, store).succeeds()


def test_a_cancel_reaches_a_pause_between_attempts(server: UpstreamServer, store: Store) -> None:
    server.status = 503
    work = Work(source_of(server), store)
    threading.Timer(0.2, work.stop.set).start()
    since = time.monotonic()
    with pytest.raises(Interrupted):
        work.run(patience=600)
    assert time.monotonic() - since < 60


def test_a_limit_is_kept(server: UpstreamServer, store: Store) -> None:
    since = time.monotonic()
    Work(source_of(server), store).run(limit=RateLimit(100_000_000))
    assert time.monotonic() - since > 0.8 * len(WEIGHTS) / 100_000_000


@pytest.mark.parametrize(("is_near", "source_word"), [(True, "source"), (False, "source or network")])
def test_it_says_on_what_its_time_went(
    server: UpstreamServer, store: Store, tmp_path: Path, is_near: bool, source_word: str
) -> None:
    source = source_of(server)
    if is_near:
        near = tmp_path / "near"
        lay_out(near, CONTENTS)
        source = replace(source, files=tuple(replace(file, uri=(near / file.path).as_uri()) for file in source.files))
    work = Work(source, store)
    since = time.monotonic()
    work.run(limit=RateLimit(200_000_000))
    passed = time.monotonic() - since
    assert work.spent[-1].keys() == {source_word, "hash", "target disk", "limit"}
    for before, after in pairwise(work.spent):
        assert all(after[on] >= seconds for on, seconds in before.items()), "what is spent stays spent"
    assert sum(work.spent[-1].values()) <= passed, "one stream is at one thing at a time"
    # Of the least time that the limit leaves, so much is the limit's as nothing else took.
    others = sum(work.spent[-1].values()) - work.spent[-1]["limit"]
    assert work.spent[-1]["limit"] > 0.8 * len(WEIGHTS) / 200_000_000 - others


def test_a_slow_source_is_what_its_time_goes_on(server: UpstreamServer, store: Store) -> None:
    server.rate = 100_000_000
    work = Work(source_of(server), store)
    work.run()
    others = sum(seconds for on, seconds in work.spent[-1].items() if on != "source or network")
    assert work.spent[-1]["source or network"] > 0.8 * len(WEIGHTS) / server.rate - others
    assert "limit" not in work.spent[-1]


def test_one_installation_at_a_time(server: UpstreamServer, store: Store) -> None:
    with Draft(store.models, "m"), pytest.raises(Busy):
        Work(source_of(server), store).run()


def test_a_full_disk_is_told_before_the_first_byte(server: UpstreamServer, store: Store) -> None:
    source = measure(source_of(server))
    assert [file.size for file in source.files] == [2, 0, len(WEIGHTS)]
    huge = replace(source, files=(*source.files, SourceFile("z", "http://host/z", size=1 << 60)))
    with pytest.raises(NotEnoughSpace, match=r"node-1: .* more are needed"):
        Work(huge, store).run()
    assert server.sent.total() == 0
    assert drafts(store.models) == []


def test_a_write_that_fails_keeps_what_came(server: UpstreamServer, store: Store) -> None:
    script = script_of(server, store, "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (40_000_000, -1))")
    failed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert failed.returncode != 0
    assert "File too large" in failed.stderr
    assert Work(source_of(server), store).begun == 2 * PIECE_SIZE + 2
    Work(source_of(server), store).succeeds()


def test_a_disk_that_fills_up_says_what_is_missing(
    server: UpstreamServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(descriptor: int, buffer: memoryview, offset: int) -> None:
        if offset >= 2 * PIECE_SIZE:
            raise OSError(errno.ENOSPC, "No space left on device")
        os.pwrite(descriptor, buffer, offset)

    source = measure(source_of(server))
    with monkeypatch.context() as patched:
        patched.setattr("stagecast.draft_file.write_all", write)
        work = Work(source, store)
        with pytest.raises(NotEnoughSpace, match="free some space") as caught:
            work.run()
    assert caught.value.present == work.moved == 2 * PIECE_SIZE + 2
    assert caught.value.needed == len(WEIGHTS) - 2 * PIECE_SIZE
    Work(source, store).succeeds()


def test_measuring_leaves_open_what_nobody_says(server: UpstreamServer) -> None:
    server.tells_length = False
    server.has_ranges = False
    assert measure(source_of(server)).size is None
    assert measure(Source("m", (SourceFile("m", "http://127.0.0.1:1/m"),))).files[0].size is None


@pytest.mark.parametrize("published", [True, False])
def test_killed_in_the_middle_no_whole_piece_moves_again(server: UpstreamServer, store: Store, published: bool) -> None:
    server.hang_after = 2 * PIECE_SIZE + 1_000_000
    with subprocess.Popen([sys.executable, "-c", script_of(server, store, published=published)]) as process:
        assert server.hanging.wait(30)
        for _ in range(3000):
            if sum(record.position for record in draft_records(store.models, "m").values()) > 2 * PIECE_SIZE:
                break
            assert process.poll() is None
            threading.Event().wait(0.01)
        process.kill()
    server.release.set()
    server.hang_after = None
    before = server.sent[KEY]
    work = Work(source_of(server, published=published), store)
    assert work.begun == 2 * PIECE_SIZE + 2
    work.succeeds()
    assert server.sent[KEY] - before == len(WEIGHTS) - 2 * PIECE_SIZE
    assert server.requests[-1] == ("GET", KEY, f"bytes={2 * PIECE_SIZE}-")


@pytest.mark.parametrize("published", [True, False])
def test_whole_files_of_an_older_revision_are_not_mixed_in(
    server: UpstreamServer, store: Store, published: bool
) -> None:
    server.statuses = [200, 404]
    with pytest.raises(SourceRefused):
        Work(source_of(server, published=published), store).run()
    server.etag = '"two"'
    server.requests.clear()
    Work(source_of(server, published=published), store).succeeds()
    assert (("GET", "/config.json", None) in server.requests) is not published


def test_killed_at_any_step_it_is_brought_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = {"a": b"weights", "sub/b": b"words"}
    lay_out(tmp_path / "from", contents)
    source = replace(resolve(str(tmp_path / "from")), model="m")
    step = 0
    while True:
        step += 1
        # A place of its own: each folder that is entered at one place is one more step of those after it.
        (tmp_path / str(step)).mkdir()
        monkeypatch.setenv("STAGECAST_RUNTIME_DIR", str(tmp_path / str(step)))
        store = Store(tmp_path / str(step) / "models", tmp_path / str(step) / "data")
        lay_out(store.models / "m", {"older": b"1"})
        if in_child(dying_at(step, Work(source, store).run)) == 0:
            break
        found = contents_of(store.models / "m") if "m" in store.names() else {"older": b"1"}
        assert found in ({"older": b"1"}, contents)
        store = Store(store.models, store.data)
        Work(source, store).succeeds(contents)
    assert step > 20


def test_a_source_that_is_gone_says_so(tmp_path: Path, store: Store) -> None:
    gone = Source("m", (SourceFile("m", (tmp_path / "gone").as_uri()),), single=True)
    with pytest.raises(HolderFailed, match="No such file"):
        Work(gone, store).run()
    assert drafts(store.models) == []


def test_a_source_that_was_cut_off_is_not_installed_and_is_once_it_is_whole(tmp_path: Path, store: Store) -> None:
    head = b'{"w":{"dtype":"U8","shape":[9],"data_offsets":[0,9]}}'
    whole = len(head).to_bytes(8, "little") + head + b"123456789"
    source = tmp_path / "source" / "w.safetensors"
    lay_out(tmp_path, {"source/w.safetensors": whole[:-1]})
    with pytest.raises(InvalidManifest, match=r"w.safetensors was cut off: it has .* copy it again"):
        Work(resolve(str(source.parent), name="m"), store).run()
    assert store.names() == []
    source.write_bytes(whole)
    Work(resolve(str(source.parent), name="m"), store).run()
    assert (store.models / "m" / "w.safetensors").read_bytes() == whole
