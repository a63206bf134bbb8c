"""What processes say to each other on the bus. WIRE sections 1 and 2 for the broadcasts; the rest is our own.

Readers ignore fields that they do not know, so each of these may grow. Times are seconds since 1970 by the writer's
clock; they are shown to people and never compared between machines. Sizes are bytes.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, get_args

import msgspec

from stagecast.revision import is_one_stream

ModelKind = Literal["staging", "installation", "loading", "deletion"]
MODEL_KINDS: Final[frozenset[str]] = frozenset(get_args(ModelKind))
KEPT: Final = "kept: "
"""How the note of a deletion begins that found a reason not to delete."""
Kind = str
"""A `ModelKind`, or the word of another program for its own work."""
State = Literal["queued", "running", "paused", "stalled", "succeeded", "failed", "cancelled"]
Outcome = Literal["succeeded", "failed", "cancelled"]
Phase = Literal["planning", "transferring", "verifying", "publishing", "loading"]
Verb = Literal["cancel", "pause", "resume", "retry", "dismiss"]
NodeVerb = Literal["drain", "undrain", "ping", "stock", "inventory", "pin", "unpin"]
Hindrance = Literal["", "source", "network", "target disk", "room", "backend", "owner"]
"""What a stalled operation waits for: bytes of a holder or upstream, a connection to one, the disk it writes to, room
on that, a sign of life from the backend that loads, or its owner, which is gone."""


NOTHING: Final = msgspec.Raw(b"null")


Bottleneck = Literal["", "source", "network", "source or network", "hash", "target disk", "limit"]
"""On what most of a transfer's time goes: the holder's reading, the way from it, one of the two where nobody can tell,
hashing, the disk it writes to, or waiting for what the rate limit allows."""
Priority = Literal["low", "normal", "high", "request"]
"""What goes before what, from the last to the first; ``request``: somebody waits for the model."""


class Entry(NamedTuple):
    """One message of the log. ``time`` is the server's clock at its arrival, in seconds since 1970."""

    subject: str
    sequence: int
    payload: bytes
    time: float


