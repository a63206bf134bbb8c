"""Holders that do not behave, each beside a good one and alone; the table in docs/transfer.md is held to this."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import NamedTuple

import pytest

from stagecast.errors import HolderFailed, HoldersFailed, PieceCorrupt, TransferFailed
from stagecast.manifest import encode
from stagecast.store import Store
from stagecast.transfer import FileServer, fetch_manifest
from tests.sample import manifest_of
from tests.transfer import hostile as faults
from tests.transfer.hostile import Answer, Request, hostile
from tests.transfer.test_pull import CONTENTS, MANIFEST, PIECE, SIZE, Caller, assert_whole, gone, holder, serving

STALL = 0.25


class Case(NamedTuple):
    """What a holder does, in the words of the table; the cause that is named where nobody else has the model."""

    what: str
    answer: Answer
    cause: str


# Which of the two is said first of who goes silent, or nearly so, is up to the machine where half a second is long.
HARDLY = f"sent (no byte for {STALL:g} s|only [0-9,]+ bytes within {STALL:g} s)"
WHOLE = "comes whole all the same"
SILENT = f"sent no byte for {STALL:g} s"
PAGE = "with a page for people, as a proxy does"
CASES = (
    Case("takes the request and says nothing", faults.hang, SILENT),
    Case("hangs in the middle of the bytes", faults.hang_in_the_body, HARDLY),
    Case("trickles: a byte now and then", faults.trickle, HARDLY),
    Case("closes as soon as it is asked", faults.close_at_once, "closed the connection too early"),
    Case("closes in the middle of the head", faults.close_in_the_head, "closed the connection too early"),
    Case("closes half-way to the end, each time", faults.close_early, "closed the connection too early"),
    Case("closes after 16 KiB, each time", faults.close_after_a_while, WHOLE),
    Case("answers 200 with the whole file for a range", faults.ignore_the_range, "ignores ranges"),
    Case("answers for another range", faults.say_another_range, "were asked for"),
    Case("does not say which range it answers for", faults.say_no_range, "is not a Content-Range"),
    Case("announces fewer bytes than the range has", faults.say_another_length, "not as long as its own range"),
    Case("sends more bytes than the range has", faults.send_too_much, WHOLE),
    Case("sends the bytes in chunks, without a length", faults.chunked, "not as long as its own range"),
    Case("names another ETag", faults.say_another_etag, "has another file there, with the ETag"),
    Case("changes its ETag while it is read", faults.change_the_etag, "has another file there, with the ETag"),
    Case("is behind a proxy that answers 200 with a page", faults.send_html, PAGE),
    Case("is behind a proxy that answers 502 with a page", faults.send_a_page_as_an_error, PAGE),
    Case("is behind a proxy that sends a page as the range", faults.send_a_page_as_the_range, PAGE),
    Case("sends elsewhere, to log in", faults.send_elsewhere, "answered HTTP 302"),
    Case("flips a bit of each piece", faults.flip_a_byte, "with a wrong digest"),
    Case("serves another file under the digest", faults.serve_another_file, "with a wrong digest"),
    Case("does not have the file", faults.not_found, "does not have it"),
    Case("fails inside", faults.fail, "answered HTTP 500"),
    Case("does not speak HTTP", faults.speak_in_tongues, "does not speak HTTP"),
    Case("never ends its head", faults.endless_head, "no HTTP response that makes sense"),
)


WITHOUT_RANGES = {
    "answers 200 with the whole file for a range", "answers for another range",
    "does not say which range it answers for", "is behind a proxy that answers 200 with a page",
}  # fmt: skip
"""What is no fault where no range is asked for, or the same as another one."""

IN_BUNDLES = {
    "announces fewer bytes than the range has": "sent a bundle that is not as long as its pieces",
    "sends the bytes in chunks, without a length": "sent a bundle that is not as long as its pieces",
    "names another ETag": "has another model there, with the ETag",
    "changes its ETag while it is read": "has another model there, with the ETag",
}
"""What is said in other words of who is asked for many small pieces at once."""

BUNDLED = [
    case._replace(cause=IN_BUNDLES.get(case.what, case.cause)) for case in CASES if case.what not in WITHOUT_RANGES
]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models", tmp_path / "data")


EACH = pytest.mark.parametrize(
    ("case", "bundled"), [(case, False) for case in CASES] + [(case, True) for case in BUNDLED],
    ids=[case.what for case in CASES] + [f"{case.what}, in a bundle" for case in BUNDLED],
)  # fmt: skip


@EACH
def test_beside_a_good_holder_all_of_it_comes(store: Store, tmp_path: Path, case: Case, bundled: bool) -> None:
    with (
        serving(tmp_path / "good", MANIFEST, CONTENTS) as good,
        hostile(case.answer, MANIFEST, CONTENTS, bundled=bundled) as bad,
        store.partial(MANIFEST) as partial,
    ):
        caller = Caller(partial)

        pulled = caller.pull(bad.holder, holder(good), patience=60.0, stall=STALL)

        assert bad.requests
        assert pulled.holders["good"] > 0
        assert caller.done == SIZE
        assert_whole(partial)


@EACH
def test_alone_it_is_named_with_the_cause(store: Store, case: Case, bundled: bool) -> None:
    with hostile(case.answer, MANIFEST, CONTENTS, bundled=bundled) as bad, store.partial(MANIFEST) as partial:
        if case.cause == WHOLE:
            pulled = Caller(partial).pull(bad.holder, patience=60.0)
            assert pulled.bytes_verified == SIZE
            assert_whole(partial)
            return
        stall = STALL if case.cause in {SILENT, HARDLY} else 60.0
        with pytest.raises(TransferFailed) as caught:
            Caller(partial).pull(bad.holder, patience=0.1, stall=stall)
        assert re.search(case.cause, caught.value.message)
        assert "bad" in caught.value.message
        assert isinstance(caught.value, PieceCorrupt if "digest" in case.cause else HoldersFailed)
        assert not (store.models / "tiny").exists()


def test_each_of_several_is_named_with_its_own_cause(store: Store) -> None:
    with hostile(faults.fail, MANIFEST, CONTENTS) as bad, store.partial(MANIFEST) as partial:
        with pytest.raises(HoldersFailed) as caught:
            Caller(partial).pull(bad.holder, gone(), patience=0.1)

        assert caught.value.causes.keys() == {"bad", "gone"}
        assert "answered HTTP 500" in caught.value.causes["bad"]
        assert "refused" in caught.value.causes["gone"]
        assert "tiny" in caught.value.message


def test_who_trickles_for_ever_does_not_hold_a_pull_for_ever(store: Store) -> None:
    # Each byte is one more than before, and still nobody waits for 300,000 of them.
    with hostile(faults.trickle, MANIFEST, CONTENTS) as bad, store.partial(MANIFEST) as partial:
        caller = Caller(partial)
        with pytest.raises(HoldersFailed, match=r"bad: sent (only|no byte)"):
            caller.pull(bad.holder, patience=1.0, stall=0.3)
        assert caller.done > 0


def test_a_lie_in_the_manifest_is_named() -> None:
    other = manifest_of("tiny", {"config.json": b"other"})

    def lie(request: Request) -> None:
        body = encode(other)
        request.head("200 OK", Content_Length=str(len(body)), Content_Range="")
        request.connection.sendall(body)

    with (
        hostile(faults.serve_well, MANIFEST, CONTENTS, about=lie) as bad,
        pytest.raises(HolderFailed, match=f"holder bad: sent manifest {other.digest} where {MANIFEST.digest}"),
    ):
        fetch_manifest(bad.holder, MANIFEST.digest)


def test_a_manifest_that_trickles_is_given_up() -> None:
    long = manifest_of("tiny", {"a": bytes(64 * 300)}, piece_size=64)
    with (
        hostile(faults.serve_well, long, {"a": b""}, about=lambda request: faults.trickle(request, "200 OK")) as bad,
        pytest.raises(HolderFailed, match=r"holder bad: sent (only|no byte)"),
    ):
        fetch_manifest(bad.holder, long.digest, stop=threading.Event(), stall=0.3)


def test_the_table_has_just_these_cases() -> None:
    text = (Path(__file__).parents[2] / "docs" / "transfer.md").read_text()
    table = text.partition("## Holders that do not behave")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:3] == "| *"]
    told = {what.strip("*"): alone for what, _, alone in rows}
    assert list(told) == [case.what for case in CASES]
    for case in CASES:
        assert re.search(case.cause.replace(f"{STALL:g} s", "10 s"), told[case.what]), case.what


def test_the_good_one_is_needed_for_the_bad_pieces_only(store: Store, tmp_path: Path) -> None:
    """Whoever lies about one piece keeps its share of the others, and what it gave of them does not move again."""

    def lie_once(request: Request) -> None:
        (faults.flip_a_byte if request.start == PIECE else faults.serve_well)(request)

    with (
        serving(tmp_path / "good", MANIFEST, CONTENTS) as good,
        hostile(lie_once, MANIFEST, CONTENTS) as bad,
        store.partial(MANIFEST) as partial,
    ):
        pulled = Caller(partial).pull(bad.holder, holder(good))
        assert pulled.bytes_received <= SIZE + 2 * PIECE
        assert pulled.holders["bad"] >= PIECE
        assert_whole(partial)


def test_a_server_of_ours_is_not_taken_for_a_hostile_one(store: Store, tmp_path: Path) -> None:
    with serving(tmp_path / "good", MANIFEST, CONTENTS) as good, store.partial(MANIFEST) as partial:
        assert isinstance(good, FileServer)
        pulled = Caller(partial).pull(holder(good), stall=5.0)
        assert pulled.bytes_received == SIZE
