"""A promise holds for the whole disk: over all models folders of one file system, and all processes of the machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stagecast import neighbours
from stagecast.disk import Disk, Space
from stagecast.durable import Lock
from stagecast.errors import Busy, NotEnoughSpace
from stagecast.neighbours import PLACE, Neighbours
from stagecast.publication import WORKSHOP
from stagecast.reservation import Promise
from stagecast.stocktaking import Wanted, found, stock
from stagecast.store import Store
from tests.asking import asked_at_once

MB = 1024 * 1024
_HOLDER = """
import sys
from pathlib import Path
from stagecast.store import Store
with Store(Path(sys.argv[1]), Path(sys.argv[2])).reserve(int(sys.argv[3]), purpose="staging:owl@two"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "runtime"
    folder.mkdir()
    monkeypatch.setenv(PLACE, str(folder))
    return folder


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 32 MiB that nobody else writes to."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a small disk needs a tmpfs of its own, and mounting one needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Disk]:
    """Three folders of one disk whose free space nobody else changes meanwhile."""
    found = []
    for name in ("one", "two", "three"):
        (tmp_path / name / WORKSHOP).mkdir(parents=True)
        found.append(Disk(tmp_path / name, name))
        monkeypatch.setattr(found[-1], "space", lambda: Space(1000, 2000))
    return found


@contextmanager
def holder(store: Store, count: int) -> Iterator[subprocess.Popen[str]]:
    """Another process that has been promised ``count`` bytes in the folder of that store."""
    command = [sys.executable, "-c", _HOLDER, str(store.models), str(store.data), str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def entries(place: Path) -> list[Path]:
    return sorted(place.rglob("folder-*"))


def test_two_stores_on_one_disk_are_not_both_promised_three_quarters_of_it(small: Path, tmp_path: Path) -> None:
    one, two = (Store(small / name, tmp_path / f"{name}-data", name) for name in ("one", "two"))
    three_quarters = one.space().free * 3 // 4
    with holder(two, three_quarters) as process:
        with pytest.raises(NotEnoughSpace, match=f"of which {three_quarters:,} are promised to other") as refused:
            one.reserve(three_quarters).__enter__()
        assert (refused.value.promised, refused.value.is_hopeless) == (three_quarters, False)
        with one.reserve(MB):
            assert sorted(each.left for each in two.promises()) == [MB, three_quarters]
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert one.promises() == [], "nobody had to look for it first"
        with one.reserve(three_quarters):
            pass


def test_another_disk_has_its_own_room(small: Path, tmp_path: Path) -> None:
    near, far = Store(small / "one", tmp_path / "one"), Store(tmp_path / "two", tmp_path / "two-data")
    with far.reserve(5 * MB):
        assert near.promises() == []
        with near.reserve(near.space().free - MB):
            assert [each.left for each in far.promises()] == [5 * MB]


def test_the_plan_and_the_inventory_count_what_others_promised_and_nothing_twice(tmp_path: Path) -> None:
    one, two = (Store(tmp_path / name, tmp_path / f"{name}-data", name) for name in ("one", "two"))
    same = Store(tmp_path / "two", tmp_path / "same-data", "three")
    wanted = Wanted(model="owl", digest="d", size=MB)
    with two.reserve(5000, purpose="staging:owl@two"), one.reserve(300, purpose="staging:cat@one"):
        assert [stock(each, wanted).disk_reserved for each in (one, two, same)] == [5300, 300, 5300]
        assert [stock(each, wanted).disk_own for each in (one, two, same)] == [0, 5000, 0]
        seen = [found(each, 0.0) for each in (one, two, same)]
        assert [each.reserved for each in seen] == [5300] * 3
        assert [each.reserved_here for each in seen] == [300, 5000, 5000]


def test_a_folder_by_another_name_is_the_same_folder(tmp_path: Path, place: Path) -> None:
    (tmp_path / "one" / WORKSHOP).mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "one")
    one, again = Disk(tmp_path / "one"), Disk(tmp_path / "link")
    with one.reserve(7, purpose="x"), again.reserve(5, purpose="y"):
        assert sorted(one.promises()) == sorted(again.promises()) == [Promise(5, "y"), Promise(7, "x")]
    assert len(entries(place)) == 1


def test_many_at_once_over_several_folders_are_never_promised_more_than_there_is(disks: list[Disk]) -> None:
    held, refused = asked_at_once(disks)
    assert (len(held), len(refused), max(held)) == (3, 9, 900)
    assert set(refused) == {900}


def test_a_process_that_sleeps_at_a_decision_in_another_folder_is_told_of(
    disks: list[Disk], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stagecast.reservation._PATIENCE", 0.0)
    with disks[0].reserve(1):
        [shared] = {path.parent for path in entries(place)}
    sleeper = Lock(shared / "reserving")
    assert sleeper.take()
    with pytest.raises(Busy, match=f"process {os.getpid()} on "):
        disks[1].reserve(5).__enter__()
    sleeper.release()


def test_stale_and_broken_entries_are_passed_over_and_dropped(disks: list[Disk], tmp_path: Path, place: Path) -> None:
    for disk in disks:
        disk.promises()
    one, *_ = disks
    [shared] = {path.parent for path in entries(place)}
    gone = (tmp_path / "three").stat().st_ino
    (tmp_path / "three" / WORKSHOP).rmdir()
    (tmp_path / "three").rmdir()
    (shared / "folder-1").write_bytes(os.fsencode(tmp_path / "two"))  # not the folder of that number
    (shared / f"folder-{Path('/proc').stat().st_ino}").write_text("/proc")  # on another file system
    (shared / "folder-2").write_bytes(b"\x00\xff")
    (shared / "folder-x").write_text("relative")
    (shared / "folder-3").mkdir()
    with disks[1].reserve(400, purpose="x"):
        assert one.promises() == [Promise(400, "x", is_here=False)]
        with one.reserve(600), pytest.raises(NotEnoughSpace):
            one.reserve(1).__enter__()
    assert not (shared / f"folder-{gone}").exists()
    assert {path.name for path in entries(place)} == {
        *(f"folder-{(tmp_path / name).stat().st_ino}" for name in ("one", "two")), "folder-3"
    }  # fmt: skip


def test_what_is_no_promise_in_a_folder_breaks_no_staging(disks: list[Disk], tmp_path: Path) -> None:
    for name in ("one", "two"):
        workshop = tmp_path / name / WORKSHOP
        (workshop / "reserved-folder").mkdir()
        os.mkfifo(workshop / "reserved-pipe")
        (workshop / "reserved-link").symlink_to("nowhere")
        (workshop / "reserved-text").write_bytes(b"\xb2\xff")
    disks[1].promises()
    (tmp_path / "three" / WORKSHOP).rmdir()
    (tmp_path / "three" / WORKSHOP).write_text("a file in the place of the folder")
    Neighbours(tmp_path / "three").register()
    with disks[0].reserve(1000):
        assert [each.left for each in disks[1].promises()] == [1000]


def test_an_emptied_place_is_filled_again_by_whoever_looks(disks: list[Disk], place: Path) -> None:
    with disks[0].reserve(700, purpose="x"):
        for path in entries(place):
            path.unlink()
        disks[0].promises()
        with pytest.raises(NotEnoughSpace):
            disks[1].reserve(400).__enter__()


@pytest.mark.parametrize("kind", ["missing", "a file", "open to all", "a link"])
def test_without_a_private_place_each_folder_is_on_its_own_and_says_so(
    kind: str, disks: list[Disk], tmp_path: Path, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = place / f"stagecast-{os.geteuid()}"
    if kind == "missing":
        place.rmdir()
    elif kind == "a file":
        own.write_text("")
    elif kind == "a link":
        own.symlink_to(tmp_path)
    else:
        own.mkdir()
        own.chmod(0o777)
    with disks[0].reserve(700), pytest.raises(NotEnoughSpace):
        disks[0].reserve(400).__enter__()
    assert entries(place) == []
    assert len(caplog.messages) == 1, "once, not at every look"
    assert f"what other folders on the disk of {tmp_path / 'one'} promise cannot be known" in caplog.text


def test_the_place_is_private_and_the_same_whatever_the_temporary_folder_is(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Neighbours(tmp_path).register() == place / f"stagecast-{os.geteuid()}" / str(tmp_path.stat().st_dev)
    assert (place / f"stagecast-{os.geteuid()}").stat().st_mode & 0o777 == 0o700
    monkeypatch.delenv(PLACE)
    monkeypatch.setattr(neighbours, "_MEMORY", tmp_path / "memory")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    for name in ("temporary", "memory"):
        (tmp_path / name).mkdir()
        shared = Neighbours(tmp_path).register()
        assert shared is not None
        assert shared.is_relative_to(tmp_path / name)
