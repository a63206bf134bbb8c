from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from stagecast.durable import Lock, opened, start_writing, sync_files, write_all, write_whole
from tests.killing import dying_at, in_child


def test_a_file_is_old_or_new_at_every_step(tmp_path: Path) -> None:
    for step in range(1, 100):
        path = tmp_path / f"file-{step}"
        path.write_bytes(b"old")
        code = in_child(dying_at(step, lambda path=path: write_whole(path, b"new content")))
        assert path.read_bytes() in (b"old", b"new content")
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert step > 2
    assert path.read_bytes() == b"new content"


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(28, "no space left")

    (tmp_path / "file").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="no space"):
        write_whole(tmp_path / "file", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"old")]


def test_short_writes_are_carried_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, offset: real(descriptor, data[:3], offset))
    with opened(tmp_path / "file", os.O_WRONLY | os.O_CREAT) as descriptor:
        write_all(descriptor, memoryview(b"0123456789"), 2)
    assert (tmp_path / "file").read_bytes() == b"\0\x000123456789"


def test_much_is_written_in_portions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A virtual machine's kernel finds no memory at hand for blocks of half a megabyte and more."""
    real, portions, data = os.pwrite, list[int](), os.urandom(1_000_000)

    def write(descriptor: int, portion: memoryview, offset: int) -> int:
        portions.append(portion.nbytes)
        return real(descriptor, portion, offset)

    monkeypatch.setattr(os, "pwrite", write)
    with opened(tmp_path / "file", os.O_WRONLY | os.O_CREAT) as descriptor:
        write_all(descriptor, data, 0)
    assert (tmp_path / "file").read_bytes() == data
    assert sum(portions) == len(data)
    assert max(portions) <= 256 * 1024


def test_one_at_a_time_holds_a_lock_and_says_who(tmp_path: Path) -> None:
    one, other = Lock(tmp_path / "deep" / "lock"), Lock(tmp_path / "deep" / "lock")
    assert other.holder() == "another process"
    assert one.take()
    assert not other.take()
    assert other.holder().startswith(f"process {os.getpid()} on ")
    one.release()
    one.release()
    assert other.take()
    other.release()


def test_a_killed_process_lets_go(tmp_path: Path) -> None:
    def work() -> None:
        assert Lock(tmp_path / "lock").take()
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(work) == -signal.SIGKILL
    lock = Lock(tmp_path / "lock")
    assert lock.take()
    lock.release()


def test_a_lock_whose_file_the_holder_deleted_is_still_one_lock(tmp_path: Path) -> None:
    path, inside, most = tmp_path / "folder" / "lock", [0], [0]
    guard = threading.Lock()

    def work() -> None:
        lock = Lock(path)
        for number in range(200):
            while not lock.take():
                pass
            with guard:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                inside[0] -= 1
                path.parent.rename(tmp_path / f"{threading.get_ident()}-{number}")
            lock.release()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def test_what_is_in_the_way_of_a_lock_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file", "link"):
        with pytest.raises(OSError, match=name):
            Lock(tmp_path / name / "lock").take()


@pytest.mark.parametrize("count", [0, 1, 3, 40])
def test_every_file_is_synced_and_a_failure_is_told(tmp_path: Path, count: int) -> None:
    paths = [tmp_path / str(number) for number in range(count)]
    for path in paths:
        path.write_bytes(b"x")
    synced: list[str] = []
    sync_files(paths, lambda descriptor: synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink())))
    assert sorted(synced) == sorted(map(str, paths))

    def refuse(descriptor: int) -> None:
        raise OSError(5, "broken disk")

    if paths:
        with pytest.raises(OSError, match="broken disk"):
            sync_files(paths, refuse)


def test_bytes_that_go_to_the_disk_early_are_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"0123456789")
    start_writing(path, 2, 5)
    assert path.read_bytes() == b"0123456789"
    with pytest.raises(FileNotFoundError):
        start_writing(tmp_path / "gone", 0, 1)
