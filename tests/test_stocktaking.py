"""What a plan is told of a disk: what a staging would then find there, without a look into any file."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from stagecast import stocktaking
from stagecast.manifest import Manifest
from stagecast.records import identity_of
from stagecast.stocktaking import Wanted, manifest_here
from stagecast.store import Store
from tests.nodes import Nodes
from tests.sample import fill, lay_out, manifest_of
from tests.test_gathering import BIG, OTHER, STEP, _shares_blocks, publish
from tests.test_keeper import kept
from tests.test_worker import staged


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models", tmp_path / "data")


def wanted(manifest: Manifest) -> Wanted:
    return Wanted(model=manifest.model, digest=manifest.digest, size=manifest.size)


def told(store: Store, manifest: Manifest) -> tuple[int, int]:
    """Return the bytes that are present, and those of them that are to be copied."""
    found = stocktaking.stock(store, wanted(manifest), manifest)
    return found.present, found.to_copy


def test_a_file_of_another_model_is_there_and_takes_no_room(store: Store) -> None:
    for name in ("one", "two"):
        publish(store, name, {"weights": BIG})
    three = manifest_of("three", {"w": BIG, "more": b"m"}, piece_size=STEP)
    assert told(store, three) == (len(BIG), 0)
    assert stocktaking.stock(store, wanted(three)).present == 0, "a digest alone tells nothing of files"
    assert [path.name for path in store.models.iterdir() if path.name == "three"] == []


def test_equal_pieces_of_an_older_revision_are_there_and_take_room(store: Store) -> None:
    publish(store, "m", {"weights": BIG})
    newer = manifest_of("m", {"weights": BIG[:STEP] + b"x" * STEP + BIG[2 * STEP :]}, piece_size=STEP)
    assert told(store, newer) == (len(BIG) - STEP, len(BIG) - STEP)


def test_what_people_have_put_there_is_copied_where_blocks_cannot_be_shared(store: Store) -> None:
    lay_out(store.models / "theirs", {"weights": BIG})
    store.vouch(manifest_of("theirs", {"weights": BIG}), [identity_of(store.models / "theirs" / "weights")])
    mine = manifest_of("mine", {"weights": BIG}, piece_size=STEP)
    assert told(store, mine) == (len(BIG), 0 if _shares_blocks(store) else len(BIG))


def test_what_was_changed_or_is_gone_is_not_there(store: Store) -> None:
    publish(store, "one", {"weights": BIG, "other": OTHER})
    (store.models / "one" / "weights").write_bytes(b"changed")
    two = manifest_of("two", {"weights": BIG, "other": OTHER}, piece_size=STEP)
    assert told(store, two) == (len(OTHER), 0)
    (store.models / "one" / "other").unlink()
    assert told(store, two) == (0, 0)


def test_what_has_arrived_counts_once_and_its_manifest_is_known(store: Store) -> None:
    publish(store, "one", {"weights": BIG})
    two = manifest_of("two", {"weights": BIG, "other": OTHER}, piece_size=STEP)
    assert manifest_here(store, wanted(two)) is None
    with store.partial(two) as partial:
        first = next(piece for piece in partial.missing() if two.files[piece.file].size == len(BIG))
        partial.write(first, 0, BIG[:100])
    assert manifest_here(store, wanted(two)) == two
    # A file of which something has come is not linked any more, and a piece that was begun is gone on with.
    assert told(store, two) == (100 + len(BIG) - STEP, len(BIG) - STEP)
    with store.partial(two) as partial:
        fill(partial, {"weights": BIG, "other": OTHER})
        partial.publish()
    assert told(store, two) == (two.size, 0)


async def test_a_node_asks_a_holder_what_a_revision_consists_of(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path)
    zoo = {"one/a.bin": BIG, "three/b.bin": BIG, "three/more": b"more"}
    async with nodes.node("holder", zoo) as holder, nodes.worker("w") as member:
        await holder.until_held("one", "three")
        assert (await staged(holder, "one", "w")).state == "succeeded"
        three = holder.node.store.recorded("three")
        assert three is not None
        question = msgspec.Raw(msgspec.json.encode(wanted(three)))
        async with kept(member, token="token") as keeping:
            found = await keeping.questions["stock"](question)
        assert (found.present, found.to_copy) == (len(BIG), 0)  # type: ignore[attr-defined]
        received = member.node.bytes_received
        end = await staged(holder, "three", "w")
        assert (end.state, member.node.bytes_received - received) == ("succeeded", len(b"more")), "as was planned"
    async with nodes.worker("w") as member:
        await member.until_held("one", "three")
        gone = msgspec.Raw(msgspec.json.encode(Wanted(model="x", digest="0" * 64, size=9)))
        async with kept(member) as keeping:
            assert (await keeping.questions["stock"](gone)).present == 0  # type: ignore[attr-defined]
