"""Operations: how two records of one operation merge, and which record may follow which. Pure.

The merge takes the greater of two records by a total order, so it is commutative, associative and idempotent, and the
fold of any set of records is the same in whatever order and however often they come. Within an attempt an end outranks
everything that is not one, whatever its ``seq``: that is what makes an end final.
"""

from __future__ import annotations

from typing import Final, get_args

import msgspec

from stagecast.errors import WrongState
from stagecast.messages import MODEL_KINDS, Attempt, Bottleneck, Hindrance, Kind, Outcome, Priority, Record, State, Verb

ENDED: Final[frozenset[State]] = frozenset({"succeeded", "failed", "cancelled"})

_ALLOWED: Final[dict[Verb, frozenset[State]]] = {
    "cancel": frozenset({"queued", "running", "paused", "stalled"}),
    "pause": frozenset({"queued", "running", "stalled"}),
    "resume": frozenset({"paused"}),
    "retry": frozenset({"failed", "cancelled"}),
    "dismiss": frozenset({"failed"}),
}

PRIORITIES: Final[tuple[Priority, ...]] = get_args(Priority)

BLOCK: Final = "program"
"""The cause of what a block of a program's own does."""
VERIFY: Final = "verify"
"""The parameter of a staging that is to read what lies there."""
EARLIER_KEPT: Final = 20
"""How many attempts a record tells of: it must stay small, however often its owner dies."""

Fence = tuple[int, int]
Rank = tuple[int, int, int, int, bytes]


def operation_id(kind: Kind, model: str, node: str = "") -> str:
    """Return the id of an operation: ``staging:<model>@<node>``, or ``installation:<model>`` (WIRE section 3)."""
    return f"{kind}:{model}@{node}" if node else f"{kind}:{model}"


def is_ended(record: Record) -> bool:
    """Tell whether the record is an end: nothing of the same attempt can follow but its dismissal."""
    return record.state in ENDED


def is_listed(record: Record) -> bool:
    """Tell whether people see the operation in the list: it has not ended, or it failed and nobody dismissed it."""
    return not is_ended(record) or (record.state == "failed" and not record.dismissed)


def rank(record: Record) -> Rank:
    """Return what orders the records of one operation. The encoded record breaks ties, so the order is total."""
    return (*_order(record), _tie_break(record))


def outranks(one: Record, other: Record) -> bool:
    """Tell whether ``one`` is a later word than ``other``."""
    ours, theirs = _order(one), _order(other)
    return ours > theirs if ours != theirs else _tie_break(one) > _tie_break(other)


def is_later(one: Record, other: Record) -> bool:
    """Tell whether ``one`` has the higher number, so that it may be written over ``other`` (law L6)."""
    return _order(one) > _order(other)


def fence(record: Record) -> Fence:
    """Return the token by which an owner is fenced: whoever has a lower one than the log holds has lost its claim."""
    return (record.era, record.attempt)


def merge(held: Record | None, incoming: Record) -> Record:
    """Return the later of two records of the same operation."""
    return incoming if held is None or outranks(incoming, held) else held


def opened(
    held: Record | None,
    *,
    kind: Kind,
    model: str,
    node: str,
    job: str,
    now: float,
    cause: str = "",
    parameters: dict[str, str] | None = None,
    bytes_total: int = 0,
    total_files: int = 0,
    call: str = "",
    beside: tuple[str, ...] = (),
    era: int = 0,
) -> Record:
    """Return the record that queues a new run, above whatever is held of the same operation."""
    return Record(
        id=operation_id(kind, model, node),
        job=job,
        kind=kind,
        model=model,
        node=node,
        attempt=held.attempt + 1 if held else 1,
        bytes_total=bytes_total,
        total_files=total_files,
        cause=cause,
        started_at=now,
        queued_at=now,
        updated_at=now,
        parameters=parameters or {},
        call=call,
        beside=beside,
        era=max(era, held.era if held else 0),
    )


