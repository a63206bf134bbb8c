"""Cancel and pause take effect within two seconds in each phase of a staging, however it hangs there."""

from __future__ import annotations

import asyncio
import os
import struct
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from blake3 import blake3

from stagecast import broadcast, ownership
from stagecast.commands import Commands
from stagecast.errors import WrongState
from stagecast.manifest import PIECE_SIZE, Manifest, ManifestFile, encode, file_digest
from stagecast.messages import Record, Verb
from stagecast.partial import Partial
from tests.conftest import eventually
from tests.nodes import Member, Nodes
from tests.sample import contents_of, manifest_of
from tests.transfer.hostile import Request, hang, hang_in_the_body, hostile, serve_well, tell_the_manifest

FILES: Final = {"a.bin": b"a" * 5000, "sub/b.json": b"{}"}
MANIFEST: Final = manifest_of("owl", FILES)
LARGE: Final = 1 << 36
"""Bytes of a file without any content on the disk: hashing it takes many seconds."""


@pytest.fixture
async def member(tmp_path: Path) -> AsyncIterator[Member]:
    async with Nodes(tmp_path).worker("w") as member:
        yield member


@pytest.fixture
async def commands(member: Member) -> AsyncIterator[Commands]:
    async with Commands(member.tracker).running() as commands:
        yield commands


@pytest.fixture
def nodes(tmp_path: Path) -> Nodes:
    return Nodes(tmp_path)


def hang_in_the_third_piece(request: Request) -> None:
    """Many small pieces are asked for together, so nothing comes behind the one that hangs."""
    (serve_well if request.start < 2048 else hang_in_the_body)(request)


@contextmanager
def holder(phase: str) -> Iterator[str]:
    """Yield the address of a holder of the owl that hangs in a phase."""
    about = hang if phase == "planning" else tell_the_manifest
    with hostile(hang_in_the_third_piece, MANIFEST, FILES, about=about) as bad:
        yield bad.holder.url


async def begun(member: Member, manifest: Manifest = MANIFEST, url: str = "http://127.0.0.1:9") -> Record:
    """Queue a staging of a model that another node seems to hold."""
    await Nodes(member.models).announce(member, manifest, url)
    parameters = {"digest": manifest.digest}
    record, _ = await member.tracker.open("staging", manifest.model, "w", cause="test", parameters=parameters)
    return record


def record_of(member: Member) -> Record:
    found = member.tracker.fold.record("staging:owl@w")
    assert found is not None
    return found


async def shown(member: Member, **fields: object) -> Record:
    """Return the record once it has these values."""
    await eventually(
        lambda: (
            (found := member.tracker.fold.record("staging:owl@w")) is not None
            and all(getattr(found, name) == value for name, value in fields.items())
        )
    )
    return record_of(member)


async def stopped(commands: Commands, verb: Verb, *, keep_partial: bool = False) -> Record:
    """Give the command and return what has become of the operation, long before what hangs is given up."""
    async with asyncio.timeout(8):
        record, _ = await commands.give("staging:owl@w", verb, keep_partial=keep_partial)
    return record


@pytest.mark.parametrize("phase", ["planning", "transferring"])
@pytest.mark.parametrize(("verb", "state"), [("cancel", "cancelled"), ("pause", "paused")])
async def test_a_holder_that_hangs_stops_nobody(
    member: Member, commands: Commands, phase: str, verb: Verb, state: str
) -> None:
    with holder(phase) as url:
        await begun(member, url=url)
        at = await shown(member, state="running", phase=phase)
        if phase == "transferring":
            await eventually(lambda: record_of(member).bytes_done > at.bytes_present)
        end = await stopped(commands, verb)
    assert (end.state, end.phase, end.attempt) == (state, phase, 1)
    assert bool(member.node.store.partials()) == (phase == "transferring" and verb == "pause")


