from __future__ import annotations

import sys
from pathlib import Path

import pytest

from stagecast import recipes
from stagecast.errors import BackendFailed, BadInput
from stagecast.recipes import Recipe

WHOLE = """
backends:
  - name: embeddings
    match: "*MiniLM*"
    command: ["{python}", "server.py", "--model={path}", "--host", "{host}", "--port", "{port}", "--name", "{model}"]
    health: /healthz
    environment: {OMP_NUM_THREADS: "4"}
    working_directory: servers
    patience: 90
  - name: llama
    files: "*.gguf"
    command: [llama-server, -m, "{file}", --port, "{port}", --template, "{{x}}"]
"""
BARE = "backends: [{name: n, command: ['{port}'], %s}]"


def written(folder: Path, text: str) -> Path:
    path = folder / "backends.yaml"
    path.write_text(text)
    return path


@pytest.fixture
def loaded(tmp_path: Path) -> tuple[Recipe, ...]:
    (tmp_path / "servers").mkdir()
    return recipes.load(written(tmp_path, WHOLE))


def test_every_key_of_an_entry_is_taken(loaded: tuple[Recipe, ...], tmp_path: Path) -> None:
    recipe = loaded[0]
    assert (recipe.name, recipe.match, recipe.health, recipe.patience) == ("embeddings", "*MiniLM*", "/healthz", 90.0)
    assert recipe.environment == {"OMP_NUM_THREADS": "4"}
    assert recipe.working_directory == tmp_path / "servers"


def test_what_an_entry_leaves_out_has_a_default(loaded: tuple[Recipe, ...], tmp_path: Path) -> None:
    recipe = loaded[1]
    assert (recipe.match, recipe.health, recipe.patience) == ("*", "/health", recipes.PATIENCE)
    assert recipe.environment == {}
    assert recipe.working_directory == tmp_path


def test_the_command_is_filled_in(loaded: tuple[Recipe, ...]) -> None:
    path = Path("/models/all-MiniLM")
    arguments = loaded[0].arguments("all-MiniLM", path, "127.0.0.1", 8081)
    assert arguments == [
        sys.executable, "server.py", f"--model={path}", "--host", "127.0.0.1", "--port", "8081", "--name", "all-MiniLM",
    ]  # fmt: skip


def test_a_relative_path_still_leads_there_from_the_recipe_s_own_folder(
    loaded: tuple[Recipe, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert f"--model={tmp_path}/models/m" in loaded[0].arguments("m", Path("models/m"), "h", 1)


def test_the_file_is_the_first_that_fits_in_a_folder_and_else_the_model_itself(
    loaded: tuple[Recipe, ...], tmp_path: Path
) -> None:
    folder = tmp_path / "split"
    folder.mkdir()
    for name in ("README.md", "m-00002-of-00002.gguf", "m-00001-of-00002.gguf"):
        (folder / name).touch()
    assert loaded[1].arguments("split", folder, "h", 1)[2] == str(folder / "m-00001-of-00002.gguf")
    single = folder / "m-00001-of-00002.gguf"
    assert loaded[1].arguments("single", single, "h", 1)[2] == str(single)


def test_doubled_braces_are_braces(loaded: tuple[Recipe, ...]) -> None:
    assert loaded[1].arguments("m", Path("m.gguf"), "h", 1)[-1] == "{x}"


@pytest.mark.parametrize(
    ("model", "files", "name"),
    [
        ("all-MiniLM-L6-v2", ["model.safetensors"], "embeddings"),
        ("qwen", ["README.md", "qwen.gguf"], "llama"),
        ("qwen", ["sub/qwen.gguf"], "llama"),
        ("MiniLM", ["model.gguf"], "embeddings"),
    ],
)
def test_the_first_that_fits_is_chosen(loaded: tuple[Recipe, ...], model: str, files: list[str], name: str) -> None:
    assert recipes.choose(loaded, model, files).name == name


def test_where_none_fits_the_error_says_what_to_do(loaded: tuple[Recipe, ...]) -> None:
    with pytest.raises(BackendFailed, match=r"no backend fits qwen \(known: embeddings, llama\).*--backends FILE"):
        recipes.choose(loaded, "qwen", ["model.safetensors"])
    with pytest.raises(BackendFailed, match="known: none"):
        recipes.choose((), "qwen", ["model.gguf"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "Expected `object`"),
        ("backends: [", "cannot be used"),
        ("backend: []", "unknown field `backend`"),
        ("backends: 3", r"`\$.backends`"),
        ("backends: [3]", "entry 1: Expected `object`"),
        ("backends: [{command: ['{port}']}]", "entry 1: .*missing required field `name`"),
        ("backends: [{name: n}]", r"entry 1 \(n\): .*missing required field `command`"),
        ("backends: [{name: n, command: []}]", r"`\$.command`"),
        ("backends: [{name: n, command: run}]", r"`\$.command`"),
        ("backends: [{name: n, command: [run]}]", "command never says {port}"),
        ("backends: [{name: n, command: ['{{port}}']}]", "command never says {port}"),
        ("backends: [{name: n, command: ['{port}', '{gpu}']}]", "'{gpu}', but only {file}, {host}, {model}, {path}"),
        ("backends: [{name: n, command: ['{port}', '{}']}]", "'{}', but only"),
        ("backends: [{name: n, command: ['{port:>{gpu}}']}]", "but only"),
        ("backends: [{name: n, command: ['{path.parent}']}]", "but only"),
        ("backends: [{name: n, command: ['{model!r}']}]", "but only"),
        ("backends: [{name: n, command: ['{port']}]", r"'{port'.*write {{ and }} for braces"),
        (BARE % "patience: 0", r"`\$.patience`"),
        (BARE % "patience: soon", r"`\$.patience`"),
        (BARE % "health: health", r"`\$.health`"),
        (BARE % "environment: {THREADS: 4}", r"`\$.environment"),
        (BARE % "working_directory: nowhere", "working_directory is .*nowhere, which is not a folder"),
        (BARE % "timeout: 3", "unknown field `timeout`"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused_by_file_entry_and_key(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(BadInput, match=said) as caught:
        recipes.load(path)
    assert str(path) in caught.value.message


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"none\.yaml cannot be read: No such file"):
        recipes.load(tmp_path / "none.yaml")
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"backends: \xff")
    with pytest.raises(BadInput, match=r"latin\.yaml cannot be used"):
        recipes.load(path)


def test_without_a_file_a_llama_server_on_the_path_serves_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert recipes.load(None) == ()
    program = tmp_path / "llama-server"
    program.touch(mode=0o755)
    recipe = recipes.choose(recipes.load(None), "qwen", ["qwen.gguf"])
    assert recipe.arguments("qwen", Path("/models/qwen.gguf"), "127.0.0.1", 9)[:3] == [
        "llama-server", "-m", "/models/qwen.gguf",
    ]  # fmt: skip
    with pytest.raises(BackendFailed):
        recipes.choose(recipes.load(None), "bert", ["model.safetensors"])
