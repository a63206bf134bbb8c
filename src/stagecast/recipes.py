"""Recipes: which command line serves which model. From the file of ``--backends``, or the one built in."""

from __future__ import annotations

import fnmatch
import shutil
import string
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from stagecast.errors import BackendFailed, BadInput

PATIENCE: Final = 600.0
"""Seconds without any sign of progress after which a loading backend counts as stuck (law L11)."""
_PLACEHOLDERS: Final = frozenset({"python", "path", "host", "port", "model"})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to start one kind of backend.

    ``match`` is a shell pattern for the model's name, ``files`` one that a file of the model must fit. ``command`` may
    hold ``{python}``, ``{path}``, ``{host}``, ``{port}`` and ``{model}``. ``health`` is polled until it answers 200.
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
        """Return the command line for one backend."""
        values = {"python": sys.executable, "path": str(path), "host": host, "port": str(port), "model": model}
        return [part.format_map(values) for part in self.command]


class _Entry(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    name: str
    command: list[str]
    match: str = "*"
    files: str = "*"
    health: str = "/health"
    environment: dict[str, str] = {}
    working_directory: str = "."
    patience: float = PATIENCE


class _File(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    backends: list[_Entry]


def load(path: Path | None) -> tuple[Recipe, ...]:
    """Return the recipes of a file, in its order; without a file, the ones for the model servers found on ``PATH``.

    Raises:
        BadInput: the file cannot be read, or an entry of it cannot be used; the message names both.
    """
    if path is None:
        return _built_in()
    try:
        data: Any = yaml.safe_load(path.read_text("utf-8"))
        entries = msgspec.convert(data, _File).backends
    except OSError as error:
        raise BadInput(f"the backends file {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise BadInput(f"the backends file {path} cannot be used: {' '.join(str(error).split())}") from error
    return tuple(_recipe(path, entry) for entry in entries)


def choose(recipes: Sequence[Recipe], model: str, files: Sequence[str]) -> Recipe:
    """Return the first recipe that fits a model. Raises `BackendFailed`."""
    for recipe in recipes:
        if recipe.fits(model, files):
            return recipe
    known = ", ".join(recipe.name for recipe in recipes) or "none"
    raise BackendFailed(f"no backend fits {model} (known: {known}); name one in the file of --backends")


def _recipe(path: Path, entry: _Entry) -> Recipe:
    place = f"backend {entry.name!r} in {path}"
    if not entry.command:
        raise BadInput(f"{place}: its command is empty")
    if not entry.health.startswith("/"):
        raise BadInput(f"{place}: health is {entry.health!r}; it must be a path like /health")
    for part in entry.command:
        _check_placeholders(part, place)
    return Recipe(
        name=entry.name, command=tuple(entry.command), match=entry.match, files=entry.files, health=entry.health,
        environment=entry.environment, working_directory=path.parent / entry.working_directory,
        patience=entry.patience,
    )  # fmt: skip


def _check_placeholders(part: str, place: str) -> None:
    try:
        names = {name for _, name, _, _ in string.Formatter().parse(part) if name is not None}
    except ValueError as error:
        raise BadInput(f"{place}: {part!r}: {error}; write {{{{ for a brace") from None
    unknown = sorted(names - _PLACEHOLDERS)
    if unknown:
        known = ", ".join(f"{{{name}}}" for name in sorted(_PLACEHOLDERS))
        raise BadInput(f"{place}: {{{unknown[0]}}} is not known; use {known}")


def _built_in() -> tuple[Recipe, ...]:
    if shutil.which("llama-server") is None:
        return ()
    command = ("llama-server", "-m", "{path}", "--host", "{host}", "--port", "{port}", "--alias", "{model}")
    return (Recipe(name="llama-server", files="*.gguf", command=command),)
