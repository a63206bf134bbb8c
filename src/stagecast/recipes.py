"""Recipes: which command line serves which model. From the file of ``--backends``, or the one built in.

::

    backends:
      - name: embeddings
        match: "*MiniLM*"        # of the model's name; or files: "*.gguf", of one of its files' names
        command: ["{python}", "server.py", "--model", "{path}", "--host", "{host}", "--port", "{port}"]
        health: /health          # polled until it answers 200
        environment: {OMP_NUM_THREADS: "4"}
        working_directory: .     # from the file's folder, so that relative paths in a command work
        patience: 600            # seconds without a sign of progress while it loads
"""

from __future__ import annotations

import fnmatch
import shutil
import string
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import yaml

from stagecast.errors import BackendFailed, BadInput

PATIENCE: Final = 600.0
"""Seconds without any sign of progress after which a loading backend counts as stuck (law L11)."""
_PLACEHOLDERS: Final = frozenset({"python", "path", "file", "host", "port", "model"})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to start one kind of backend.

    ``match`` is a shell pattern for the model's name, ``files`` one that a file of the model must fit. ``command`` may
    hold ``{python}`` (this interpreter), ``{path}`` (the model's file or folder), ``{file}`` (its first file, by name,
    that fits ``files``), ``{host}``, ``{port}`` and ``{model}``. ``health`` is polled until it answers 200.
    """

    name: str
    command: tuple[str, ...]
    match: str = "*"
    files: str = "*"
    health: str = "/health"
    environment: dict[str, str] = field(default_factory=dict)
    working_directory: Path | None = None
    patience: float = PATIENCE

    def fits(self, model: str, files: Sequence[str]) -> bool:
        """Tell whether this recipe serves a model of that name with those file names."""
        return fnmatch.fnmatchcase(model, self.match) and any(fnmatch.fnmatchcase(name, self.files) for name in files)

    def arguments(self, model: str, path: Path, host: str, port: int) -> list[str]:
        """Return the command line for one backend. Paths are absolute: it runs in a folder of its own."""
        values = {"python": sys.executable, "host": host, "port": str(port), "model": model}
        values |= {"path": str(path.absolute()), "file": str(self._file(path.absolute()))}
        return [part.format_map(values) for part in self.command]

    def _file(self, path: Path) -> Path:
        inside = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else []
        return next((each for each in inside if fnmatch.fnmatchcase(each.name, self.files)), path)


class _Entry(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    name: Annotated[str, msgspec.Meta(min_length=1)]
    command: Annotated[list[str], msgspec.Meta(min_length=1)]
    match: str = "*"
    files: str = "*"
    health: Annotated[str, msgspec.Meta(pattern="^/")] = "/health"
    environment: dict[str, str] = {}
    working_directory: str = "."
    patience: Annotated[float, msgspec.Meta(gt=0)] = PATIENCE


class _File(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    backends: list[Any]


def load(path: Path | None) -> tuple[Recipe, ...]:
    """Return the recipes of a file, in its order; without a file, the ones for the model servers found on ``PATH``.

    Raises:
        BadInput: the file cannot be read, or an entry of it cannot be used; the message names file, entry and key.
    """
    if path is None:
        return _built_in()
    try:
        entries = msgspec.convert(yaml.safe_load(path.read_text("utf-8")), _File).backends
    except OSError as error:
        raise BadInput(f"the backends file {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise BadInput(f"the backends file {path} cannot be used: {' '.join(str(error).split())}") from error
    return tuple(_recipe(path, number, entry) for number, entry in enumerate(entries, start=1))


def choose(recipes: Sequence[Recipe], model: str, files: Sequence[str]) -> Recipe:
    """Return the first recipe that fits a model. Raises `BackendFailed`."""
    for recipe in recipes:
        if recipe.fits(model, files):
            return recipe
    known = ", ".join(recipe.name for recipe in recipes) or "none"
    raise BackendFailed(
        f"no backend fits {model} (known: {known}); start the worker with --backends FILE, "
        "where an entry's match fits the model's name or its files fits a file's name"
    )


def _recipe(path: Path, number: int, given: Any) -> Recipe:
    name = given.get("name") if isinstance(given, dict) else None
    place = f"entry {number} ({name})" if name else f"entry {number}"
    try:
        entry = msgspec.convert(given, _Entry)
        _check_command(entry.command)
        folder = _folder(path, entry.working_directory)
    except ValueError as error:
        raise BadInput(f"the backends file {path}, {place}: {error}") from error
    return Recipe(
        name=entry.name, command=tuple(entry.command), match=entry.match, files=entry.files, health=entry.health,
        environment=entry.environment, working_directory=folder, patience=entry.patience,
    )  # fmt: skip


def _folder(file: Path, given: str) -> Path:
    folder = file.absolute().parent / Path(given).expanduser()
    if not folder.is_dir():
        raise ValueError(f"working_directory is {folder}, which is not a folder")
    return folder


def _check_command(command: Sequence[str]) -> None:
    """Raise ValueError unless everything in it can be filled in, and the port is."""
    if "port" not in {name for part in command for name in _placeholders(part)}:
        raise ValueError("command never says {port}; a backend must listen where it is told to")


def _placeholders(part: str) -> list[str]:
    try:
        fields = [field for field in string.Formatter().parse(part) if field[1] is not None]
    except ValueError as error:
        raise ValueError(f"command holds {part!r}: {error}; write {{{{ and }}}} for braces") from None
    if any(name not in _PLACEHOLDERS or layout or conversion for _, name, layout, conversion in fields):
        known = ", ".join(f"{{{name}}}" for name in sorted(_PLACEHOLDERS))
        raise ValueError(f"command holds {part!r}, but only {known} are filled in; write {{{{ and }}}} for braces")
    return [str(name) for _, name, _, _ in fields]


def _built_in() -> tuple[Recipe, ...]:
    if shutil.which("llama-server") is None:
        return ()
    command = ("llama-server", "-m", "{file}", "--host", "{host}", "--port", "{port}", "--alias", "{model}")
    return (Recipe(name="llama-server", files="*.gguf", command=command),)