@pytest.mark.parametrize("keep_partial", [True, False])
async def test_a_cancel_keeps_or_frees_what_has_arrived_and_says_how_much(
    member: Member, commands: Commands, keep_partial: bool
) -> None:
    with holder("transferring") as url:
        await begun(member, url=url)
        await shown(member, phase="transferring")
        await eventually(lambda: record_of(member).bytes_done > 2500)
        end = await stopped(commands, "cancel", keep_partial=keep_partial)
    kept = sum(partial.bytes_done for partial in member.node.store.partials())
    assert (end.state, end.keep_partial, end.bytes_kept) == ("cancelled", keep_partial, kept)
    if not keep_partial:
        assert kept == 0
        assert broadcast.sentence(end).endswith(f": cancelled; {end.bytes_done / 1000:.1f} kB freed")
        return
    assert kept > 0
    assert broadcast.sentence(end).endswith(f": cancelled; {kept / 1000:.1f} kB kept")
    with hostile(serve_well, MANIFEST, FILES) as good:
        again = await begun(member, url=good.holder.url)
        done = await shown(member, job=again.job, state="succeeded")
        assert sum(stop - start for start, stop in good.requests) == MANIFEST.size - kept
    assert (done.bytes_present, done.bytes_done) == (kept, MANIFEST.size)
    assert contents_of(member.models / "owl") == FILES


@pytest.mark.parametrize("keep_partial", [True, False])
async def test_the_choice_holds_where_nobody_works_on_it(
    member: Member, commands: Commands, keep_partial: bool
) -> None:
    with holder("transferring") as url:
        await begun(member, url=url)
        await shown(member, phase="transferring")
        await eventually(lambda: record_of(member).bytes_done > 2500)
        paused = await stopped(commands, "pause")
        end = await stopped(commands, "cancel", keep_partial=keep_partial)
    assert (end.state, end.bytes_kept) == ("cancelled", paused.bytes_done if keep_partial else 0)
    if not keep_partial:
        await eventually(lambda: not member.node.store.partials())
    assert [partial.bytes_done for partial in member.node.store.partials()] == [paused.bytes_done] * keep_partial


@pytest.mark.parametrize(("verb", "state"), [("cancel", "cancelled"), ("pause", "paused")])
async def test_what_lies_there_is_read_with_a_phase_of_its_own_and_can_be_stopped(
    member: Member, commands: Commands, verb: Verb, state: str
) -> None:
    (member.models / "owl").touch()
    os.truncate(member.models / "owl", LARGE)
    await begun(member)
    await shown(member, state="running", phase="verifying")
    assert (await stopped(commands, verb)).state == state


@pytest.mark.parametrize(("verb", "state"), [("cancel", "cancelled"), ("pause", "paused")])
async def test_what_had_arrived_is_read_again_shows_that_it_goes_on_and_can_be_stopped(
    member: Member, commands: Commands, verb: Verb, state: str
) -> None:
    manifest = large("owl")
    lay_out_unverified(member.models, manifest)
    with hostile(hang, manifest, {"owl": b""}) as bad:
        await begun(member, manifest, bad.holder.url)
        first = await shown(member, state="running", phase="verifying")
        await eventually(lambda: record_of(member).updated_at > first.updated_at)
        later = record_of(member)
        end = await stopped(commands, verb)
    assert later.note.endswith(" of 68.7 GB checked")
    assert (later.bytes_done, later.bytes_present, later.rate) == (LARGE, LARGE, None)
    assert end.state == state


@pytest.mark.parametrize("verb", ["cancel", "pause"])
async def test_what_is_being_published_is_past_stopping_and_says_so(
    member: Member, commands: Commands, monkeypatch: pytest.MonkeyPatch, verb: Verb
) -> None:
    go, publish = threading.Event(), Partial.publish
    monkeypatch.setattr(Partial, "publish", lambda partial: go.wait(60) and publish(partial))
    with hostile(serve_well, MANIFEST, FILES) as good:
        await begun(member, url=good.holder.url)
        await shown(member, phase="publishing")
        try:
            with pytest.raises(WrongState, match=f"cannot {verb} staging:owl@w: it is publishing, past stopping"):
                await stopped(commands, verb)
        finally:
            go.set()
        await shown(member, state="succeeded")
    assert contents_of(member.models / "owl") == FILES
    with pytest.raises(WrongState, match=f"cannot {verb} staging:owl@w: it is succeeded"):
        await stopped(commands, verb)


