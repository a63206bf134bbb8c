from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from stagecast import marks
from stagecast.marks import Marks
from stagecast.publication import WORKSHOP
from tests.sample import lay_out


@pytest.fixture
def models(tmp_path: Path) -> Path:
    (tmp_path / WORKSHOP).mkdir()
    lay_out(tmp_path, {"owl/a": b"1", "single": b"2"})
    return tmp_path


def test_who_shares_the_folder_knows_when_a_model_was_used(models: Path) -> None:
    held, began = Marks(models), time.time()
    assert held.used_at("owl") == 0
    held.use("owl")
    assert began - 1 < Marks(models).used_at("owl") < time.time() + 1
    assert (held.used_at("single"), held.used_at("nobody's")) == (0, 0)


def test_a_use_is_written_seldom(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held, path = Marks(models), models / WORKSHOP / "used-owl"
    held.use("owl")
    os.utime(path, (0, 0))
    held.use("owl")
    assert path.stat().st_mtime == 0
    monkeypatch.setattr(marks, "STEP", 0.0)
    held.use("owl")
    assert path.stat().st_mtime > 0


def test_a_use_that_cannot_be_written_is_no_fault(tmp_path: Path) -> None:
    Marks(tmp_path / "nowhere").use("owl")


def test_pins_are_kept_with_the_models(models: Path) -> None:
    held = Marks(models)
    assert held.pinned() == []
    held.pin("single")
    held.pin("owl")
    held.pin("owl")
    assert Marks(models).pinned() == ["owl", "single"]
    held.unpin("single")
    held.unpin("single")
    assert held.pinned() == ["owl"]
    held.use("owl")
    held.forget("owl")
    assert list((models / WORKSHOP).iterdir()) == []
