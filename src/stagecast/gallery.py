"""The gallery: which files make up the model that somebody wants installed, and where they come from.

An index has LocalAI's format: YAML or JSON, a list of entries with a ``name`` and ``files`` of ``filename``, ``uri``
and ``sha256``; what else stands there is left alone.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from stagecast.address import address, is_local, last_name, local_address, local_path, shown
from stagecast.adoption import survey
from stagecast.errors import BadInput, Unknown
from stagecast.manifest import check_name, check_path
from stagecast.messages import Hindrance
from stagecast.stream import STALL, read

INDEX_LIMIT: Final = 64 * 1024 * 1024
"""Bytes that an index may have; LocalAI's own has about one million."""
_DEEPEST: Final = 64
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class SourceFile:
    """One file: its path in the model's folder, where it comes from, its SHA-256 in hex if published, its bytes."""

    path: str
    uri: str
    sha256: str = ""
    size: int | None = None


@dataclass(frozen=True)
class Source:
    """What a model is installed from: its files, sorted by path; ``single`` for one plain file of the model's name."""

    model: str
    files: tuple[SourceFile, ...]
    single: bool = False

    @property
    def size(self) -> int | None:
        """Bytes over all files, or None where upstream does not say."""
        sizes = [file.size for file in self.files if file.size is not None]
        return sum(sizes) if len(sizes) == len(self.files) else None


def resolve(
    ref: str, gallery: str = "", name: str = "", sha256: str = "", *, stop: threading.Event | None = None,
    stall: float = STALL, waiting: Callable[[Hindrance], None] = lambda _: None,
) -> Source:  # fmt: skip
    """Return what ``ref`` means; blocks while an index is fetched, ``stall`` seconds without a byte at most.

    ``ref`` is the name of an entry of the index at ``gallery`` (a URL or a path), or a URL of one file, or the path
    of a file or folder. ``name`` is what the model shall be called; ``sha256`` is checked where ``ref`` is one file.
    ``waiting`` is told what it waits for, as by `stream.Stream`.

    Raises:
        Unknown: no such entry (it names some that exist), or nothing at that path.
        BadInput: an address that cannot be fetched, an index or entry that is malformed, a name that cannot be.
        TransferFailed: the index cannot be had.
        Interrupted: ``stop`` was set.
    """
    if gallery and "://" not in ref and not ref.startswith("/"):
        base = address(gallery)
        data = read(base, INDEX_LIMIT, stop=stop or threading.Event(), stall=stall, waiting=waiting)
        source = _entry_source(parse_index(data, shown(base)), ref, base, name)
    else:
        source = _plain_source(ref, name)
    return _with_sha256(source, ref, sha256)