def claimed(held: Record, owner: str, now: float) -> Record:
    """Return the record by which ``owner`` takes the operation.

    Where somebody owned it before, this is a new attempt, so that the earlier owner is fenced. The phases are those of
    a model's way; other work has but the one in which it moves, and what an earlier attempt of it did is done.
    """
    following = anew(held, now) if held.owner else msgspec.structs.replace(held, seq=held.seq + 1)
    queued_at = held.queued_at if held.state == "queued" else following.queued_at
    phase = held.phase if held.kind in MODEL_KINDS else "transferring"
    return msgspec.structs.replace(
        following, owner=owner, state="running", phase=phase, note="", rate=None, updated_at=now, claimed_at=now,
        queued_at=queued_at, bytes_present=held.bytes_done, waits_on="", waits_since=0.0,
    )  # fmt: skip


def anew(held: Record, now: float, why: str = "") -> Record:
    """Return the record of a next attempt, which fences the one that is held and tells of it; ``why``, where known."""
    return msgspec.structs.replace(
        held, attempt=held.attempt + 1, seq=0, earlier=told(held, why), claimed_at=now, bytes_present=held.bytes_done,
        queued_at=now - waited(held), limited_by="", spent={},
    )  # fmt: skip


def waited(record: Record) -> float:
    """Return for how many seconds an operation waited for its turn, in all, before it was taken up last."""
    # Who asked for it may have another clock than who took it.
    return max(0.0, record.claimed_at - (record.queued_at or record.started_at)) if record.claimed_at else 0.0


def told(held: Record, why: str = "") -> tuple[Attempt, ...]:
    """Return the attempts of a job so far, the one that is held included."""
    is_own = held.state == "paused" or is_ended(held)
    why = "gave way to others" if held.state == "queued" and held.owner else why
    last = Attempt(
        attempt=held.attempt, state=held.state if is_own else "replaced", owner=held.owner,  # type: ignore[arg-type]
        error=held.error or why or (held.note.partition(";")[0] if held.state == "stalled" else ""),
        claimed_at=held.claimed_at, ended_at=held.updated_at,
    )  # fmt: skip
    return (*held.earlier, last)[-EARLIER_KEPT:]


def undismissed(held: Record) -> Record:
    """Return an end as it was before people took it out of the list."""
    return msgspec.structs.replace(held, dismissed=False) if held.dismissed else held


def took(held: Record) -> float | None:
    """Return for how many seconds an attempt that has ended was worked on; None where nobody took it up."""
    seconds = held.updated_at - held.claimed_at
    # Who ended it may have another clock than who began it.
    return seconds if held.claimed_at and seconds >= 0 else None


def moved(held: Record) -> int | None:
    """Return how many bytes moved in an attempt; None where it was never begun, or moves none by its nature."""
    if not held.claimed_at or held.kind in {"loading", "deletion"}:
        return None
    return max(0, held.bytes_done - held.bytes_present)


def succeeding(held: Record, now: float, **changes: object) -> Record:
    """Return the next record of the same attempt. What it waited for is over unless ``changes`` say so."""
    values = {"waits_on": "", "waits_since": 0.0, **changes}
    return msgspec.structs.replace(held, seq=held.seq + 1, updated_at=now, **values)


def ended(held: Record, state: Outcome, now: float, error: str = "", note: str = "", **changes: object) -> Record:
    """Return the end of the operation."""
    return succeeding(held, now, **{"state": state, "error": error, "note": note, "rate": None, **changes})


def put_back(held: Record, now: float, note: str) -> Record:
    """Return the record by which an owner lets an operation wait for its turn again. It stays named until a claim."""
    return succeeding(held, now, state="queued", phase="planning", note=note, rate=None, queued_at=now - waited(held))


def stalled(held: Record, reason: str, now: float, on: Hindrance = "owner", since: float | None = None) -> Record:
    """Return the record that says since when, and on what, the operation waits. The owner stays named.

    ``since`` is when that began, if not now or, while it waits ``on`` the same, as it says already.
    """
    if since is None:
        since = held.waits_since if held.waits_on == on else now
    return succeeding(held, now, state="stalled", note=reason, rate=None, waits_on=on, waits_since=since)


