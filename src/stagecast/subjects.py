"""The subjects of the log and of the messages beside it, in one place.

A token is a name made fit for one part of a NATS subject. The names themselves travel in the payload; nobody reads a
name back out of a subject.
"""

from __future__ import annotations

import re
from hashlib import blake2s
from typing import Final

from stagecast.messages import Kind, Record

TASK: Final = "task"
"""The prefix of every kind of operation that is not named below: other programs' work."""
KIND_PREFIX: Final[dict[Kind, str]] = {
    "staging": "staging",
    "installation": "gallery",
    "loading": "loading",
    "deletion": "deletion",
}

LIMITS: Final = "stagecast.limits"
HORIZON: Final = "stagecast.horizon"
"""Where it stands up to where ended operations are forgotten."""
LOG_SUBJECTS: Final = (
    "staging.*.progress",
    "gallery.*.progress",
    "loading.*.progress",
    "deletion.*.progress",
    "task.*.progress",
    "stagecast.node.*",
    "stagecast.holding.*",
    "stagecast.placement.*",
    "stagecast.instance.*",
    HORIZON,
    LIMITS,
)
HISTORY_SUBJECTS: Final = ("stagecast.history.*",)
BEAT: Final = "stagecast.beat"
GALLERY_CANCEL: Final = "gallery.*.cancel"

_DISTINCT: Final = re.compile(r"-[0-9a-f]{10}\.progress$", re.ASCII)
_FORBIDDEN = str.maketrans(dict.fromkeys(".*> \t\n", "-"))


def token(name: str) -> str:
    """Return ``name`` with each of ``.``, ``*``, ``>``, space, tab and newline replaced by ``-`` (WIRE section 1)."""
    return name.translate(_FORBIDDEN)


def distinct(*names: str) -> str:
    """Return a token that differs wherever any of the names differs: readable, then a short digest of all."""
    digest = blake2s("\0".join(names).encode("utf-8", "surrogatepass"), digest_size=5).hexdigest()
    readable = token(names[0])
    if not readable.isprintable():
        readable = "".join(character for character in readable if character.isprintable())
    return f"{readable}-{digest}"


def is_distinct(subject: str) -> bool:
    """Tell whether a subject's token looks like one of `distinct`; of a plain publisher's it hardly ever does."""
    return _DISTINCT.search(subject) is not None


def operation(record: Record) -> str:
    """Return the one subject on which this operation's records stand."""
    return f"{KIND_PREFIX.get(record.kind, TASK)}.{distinct(record.model, record.id)}.progress"


def gallery_cancel(job: str) -> str:
    """Return where an installation is cancelled (WIRE section 2)."""
    return f"gallery.{token(job)}.cancel"


def mirror(prefix: str, identifier: str) -> str:
    """Return a subject of its own for a foreign operation whose last event another message was written over."""
    return f"{prefix}.{distinct(identifier)}.progress"


def node(name: str) -> str:
    """Return where a node speaks of itself."""
    return f"stagecast.node.{distinct(name)}"


def holding(node_name: str, model: str) -> str:
    """Return where a node says that it holds a model."""
    return f"stagecast.holding.{distinct(model, node_name)}"


def placement(model: str) -> str:
    """Return where it is written which workers shall load a model."""
    return f"stagecast.placement.{distinct(model)}"


def instance(node_name: str, model: str) -> str:
    """Return where a worker reports its backend for a model."""
    return f"stagecast.instance.{distinct(model, node_name)}"


def history(job: str, attempt: int) -> str:
    """Return where the end of one attempt is kept."""
    return f"stagecast.history.{token(job)}-{attempt}"


def command(process: str) -> str:
    """Return where a process takes commands for the operations that it owns."""
    return f"stagecast.command.{distinct(process)}"
