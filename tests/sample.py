"""Small models for tests: contents by path, and the manifest that describes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from blake3 import blake3

from stagecast.manifest import Manifest, ManifestFile, file_digest
from stagecast.partial import Partial


def file_of(path: str, content: bytes, piece_size: int) -> ManifestFile:
    """Return the manifest's entry for a file of that content."""
    slices = (content[start : start + piece_size] for start in range(0, len(content), piece_size))
    pieces = tuple(blake3(part).hexdigest() for part in slices)
    return ManifestFile(path=path, size=len(content), digest=file_digest(pieces, len(content)), pieces=pieces)


def manifest_of(model: str, contents: Mapping[str, bytes], *, piece_size: int = 1024, single: bool = False) -> Manifest:
    """Return the manifest of a model with these files."""
    files = tuple(file_of(path, contents[path], piece_size) for path in sorted(contents))
    return Manifest(model=model, files=files, single=single, piece_size=piece_size)


def fill(partial: Partial, contents: Mapping[str, bytes]) -> None:
    """Write and verify every piece that is missing."""
    for piece in partial.missing():
        content = contents[partial.manifest.files[piece.file].path]
        start = piece.offset + partial.written(piece)
        partial.write(piece, partial.written(piece), content[start : piece.offset + piece.length])
        partial.verify(piece)


def lay_out(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write the contents as files under a folder."""
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def contents_of(path: Path) -> dict[str, bytes]:
    """Return the contents of a model on disk by path; a single file's by its own name."""
    if path.is_file():
        return {path.name: path.read_bytes()}
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}
