"""The demo as a whole, on the real model, and what it leaves behind."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from stagecast import demo, recipes
from stagecast.cluster import LOCK
from stagecast.demo import DemoIncomplete, DemoSettings, run, write_backends

ROOT = Path(__file__).parents[1]


def test_its_backends_file_is_a_recipe_for_every_model(tmp_path: Path) -> None:
    [recipe, *_] = recipes.load(write_backends(tmp_path, Path("/x/server.py")))
    assert recipe.fits("anything", ["model.safetensors"])
    arguments = recipe.arguments("m", Path("/models/m"), "127.0.0.1", 5)
    assert " ".join(arguments[1:]) == "/x/server.py --model /models/m --host 127.0.0.1 --port 5 --name m"


async def test_an_installed_package_without_the_examples_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "__file__", "/usr/lib/python3/site-packages/stagecast/demo.py")
    with pytest.raises(DemoIncomplete, match="run it in a clone of the repository"):
        await run(DemoSettings())


async def test_what_the_backend_needs_is_said_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_NEEDED", ("numpy", "nothing_of_that_name"))
    with pytest.raises(DemoIncomplete, match=r"needs nothing_of_that_name.*pip install 'stagecast\[demo\]'"):
        await run(DemoSettings())


def test_what_killed_demos_left_is_swept_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in ("stagecast-demo-dead", "stagecast-demo-alive", "stagecast-demo-begun", "other"):
        (tmp_path / name).mkdir()
    for name in ("stagecast-demo-dead", "stagecast-demo-alive", "other"):
        (tmp_path / name / LOCK).touch()
    with (tmp_path / "stagecast-demo-alive" / LOCK).open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with demo._data_folder(None) as made:
            left = {path.name for path in tmp_path.iterdir()}
            assert left == {"stagecast-demo-alive", "stagecast-demo-begun", "other", made.name}
    assert not made.exists()


@pytest.mark.system
@pytest.mark.usefixtures("real_model")
def test_the_main_job(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stagecast", "demo", "--rate-limit", "25MB/s", "--data", str(tmp_path / "data")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert "✗" not in done.stdout
    assert done.stdout.count("✓") == 13
    assert "through the balancer and replica-" in done.stdout
    assert (tmp_path / "data" / "logs" / "worker-1.log").exists()
