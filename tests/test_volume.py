from __future__ import annotations

from pathlib import Path

import pytest

from stagecast import volume
from stagecast.volume import Mount, mount_of, volume_of

MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
98 22 0:45 / /srv/models rw,relatime shared:50 - nfs4 store:/models rw,vers=4.2
99 22 0:46 / /mnt/x rw master:3 shared:7 - fuse.s3fs bucket rw
broken
"""


def test_what_is_mounted_is_found_by_its_device() -> None:
    assert mount_of("8:1", MOUNTS) == Mount("ext4", "/dev/sda1")
    assert mount_of("0:45", MOUNTS) == Mount("nfs4", "store:/models")
    assert mount_of("9:9", MOUNTS) == mount_of("8:1", "") == Mount("", "")


def test_one_folder_is_one_volume_whatever_it_is_called(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert volume_of(tmp_path / "a") == volume_of(tmp_path / "link") == volume_of(tmp_path / "a" / ".." / "a")
    assert volume_of(tmp_path / "a") != volume_of(tmp_path / "b")


@pytest.mark.parametrize(("kind", "source"), [("nfs4", "store:/models"), ("fuse.s3fs", "bucket")])
def test_a_remote_one_is_its_server_s_wherever_it_is_mounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, source: str
) -> None:
    monkeypatch.setattr(volume, "mount_of", lambda *_: Mount(kind, source))
    assert volume_of(tmp_path) == f"{kind}:{source}:{tmp_path.stat().st_ino}"
