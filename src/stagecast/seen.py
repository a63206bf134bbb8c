"""The highest revision that this user's commands have seen of a cluster, so that the next command sees no older state.

One small file per cluster in the user's cache folder. It is a courtesy: where it cannot be read or written, a command
works as if it were the first.
"""

from __future__ import annotations

import os
from hashlib import blake2s
from pathlib import Path

from stagecast import revision
from stagecast.durable import write_whole


def recall(url: str) -> str:
    """Return the revision that was seen last at ``url``, or nothing."""
    try:
        text = _file(url).read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""
    return text if revision.parse(text) else ""


def remember(url: str, text: str) -> None:
    """Keep the revision for the next command."""
    if text and text != recall(url):
        try:
            _file(url).parent.mkdir(parents=True, exist_ok=True)
            write_whole(_file(url), text.encode("ascii"))
        except OSError:
            pass


def _file(url: str) -> Path:
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "stagecast" / f"seen-{blake2s(url.encode(), digest_size=8).hexdigest()}"
