"""Where a file lies upstream, as one URI that can be asked for as it stands: ``http``, ``https`` or ``file``."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes, urlsplit

from stagecast.errors import BadInput

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_STRAY_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_WORKS = "use http://, https://, file:// or a path"


def address(text: str, base: str = "") -> str:
    """Return the URI that ``text`` means: a URL, or a path, which is relative to the file at the URI ``base``.

    What a URL may not hold is percent-encoded, ``#`` too, for a fragment means nothing to a download; what is encoded
    already stays as it is.

    Raises:
        BadInput: another scheme, no host, characters that cannot be printed, or a local file named by a remote base.
    """
    if not text or not text.isprintable():
        raise BadInput(f"{text!r} is not an address: {_WORKS}")
    match = _SCHEME.match(text)
    scheme = match[1].lower() if match else ""
    if scheme in {"http", "https"}:
        return _web_address(text)
    if scheme not in {"", "file"}:
        raise BadInput(f"{text!r} cannot be fetched: {scheme}:// is not supported; {_WORKS}")
    if base and not is_local(base):
        return _beside(text, base, scheme)
    return local_address(_path_of_uri(text) if scheme else Path(text), base)


def local_address(path: Path, base: str = "") -> str:
    """Return a path as a URI; a relative one is taken from the folder of ``base``, or from the current one."""
    folder = local_path(base).parent if base else Path.cwd()
    return "file://" + quote(os.fsencode(folder / path))


def is_local(uri: str) -> bool:
    """Return whether a URI made by `address` lies on this machine."""
    return uri.startswith("file://")


def local_path(uri: str) -> Path:
    """Return the path of a ``file://`` URI made by `address`."""
    return Path(os.fsdecode(unquote_to_bytes(uri.removeprefix("file://"))))


def last_name(uri: str) -> str:
    """Return the last part of the URI's path, decoded: what the file is called. Empty if there is none."""
    path = uri.removeprefix("file://") if is_local(uri) else urlsplit(uri).path
    return os.fsdecode(unquote_to_bytes(path.rstrip("/").rpartition("/")[2]))


def shown(uri: str) -> str:
    """Return the URI as people may see it: without a query, which can hold the key of a signed URL."""
    return str(local_path(uri)) if is_local(uri) else uri.partition("?")[0]


def _web_address(text: str) -> str:
    try:
        parts = urlsplit(text.replace("#", "%23"))
        parts.port  # noqa: B018 - reading it is what checks it
    except ValueError as error:
        raise BadInput(f"{text!r} is not a URL: {error}") from None
    if not parts.hostname or not parts.netloc.isascii() or "@" in parts.netloc:
        raise BadInput(
            f"{shown(text)!r} is not a URL that can be fetched: it needs a plain host, like https://host/path"
        )
    rest = text[text.index("://") + 3 + len(parts.netloc) :]
    return f"{parts.scheme}://{parts.netloc}{_quoted(rest) or '/'}"


def _beside(text: str, base: str, scheme: str) -> str:
    if scheme or text.startswith("//"):
        raise BadInput(f"{text!r} names a local file, but stands in an index from {shown(base)}; that is not followed")
    parts = urlsplit(base)
    folder = "/" if text.startswith("/") else parts.path.rpartition("/")[0] + "/"
    return f"{parts.scheme}://{parts.netloc}{folder}{_quoted(text.lstrip('/'))}"


def _path_of_uri(text: str) -> Path:
    rest = text[len("file://") :].removeprefix("localhost")
    if not rest.startswith("/"):
        raise BadInput(f"{text!r} needs an absolute path, like file:///folder/file")
    return Path(os.fsdecode(unquote_to_bytes(rest)))


def _quoted(text: str) -> str:
    return quote(_STRAY_PERCENT.sub("%25", text), safe="%/:?&=~+!$,;'@()*[]")