def parse_index(data: bytes, where: str) -> dict[str, dict[str, Any]]:
    """Return the entries of an index by name. ``where`` is its address, for messages.

    Raises:
        BadInput: it names the place where the index is malformed.
    """
    entries = _decoded(data, where)
    if not isinstance(entries, list):
        raise BadInput(f"the index {where} is not a list of entries; each begins with '- name: …'")
    index: dict[str, dict[str, Any]] = {}
    for number, entry in enumerate(entries, 1):
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not name:
            raise BadInput(f"the index {where}: entry {number} has no name")
        index.setdefault(name, entry)
    return index


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # libyaml is not everywhere
    """Reads every scalar as text: a SHA-256 of digits alone, or a model called 1.5, is not a number."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - the base class says how it is called
        "<": [("tag:yaml.org,2002:merge", re.compile(r"<<"))]
    }


def _decoded(data: bytes, where: str) -> Any:
    try:
        if data.lstrip()[:1] in {b"[", b"{"}:
            return json.loads(data)
    except (ValueError, RecursionError):
        pass  # a YAML list may begin like that, too
    try:
        _check_depth(data, where)
        return yaml.load(data, _Loader)  # noqa: S506 - a safe loader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise BadInput(f"the index {where} is not valid YAML{place}: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        raise BadInput(f"the index {where} is not valid YAML: {error}") from None


def _check_depth(data: bytes, where: str) -> None:
    # libyaml's events come one by one, but building from them recurses in C, and would end the process.
    depth = 0
    for event in yaml.parse(data, _Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise BadInput(f"the index {where} is not valid YAML for one: nested over {_DEEPEST} levels")


def _entry_source(index: dict[str, dict[str, Any]], ref: str, base: str, name: str) -> Source:
    entry = index.get(ref)
    if entry is None:
        raise Unknown("gallery entry", ref, list(index))
    model = name or ref
    check_name(model)
    place = f"entry {ref!r} of {shown(base)}"
    files = entry.get("files")
    if not isinstance(files, list) or not files:
        raise BadInput(f"{place} lists no files; it needs 'files' with 'filename' and 'uri'")
    return _checked(Source(model, tuple(_entry_file(model, file, base, place) for file in files)), place)


def _entry_file(model: str, file: Any, base: str, place: str) -> SourceFile:
    if not isinstance(file, dict):
        raise BadInput(f"{place}: {file!r} is not a file with 'filename' and 'uri'")
    path, uri, sha256 = (file.get(key) or "" for key in ("filename", "uri", "sha256"))
    if not (isinstance(path, str) and isinstance(uri, str) and isinstance(sha256, str) and path and uri):
        raise BadInput(f"{place}: {file!r} needs a 'filename' and a 'uri', both text")
    check_path(model, path)
    return SourceFile(path, address(uri, base), _checked_sha256(sha256, f"{place}, {path}"))


def _plain_source(ref: str, name: str) -> Source:
    uri = address(ref)
    if not is_local(uri):
        model = name or last_name(uri)
        check_name(model)
        return Source(model, (SourceFile(model, uri),), single=True)
    path = local_path(uri)
    model = name or path.resolve().name
    if path.is_dir():
        check_name(model)
        return _folder_source(path, model)
    if not path.is_file():
        raise Unknown("file, folder, or gallery entry (give --gallery URL)", ref)
    check_name(model)
    return Source(model, (SourceFile(model, uri, size=path.stat().st_size),), single=True)


def _folder_source(folder: Path, model: str) -> Source:
    files = tuple(
        SourceFile(path, local_address(folder / path), size=identity.size)
        for path, identity in survey(model, folder).items()
    )
    if not files:
        raise BadInput(f"{folder} holds no files that could be installed")
    return _checked(Source(model, files), str(folder))


def _checked(source: Source, place: str) -> Source:
    files = tuple(sorted(source.files, key=lambda file: file.path))
    paths = {file.path for file in files}
    for file in files:
        if not file.path.isprintable():
            raise BadInput(f"{place}: {file.path!r} holds characters that cannot be printed; rename the file")
        if ".git" in file.path.split("/"):
            raise BadInput(f"{place}: {file.path!r} lies in a .git folder, which is never a part of a model")
        if any(parent.as_posix() in paths for parent in Path(file.path).parents):
            raise BadInput(f"{place}: {file.path!r} lies in a folder that is a file there, too")
    if len(paths) != len(files):
        raise BadInput(f"{place} names a file twice")
    return Source(source.model, files, source.single)


def _with_sha256(source: Source, ref: str, sha256: str) -> Source:
    if not sha256:
        return source
    if len(source.files) != 1:
        raise BadInput(f"{ref!r} has {len(source.files)} files, so one SHA-256 cannot be theirs; leave it out")
    file = source.files[0]
    digest = _checked_sha256(sha256, ref)
    if file.sha256 not in {"", digest}:
        raise BadInput(f"{ref!r} is published with SHA-256 {file.sha256}, but {digest} was given")
    return Source(source.model, (SourceFile(file.path, file.uri, digest, file.size),), source.single)


def _checked_sha256(text: str, place: str) -> str:
    digest = text.strip().lower().removeprefix("sha256:")
    if digest and not _SHA256.fullmatch(digest):
        raise BadInput(f"{place}: {text!r} is not a SHA-256; that is 64 hexadecimal digits")
    return digest