class Attempt(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An attempt that another one followed, and how it was left.

    ``replaced`` had no end of its own: its owner died, slept or lost bytes, and somebody claimed the operation anew;
    ``error`` then says on what it waited. ``claimed_at`` is 0 for one that nobody ever took up.
    """

    attempt: int
    state: Literal["succeeded", "failed", "cancelled", "paused", "replaced"]
    owner: str = ""
    error: str = ""
    claimed_at: float = 0.0
    ended_at: float = 0.0


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The last word on one operation. Only its owner writes it, or whoever wins a compare-and-set.

    ``(attempt, seq)`` orders the records of one operation: the attempt is the fencing token and rises by one whenever
    the operation is claimed anew, ``seq`` with every record of an attempt. Attempts are counted within an ``era``, the
    number of the `Horizon` that was in force when the operation was begun and the log knew nothing of it. ``owner`` is
    a process, empty while nobody has claimed the operation. ``file_index`` counts from 1.

    ``job`` stays through every attempt of one run; ``call`` is shared by all operations that one request asked for.
    ``beside`` are jobs that the request asked for, too, but that were under way already, each with a call of its own.
    ``begun_by`` is the command that began this attempt anew. ``bytes_present`` were on the disk when the attempt
    began, so ``bytes_done - bytes_present`` have moved in it. A cancel says by ``keep_partial`` whether it leaves what
    has arrived, and by ``bytes_kept`` how much that is. While it is stalled, ``waits_on`` says for what, and
    ``waits_since`` since when. ``queued_at`` is when it would have been asked for, had it done nothing since
    but wait for its turn. ``earlier`` are the attempts of the same job before this one, the latest 20.
    ``spent`` are the seconds of its streams so far, by what they went on, and ``limited_by`` is most of the latest.
    """

    id: str
    job: str
    kind: Kind
    model: str
    node: str = ""
    owner: str = ""
    attempt: int = 0
    seq: int = 0
    state: State = "queued"
    phase: Phase = "planning"
    bytes_done: int = 0
    bytes_total: int = 0
    file_name: str = ""
    file_index: int = 0
    total_files: int = 0
    rate: float | None = None
    note: str = ""
    error: str = ""
    cause: str = ""
    started_at: float = 0.0
    updated_at: float = 0.0
    parameters: dict[str, str] = {}
    dismissed: bool = False
    call: str = ""
    beside: tuple[str, ...] = ()
    begun_by: Literal["", "resume", "retry"] = ""
    claimed_at: float = 0.0
    queued_at: float = 0.0
    bytes_present: int = 0
    keep_partial: bool = False
    bytes_kept: int = 0
    waits_on: Hindrance = ""
    waits_since: float = 0.0
    earlier: tuple[Attempt, ...] = ()
    era: int = 0
    limited_by: Bottleneck = ""
    spent: dict[Bottleneck, float] = {}


class Horizon(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What everybody forgets where this stands in the log: words on operations that stand no later than ``through``.

    All but those at ``through`` minus a number in ``kept``. ``number`` rises with each horizon. It is written with a
    compare-and-set by whichever judge is first, once the history has what is forgotten, up to its sequence ``history``.
    """

    number: int = 0
    through: int = 0
    history: int = 0
    kept: tuple[int, ...] = ()

    def forgets(self, sequence: int) -> bool:
        """Tell whether a word that came to stand at a sequence is forgotten."""
        is_beyond = 0 < sequence <= self.through and is_one_stream(sequence, self.through)
        return is_beyond and self.through - sequence not in self.kept


class StagingStatus(msgspec.Struct, kw_only=True):
    """The status of WIRE section 1. ``progress`` is 0 to 100; ``file_index`` counts from 1."""

    model_id: str = ""
    node_name: str = ""
    file_name: str = ""
    bytes_sent: int = 0
    total_bytes: int = 0
    progress: float = 0.0
    speed: str = ""
    file_index: int = 0
    total_files: int = 0
    message: str = ""
    started_at: str = ""


class StagingEvent(msgspec.Struct, kw_only=True, omit_defaults=True):
    """WIRE section 1: ``staging.<token>.progress``. Ours carry the whole record in ``op``; foreign ones do not.

    ``error`` is why one of us ended what a foreign publisher has left.
    """

    model_id: str
    status: StagingStatus | None = None
    done: bool = msgspec.field(default_factory=bool)  # a factory's default is not left out: WIRE has it always
    error: str = ""
    op: Record | None = None


class GalleryStatus(msgspec.Struct, kw_only=True):
    """The status of WIRE section 2. ``progress`` is 0 to 100."""

    deletion: bool = False
    file_name: str = ""
    error: str | msgspec.UnsetType | None = msgspec.UNSET
    processed: bool = False
    message: str = ""
    progress: float = 0.0
    phase: str = ""
    current_bytes: int = 0
    total_bytes: int = 0
    gallery_element_name: str = ""
    cancelled: bool = False
    cancellable: bool = False


class GalleryEvent(msgspec.Struct, kw_only=True, omit_defaults=True):
    """WIRE section 2: ``gallery.<token>.progress``."""

    job_id: str
    status: GalleryStatus | None = None
    op: Record | None = None


class GalleryCancel(msgspec.Struct, kw_only=True):
    """WIRE section 2: ``gallery.<token>.cancel``."""

    id: str


class OperationEvent(msgspec.Struct, kw_only=True):
    """``loading.<token>.progress``, ``deletion.<token>.progress`` and ``task.<token>.progress``: only we know them."""

    op: Record


class NodeRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a node says of itself. ``process`` changes with every start; ``address`` and ``files`` are base URLs.

    Of the free bytes of its disk, ``disk_reserved`` are promised to transfers; ``disk_orphaned`` are taken by what is
    left of work that nobody goes on with. ``disk_budget`` and ``disk_keep_free``: see `stagecast.eviction.Budget`.
    ``volume`` names the folder of its models, also for other nodes that share it; ``pinned`` models are never evicted.
    ``rate_limit`` is the most that it was told to move, in bytes per second, and 0 where that is anything.
    """

    name: str
    kind: Literal["replica", "worker"]
    process: str
    address: str = ""
    files: str = ""
    labels: dict[str, str] = {}
    disk_free: int = 0
    disk_total: int = 0
    disk_reserved: int = 0
    disk_orphaned: int = 0
    disk_budget: int = 0
    disk_keep_free: int = 0
    volume: str = ""
    pinned: tuple[str, ...] = ()
    draining: bool = False
    left: bool = False
    rate_limit: int = 0


class Holding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """That a node can serve the pieces of one model, or no longer can. ``digest`` is the manifest's."""

    node: str
    model: str
    digest: str = ""
    size: int = 0
    files: int = 0
    state: Literal["reading", "held", "gone"] = "held"


class Placement(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The wish that workers have a model loaded. ``nodes`` empty: it is wanted nowhere. ``refused``: tried in vain.

    ``generation`` rises with every change, so that an old failure is never taken for an answer to a new wish.
    """

    model: str
    nodes: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    generation: int = 1
    placed_at: float = 0.0


class NodeLimits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one node may do: bytes per second, 0 for any; stagings at once, 0 for as many as it was started with."""

    rate: int = 0
    stagings_at_once: int = 0


class Limits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the cluster may do. ``rate``: bytes per second over all nodes together, 0 for any.

    ``generation`` rises with every change, so that of two words the later one is known.
    """

    rate: int = 0
    nodes: dict[str, NodeLimits] = {}
    generation: int = 0
    changed_at: float = 0.0


class Instance(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One backend of a worker. ``instance`` is new with every start of the backend's process.

    It counts only while ``process`` is the node's current one: what an earlier process left behind is dead.
    """

    node: str
    model: str
    process: str
    instance: str = ""
    generation: int = 0
    state: Literal["loading", "ready", "restarting", "failed", "gone"] = "loading"
    error: str = ""


class Beat(msgspec.Struct, frozen=True, kw_only=True):
    """A process is alive. ``leaving`` says that this was its last word; ``performs`` which kinds of work it takes."""

    process: str
    leaving: bool = False
    performs: tuple[Kind, ...] = ()


class Command(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What somebody asks the owner of an operation, or a node, to do. ``id``: of the operation, or the node's name.

    ``keep_partial``: a cancel leaves on the disk what has arrived. ``question``: what is asked of a node.
    """

    verb: Verb | NodeVerb
    id: str
    keep_partial: bool = False
    question: msgspec.Raw = NOTHING


class CommandReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The owner's answer: the sequence at which the log shows the effect, or why there is none. Or a node's."""

    sequence: int = 0
    error: str = ""
    answer: msgspec.Raw = NOTHING