async def test_an_owner_that_gets_no_byte_says_so_and_on_what_it_waits(
    member: Member, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "PATIENCE", 0.3)
    monkeypatch.setattr(ownership, "BEAT", 0.2)
    with holder("transferring") as url:
        await begun(member, url=url)
        stalled = await shown(member, state="stalled")
        assert (stalled.waits_on, stalled.owner, stalled.rate) == ("source", member.tracker.process, None)
        assert stalled.note == "it fails after 30 s without one from any holder"
        assert 0 <= stalled.updated_at - stalled.waits_since < 60
        await eventually(lambda: record_of(member).updated_at > stalled.updated_at)
        assert record_of(member).waits_since == stalled.waits_since
        assert (await stopped(commands, "cancel")).state == "cancelled"


async def test_a_holder_that_refuses_connections_is_the_network_and_the_first_byte_ends_the_stall(
    member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "PATIENCE", 0.3)
    with hostile(serve_well, MANIFEST, FILES) as good:
        refusing = "http://127.0.0.1:9"
        await begun(member, url=refusing)
        stalled = await shown(member, state="stalled", phase="planning")
        assert stalled.waits_on == "network"
        await Nodes(member.models).announce(member, MANIFEST, good.holder.url)
        end = await shown(member, state="succeeded")
    assert (end.waits_on, end.waits_since) == ("", 0.0)


async def test_a_disk_that_takes_no_bytes_is_what_it_waits_for(member: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "PATIENCE", 0.3)
    go, write = threading.Event(), Partial.write

    def slow(*arguments: object) -> None:
        go.wait(60)
        write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Partial, "write", slow)
    with hostile(serve_well, MANIFEST, FILES) as good:
        await begun(member, url=good.holder.url)
        try:
            assert (await shown(member, state="stalled")).waits_on == "target disk"
        finally:
            go.set()
        await shown(member, state="succeeded")


def large(model: str) -> Manifest:
    """Return the manifest of one file of nothing but zeros."""
    piece = blake3(bytes(PIECE_SIZE)).hexdigest()
    pieces = (piece,) * (LARGE // PIECE_SIZE)
    file = ManifestFile(path=model, size=LARGE, digest=file_digest(pieces, LARGE), pieces=pieces)
    return Manifest(model=model, files=(file,), single=True)


async def test_what_a_cancel_has_kept_another_one_frees(member: Member, commands: Commands) -> None:
    with holder("transferring") as url:
        await begun(member, url=url)
        await shown(member, phase="transferring")
        await eventually(lambda: record_of(member).bytes_done > 2500)
        kept = await stopped(commands, "cancel", keep_partial=True)
    assert member.node.store.partials()
    assert await stopped(commands, "cancel", keep_partial=True) == kept, "what holds already is left as it is"
    freed = await stopped(commands, "cancel")
    assert (freed.state, freed.attempt, freed.keep_partial, freed.bytes_kept) == ("cancelled", kept.attempt, False, 0)
    assert freed.updated_at == kept.updated_at
    await eventually(lambda: not member.node.store.partials())
    assert await stopped(commands, "cancel") == freed


def lay_out_unverified(models: Path, manifest: Manifest) -> None:
    """Let all of a model have arrived, and nothing of it be verified."""
    folder = models / ".stagecast" / f"partial-{manifest.digest[:16]}-{manifest.model}"
    (folder / "files").mkdir(parents=True)
    (folder / "files" / manifest.files[0].path).touch()
    os.truncate(folder / "files" / manifest.files[0].path, LARGE)
    (folder / "manifest.json").write_bytes(encode(manifest))
    (folder / "status").write_bytes(struct.pack("<I", PIECE_SIZE) * (LARGE // PIECE_SIZE))