def commanded(held: Record, verb: Verb, now: float, *, keep_partial: bool = False) -> Record:
    """Return what ``verb`` makes of an operation that no living process works on.

    Raises:
        WrongState: the operation's state forbids the verb.
    """
    if verb == "cancel" and held.state == "cancelled" and held.keep_partial and not keep_partial:
        return succeeding(held, held.updated_at, keep_partial=False, bytes_kept=0)
    _check_allowed(held, verb)
    if verb == "cancel":
        return _cancelled(held, now, keep_partial=keep_partial)
    if verb == "dismiss":
        return succeeding(held, held.updated_at, dismissed=True)
    if verb == "pause":
        return succeeding(held, now, state="paused", note="paused", rate=None)
    there = _still_there(held)
    return msgspec.structs.replace(
        anew(held, now), owner="", claimed_at=0.0, queued_at=now, state="queued", phase="planning", begun_by=verb,
        error="", bytes_done=there, bytes_present=there, note="", rate=None, dismissed=False, updated_at=now,
        keep_partial=False, bytes_kept=0, waits_on="", waits_since=0.0,
    )  # fmt: skip


def _check_allowed(held: Record, verb: Verb) -> None:
    """Raise `WrongState` if the operation's state forbids the verb."""
    if held.state not in _ALLOWED[verb] or held.dismissed:
        raise WrongState(held.id, held.state, verb)
    if verb in {"cancel", "pause"} and is_decided(held):
        raise WrongState(held.id, f"{held.phase if held.phase == 'publishing' else 'deleting'}, past stopping", verb)


def is_fulfilled(held: Record, verb: Verb, *, keep_partial: bool = True) -> bool:
    """Tell whether what ``verb`` is to bring about holds already, so that giving it again changes nothing.

    A cancel that is to keep nothing does not while the one before it has kept something.
    """
    if verb == "cancel":
        return held.state == "cancelled" and (keep_partial or not held.keep_partial)
    if verb == "pause":
        return held.state == "paused"
    if verb == "dismiss":
        return held.dismissed
    return held.begun_by == verb and not is_ended(held) and held.state != "paused"


def is_decided(record: Record) -> bool:
    """Tell whether the end is decided, and only has to come: nothing can stop the work any more."""
    is_past = record.phase == "publishing" or record.kind == "deletion"
    return is_past and bool(record.owner) and record.state in {"running", "stalled"}


def is_moving(record: Record) -> bool:
    """Tell whether an owner moves a model's bytes, or may do so still though it does not answer."""
    is_at_it = record.state in {"running", "stalled"} and record.phase in {"transferring", "verifying"}
    return is_at_it and bool(record.owner) and record.kind in {"staging", "installation"}


def bottleneck(record: Record) -> Bottleneck:
    """Return on what most of a transfer's time goes just now; nothing where none runs."""
    return record.limited_by if record.state == "running" and record.phase == "transferring" else ""


def priority(record: Record) -> Priority:
    """Return what a staging goes before; all other work is as urgent as any."""
    said = record.parameters.get("priority", "") if record.kind == "staging" else ""
    return next((each for each in PRIORITIES if each == said), "normal")


def is_verification(record: Record) -> bool:
    """Tell whether a staging is to read what lies there."""
    return record.kind == "staging" and VERIFY in record.parameters


def is_bound(record: Record) -> bool:
    """Tell whether no other process than its owner can go on with the operation: a program's own block is the work."""
    return record.cause == BLOCK and not record.begun_by


def is_cancellable(record: Record) -> bool:
    """Tell whether a cancel would end the operation."""
    return record.state in _ALLOWED["cancel"] and not is_decided(record)


def _cancelled(held: Record, now: float, *, keep_partial: bool) -> Record:
    """Return the end of what nobody works on. Its node frees what is there, which may have to wait for that."""
    is_away = held.state in {"running", "stalled"} and bool(held.node) and not keep_partial
    note = f"once {held.node} is back" if is_away else ""
    kept = held.bytes_done if keep_partial else 0
    return ended(held, "cancelled", now, note=note, keep_partial=keep_partial, bytes_kept=kept)


def _still_there(held: Record) -> int:
    """Return how much is done still: a cancel has freed a model's bytes, but for what it was to keep."""
    has_freed = held.state == "cancelled" and held.kind in {"staging", "installation"}
    return held.bytes_kept if has_freed else held.bytes_done


def _order(record: Record) -> tuple[int, int, int, int]:
    return (record.era, record.attempt, is_ended(record) + record.dismissed, record.seq)


def _tie_break(record: Record) -> bytes:
    return msgspec.msgpack.encode(record)
