"""What `import stagecast` gives: ten names at most, each loaded when it is first used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import stagecast


def test_the_public_names_are_few_and_sorted() -> None:
    assert stagecast.__all__ == sorted(stagecast.__all__)
    assert len(stagecast.__all__) <= 10
    assert dir(stagecast) == stagecast.__all__


@pytest.mark.parametrize("name", stagecast.__all__)
def test_each_is_there_and_says_what_it_is(name: str) -> None:
    found = getattr(stagecast, name)
    assert (found.__name__, bool(found.__doc__)) == (name, True)
    for member, value in vars(found).items():
        if not member.startswith("_") and (callable(value) or isinstance(value, property)):
            assert value.__doc__, f"{name}.{member}"


def test_what_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'stagecast' has no attribute 'Tracker'"):
        stagecast.Tracker  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize(
    ("code", "loaded"),
    [
        ("import stagecast", []),
        ("import stagecast; stagecast.Service(); stagecast.Operation", []),
        ("import stagecast; stagecast.Service().app", []),
        ("import stagecast; stagecast.Client", ["aiohttp"]),
    ],
)
def test_nothing_heavy_is_loaded_before_it_is_needed(code: str, loaded: list[str]) -> None:
    heavy = ["aiohttp", "litestar", "nats", "prometheus_client", "rich", "uvicorn", "yaml"]
    program = f"import sys; {code}; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(loaded)


@pytest.mark.parametrize("name", stagecast.__all__)
def test_the_documentation_has_every_name_and_what_it_can_do(name: str) -> None:
    document = (Path(__file__).parent.parent / "docs" / "library.md").read_text()
    assert f"`{name}`" in document
    if name in {"Service", "Operation"}:
        members = {member for member in vars(getattr(stagecast, name)) if not member.startswith("_")}
        assert {member for member in members if f"`{member}`" not in document} <= {"id", "job", "interruption"}
