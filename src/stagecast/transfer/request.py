"""The head of a request, as a `FileServer` reads it. Pure."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_REQUEST: Final = re.compile(r"([A-Z]+) (\S+) HTTP/1\.([01])")


class Request(NamedTuple):
    """The head of a request. Names of ``fields`` are in lower case; ``is_last`` says that no other will be read."""

    method: str
    path: str
    fields: dict[str, str]
    is_last: bool


def parse_request(head: bytes) -> Request:
    """Return what a head asks for, without the empty line at its end. Raises `ValueError` where it makes no sense."""
    first, *lines = head.decode("latin-1").split("\r\n")
    found = _REQUEST.fullmatch(first)
    if found is None:
        raise ValueError(first)
    fields: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise ValueError(line)
        fields[name.lower()] = value.strip()
    wish = fields.get("connection", "").lower()
    # A body that nobody reads must not be taken for the next request.
    has_body = fields.get("content-length", "0") != "0" or "transfer-encoding" in fields
    is_last = has_body or wish == "close" or (found[3] == "0" and wish != "keep-alive")
    return Request(found[1], found[2], fields, is_last)
