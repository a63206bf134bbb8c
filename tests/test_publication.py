from __future__ import annotations

import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stagecast.durable import Lock
from stagecast.errors import WrongState
from stagecast.manifest import Manifest
from stagecast.publication import publish, throw_away, tidy, was_published
from stagecast.store import Store
from tests.killing import dying_at, in_child
from tests.sample import contents_of, fill, lay_out, manifest_of

OLD = {"a": b"old weights", "only-old": b"x"}
NEW = {"a": b"new weights!", "b/c": b"tokenizer", "empty": b""}


def shapes() -> list[tuple[dict[str, bytes], bool, dict[str, bytes] | bytes | None]]:
    """What is published, whether as a single file, and what stands under the name before."""
    one = {"m": b"one file"}
    return [(NEW, False, OLD), (NEW, False, None), (NEW, False, b"file"), (one, True, b"old"), (one, True, OLD)]


def prepare(home: Path, contents: dict[str, bytes], old: dict[str, bytes] | bytes | None, *, single: bool) -> Manifest:
    models = home / "models"
    models.mkdir(parents=True)
    if isinstance(old, bytes):
        (models / "m").write_bytes(old)
    elif old is not None:
        lay_out(models / "m", old)
    manifest = manifest_of("m", contents, piece_size=4, single=single)
    with Store(models, home / "data").partial(manifest) as partial:
        fill(partial, contents)
    return manifest


@pytest.mark.parametrize(("contents", "single", "old"), shapes())
def test_killed_at_every_step_it_is_made_good(
    tmp_path: Path, contents: dict[str, bytes], single: bool, old: dict[str, bytes] | bytes | None
) -> None:
    before = {"m": old} if isinstance(old, bytes) else old
    for step in range(1, 1000):
        home = tmp_path / str(step)
        manifest = prepare(home, contents, old, single=single)

        def work(home: Path = home, manifest: Manifest = manifest) -> None:
            with Store(home / "models", home / "data").partial(manifest) as partial:
                partial.publish()

        code = in_child(dying_at(step, work))
        store = Store(home / "models", home / "data")
        found = contents_of(store.path("m")) if store.names() else None
        assert found in (before, contents)
        if store.recorded("m") != manifest:
            with store.partial(manifest) as partial:
                assert partial.missing() == []
                assert partial.publish() == home / "models" / "m"
        assert contents_of(store.path("m")) == contents
        assert store.recorded("m") == manifest
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert step > 20


def test_what_is_left_of_a_killed_publication_does_not_stay(tmp_path: Path) -> None:
    for step in range(1, 1000):
        home = tmp_path / str(step)
        manifest = prepare(home, NEW, OLD, single=False)

        def work(home: Path = home, manifest: Manifest = manifest) -> None:
            with Store(home / "models", home / "data").partial(manifest) as partial:
                partial.publish()

        code = in_child(dying_at(step, work))
        store = Store(home / "models", home / "data")
        with store.partial(manifest) as partial:
            partial.discard()
        assert list((home / "models" / ".stagecast").iterdir()) == []
        assert contents_of(store.path("m")) in (OLD, NEW)
        if code == 0:
            return


def test_files_that_are_not_whole_never_get_the_name(tmp_path: Path) -> None:
    working = tmp_path / ".stagecast" / "draft"
    lay_out(working / "files", {"a": b"too short"})
    with pytest.raises(WrongState, match=r"a: 9 of 12 bytes"):
        publish(working, manifest_of("m", NEW), tmp_path, [].append)
    assert not (tmp_path / "m").exists()


def test_a_model_that_took_the_name_since_is_not_taken_for_ours(tmp_path: Path) -> None:
    working = tmp_path / ".stagecast" / "draft"
    lay_out(working / "files", NEW)
    lay_out(tmp_path / "m", OLD)
    (working / "publishing").write_text(f"{(tmp_path / 'm').stat().st_ino} m")
    assert not was_published(working, manifest_of("m", NEW), tmp_path)
    shutil.rmtree(working / "files")
    (working / "publishing").write_text("1 m")
    assert not was_published(working, manifest_of("m", NEW), tmp_path)
    (working / "publishing").write_text("nonsense")
    assert not was_published(working, manifest_of("m", NEW), tmp_path)


def test_tidying_leaves_alone_what_another_process_works_on(tmp_path: Path) -> None:
    working = tmp_path / ".stagecast" / "draft"
    lay_out(working / "replaced", OLD)
    (working / "publishing").write_text("1 m")
    lock = Lock(working / "lock")
    assert lock.take()
    tidy(tmp_path)
    assert not (tmp_path / "m").exists()
    lock.release()
    tidy(tmp_path)
    assert contents_of(tmp_path / "m") == OLD


def test_what_is_gone_cannot_be_thrown_away(tmp_path: Path) -> None:
    assert not throw_away(tmp_path / "nothing", tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert throw_away(tmp_path / "link", tmp_path)
    assert list((tmp_path / ".stagecast").iterdir()) == []


def test_two_revisions_that_are_published_at_once_do_not_run_into_each_other(tmp_path: Path) -> None:
    home = tmp_path / "home"
    revisions = [{"a": b"%d" % number, f"only-{number}": b"x"} for number in range(8)]

    def bring(contents: dict[str, bytes]) -> None:
        with Store(home / "models", home / "data").partial(manifest_of("m", contents)) as partial:
            fill(partial, contents)
            partial.publish()

    for _ in range(3):
        with ThreadPoolExecutor(8) as executor:
            list(executor.map(bring, revisions))
        store = Store(home / "models", home / "data")
        held = contents_of(store.path("m"))
        assert held in revisions
        assert store.recorded("m") == manifest_of("m", held)
        assert list((home / "models" / ".stagecast").iterdir()) == []
