"""The head of a holder's response, and whether it is the one that was asked for. Pure."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from stagecast.errors import BadInput
from stagecast.pieces import parse_content_range

MEANINGS: Final = {
    200: "ignores ranges, and would send the whole file",
    401: "refused the cluster's token; STAGECAST_TOKEN must be the same on both",
    404: "does not have it",
    409: "gave it to somebody else just now",
    503: "serves too many others just now",
}


class Head(NamedTuple):
    """The head of a response. Names of ``fields`` are in lower case."""

    status: int
    fields: dict[str, str]


def length_of(head: Head) -> int:
    """Return the bytes of the body, or -1 where that cannot be told from the head or they are encoded."""
    text = head.fields.get("content-length", "")
    is_plain = head.fields.get("content-encoding", "identity") == "identity" and "transfer-encoding" not in head.fields
    return int(text) if is_plain and re.fullmatch(r"[0-9]{1,19}", text) else -1


def misfit(head: Head, digest: str, asked: tuple[int, int, int]) -> str:
    """Return in what a response is not the range that was asked for, (start, stop, size); empty if it is."""
    if "html" in head.fields.get("content-type", ""):
        return f"answered HTTP {head.status} with a page for people, as a proxy does that stands in between"
    if head.status != 206:
        return MEANINGS.get(head.status, f"answered HTTP {head.status}")
    if head.fields.get("etag", f'"{digest}"') != f'"{digest}"':
        return f"has another file there, with the ETag {head.fields['etag']}"
    try:
        found = parse_content_range(head.fields.get("content-range", ""))
    except BadInput as error:
        return error.message
    if found != asked:
        return (
            f"sent bytes {found[0]}-{found[1]} of {found[2]} where {asked[0]}-{asked[1]} of {asked[2]} were asked for"
        )
    if length_of(head) != asked[1] - asked[0]:
        return "sent a body that is not as long as its own range"
    return ""
