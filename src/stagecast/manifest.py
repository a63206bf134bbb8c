"""A manifest: the files of one revision of a model, with the digest of every piece.

Crosses the wire as JSON between holders (``GET /manifests/<digest>``). A digest is the lower-case hex of a BLAKE3
hash, 64 characters. A file's digest is the BLAKE3 of its piece digests in order (32 raw bytes each) followed by its
size as 8 bytes, little endian: so it can be made from pieces that were hashed in any order, by any thread, and never
needs a second read of the file.
"""

from __future__ import annotations

from typing import Final

import msgspec
from blake3 import blake3

from stagecast.errors import InvalidManifest, InvalidName

PIECE_SIZE: Final = 16 * 1024 * 1024
"""Bytes in a piece, the last one of a file excepted. The unit of verifying, resuming and sharing."""


class ManifestFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """One file. ``path`` is relative, with ``/`` between its parts; ``size`` in bytes; ``pieces`` as hex digests."""

    path: str
    size: int
    digest: str
    pieces: tuple[str, ...]
    sha256: str = ""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The files of one revision of a model, sorted by path.

    ``single`` says that the model is one plain file of the model's own name, not a folder.
    """

    model: str
    files: tuple[ManifestFile, ...]
    single: bool = False
    piece_size: int = PIECE_SIZE

    @property
    def size(self) -> int:
        """Bytes over all files."""
        return sum(file.size for file in self.files)

    @property
    def digest(self) -> str:
        """Identity of this revision: equal for equal files, whatever the model is called."""
        hasher = blake3(b"stagecast manifest 1\n")
        for file in self.files:
            hasher.update(f"{file.path}\0{file.digest}\0{file.size}\n".encode())
        return hasher.hexdigest()


def file_digest(pieces: tuple[str, ...], size: int) -> str:
    """Return a file's digest from its piece digests (see the module's docstring)."""
    return blake3(b"".join(map(bytes.fromhex, pieces)) + size.to_bytes(8, "little")).hexdigest()


def encode(manifest: Manifest) -> bytes:
    """Return the manifest as JSON."""
    return msgspec.json.encode(manifest)


def decode(data: bytes) -> Manifest:
    """Return the manifest that ``data`` holds, checked.

    Raises:
        InvalidManifest: not JSON, wrong types, a path that leaves the model's folder, or digests that do not fit.
    """
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except msgspec.DecodeError as error:
        raise InvalidManifest("?", str(error)) from None
    check(manifest)
    return manifest


def check(manifest: Manifest) -> None:
    """Raise `InvalidManifest` unless every part of the manifest fits every other."""
    if manifest.piece_size <= 0:
        raise InvalidManifest(manifest.model, f"piece_size is {manifest.piece_size}")
    if not manifest.files:
        raise InvalidManifest(manifest.model, "it has no files")
    if manifest.single and len(manifest.files) != 1:
        raise InvalidManifest(manifest.model, f"it is a single file, but lists {len(manifest.files)}")
    paths = [file.path for file in manifest.files]
    if paths != sorted(set(paths)):
        raise InvalidManifest(manifest.model, "its paths are not sorted, or one stands twice")
    for file in manifest.files:
        check_path(manifest.model, file.path)
        _check_pieces(manifest, file)


def check_path(model: str, path: str) -> None:
    """Raise `InvalidManifest` unless ``path`` stays inside the model's folder."""
    parts = path.split("/")
    if path.startswith("/") or "\0" in path or any(part in {"", ".", ".."} for part in parts):
        raise InvalidManifest(model, f"the path {path!r} does not stay inside the model's folder")


def check_name(name: str, what: str = "model") -> None:
    """Raise `InvalidName` unless ``name`` can be a file name: no ``/``, no leading dot, 1 to 200 bytes, printable."""
    if not name or len(name.encode("utf-8", "surrogatepass")) > 200:
        raise InvalidName(what, name, "it needs 1 to 200 bytes")
    if name.startswith(".") or "/" in name:
        raise InvalidName(what, name, "it may not start with a dot or contain '/'")
    if not name.isprintable() or name != name.strip():
        raise InvalidName(what, name, "it may hold printable characters only, and no space at its ends")


def _check_pieces(manifest: Manifest, file: ManifestFile) -> None:
    expected = -(-file.size // manifest.piece_size)
    if file.size < 0 or len(file.pieces) != expected:
        raise InvalidManifest(manifest.model, f"{file.path} has {len(file.pieces)} pieces where {expected} fit")
    try:
        found = file_digest(file.pieces, file.size)
    except ValueError:
        raise InvalidManifest(manifest.model, f"{file.path} has a piece digest that is not hex") from None
    if found != file.digest:
        raise InvalidManifest(manifest.model, f"the digest of {file.path} does not follow from its pieces")
