"""``/api/operations``: the list, one operation, the event stream, the history, and the commands."""

from __future__ import annotations

import math
from typing import Annotated, Final, cast, get_args

import msgspec
from litestar import Controller, Request, Response, get, post
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.enums import MediaType
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from stagecast import revision, rows
from stagecast.errors import BadInput, Unknown
from stagecast.frontend import events
from stagecast.frontend.encoded import Encoded, Frames
from stagecast.frontend.gate import catch_up, header, written
from stagecast.frontend.segment import whole_id
from stagecast.messages import Outcome, Verb
from stagecast.participant import Participant
from stagecast.past import Place, Sought, parse_place, place_before
from stagecast.proxy import Scope
from stagecast.quantities import parse_time
from stagecast.revision import Revision
from stagecast.rows import Row
from stagecast.view import OperationList

LONGEST_WAIT: Final = 60.0
HISTORY_LIMIT: Final = 1000

Asked = Request[object, object, State]


class Ended(msgspec.Struct, kw_only=True):
    """Attempts that have ended, newest first. ``next`` is what the next page goes on ``before``, if there is one."""

    operations: list[Row]
    next: str | msgspec.UnsetType = msgspec.UNSET


class CommandRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How a command is meant. ``keep_partial``: a cancel leaves on the disk what has arrived."""

    keep_partial: bool = False


class OperationsApi(Controller):
    """What is under way, and what has ended."""

    path = "/api/operations"
    tags = ["operations"]  # noqa: RUF012  # litestar's own form

    @get("/", media_type=MediaType.JSON, summary="The operations under way, and the failed ones nobody dismissed")
    async def list_operations(
        self,
        request: Asked,
        participant: NamedDependency[Participant],
        after: Annotated[str, QueryParameter(description="A revision: answer once there is a later one")] = "",
        wait: Annotated[float, QueryParameter(description="Seconds to wait for that, at most 60")] = 0.0,
    ) -> Response[OperationList]:
        """Return the list as every replica shows it at this revision."""
        if not math.isfinite(wait):
            raise BadInput(f"wait is {wait}; it is a number of seconds, at most {LONGEST_WAIT:.0f}")
        known = revision.parse(after)
        if known is not None:
            await catch_up(participant.tracker, known)
            was = participant.tracker.is_degraded
            await participant.tracker.until(
                lambda: _is_later(participant, known) or participant.tracker.is_degraded is not was,
                max(0.0, min(wait, LONGEST_WAIT)),
            )
        etag = participant.view.etag
        headers = [(b"etag", etag.encode()), (b"cache-control", b"no-cache")]
        if is_known(etag, _if_none_match(request)):
            return Encoded(304, b"", headers)
        return Encoded(200, participant.view.body, headers)

    @get("/stream", media_type="text/event-stream", summary="Server-sent events: a snapshot, then each change")
    async def stream(self, request: Asked, participant: NamedDependency[Participant]) -> Frames:
        """Send ``snapshot``, then ``operation`` per change; ``Last-Event-ID`` resumes on any replica."""
        after = await events.begin(participant.tracker, request.headers.get("last-event-id", ""))
        return Frames(events.stream(participant.feed, participant.name, after))

    @get("/history", summary="Ended operations, newest first")
    async def history(
        self,
        request: Asked,
        participant: NamedDependency[Participant],
        kind: FromQuery[str] = "",
        model: FromQuery[str] = "",
        node: FromQuery[str] = "",
        outcome: Annotated[str, QueryParameter(name="state", description="How it ended")] = "",
        job: FromQuery[str] = "",
        limit: Annotated[int, QueryParameter(description=f"At most so many, {HISTORY_LIMIT} at most")] = 100,
        before: Annotated[str, QueryParameter(description="An RFC 3339 time, or the next of a page")] = "",
    ) -> Ended:
        """Return the attempts that have ended, also those that a retry followed."""
        if limit < 1:
            raise BadInput(f"limit is {limit}; it must be at least 1")
        if kind and not participant.knows(kind):
            path = f"{request.method} {request.url.path}"
            raise BadInput(f"{path} does not take that: kind: {kind!r} is neither one of ours nor was it seen here")
        if outcome and outcome not in get_args(Outcome):
            raise BadInput(f"state is {outcome!r}; it is one of {', '.join(get_args(Outcome))}")
        sought = Sought(kind=kind, model=model, node=node, state=outcome, job=job)
        page = participant.history.page(sought, limit=min(limit, HISTORY_LIMIT), before=_place(before))
        following = str(page.following) if page.following else msgspec.UNSET
        return Ended(operations=[rows.detailed(record) for record in page.records], next=following)

    @get("/{operation:str}", summary="One operation by its id or job, also after its end")
    async def show(self, participant: NamedDependency[Participant], operation: FromPath[str]) -> Row:
        """Return one row."""
        return participant.row(whole_id(operation))

    @post("/{operation:str}/{verb:str}", status_code=200, summary="cancel, pause, resume, retry or dismiss")
    async def command(
        self,
        participant: NamedDependency[Participant],
        operation: FromPath[str],
        verb: FromPath[str],
        data: JSONBody[CommandRequest | None] = None,
    ) -> Response[Row]:
        """Return the row once the operation's owner has taken the command up, or where it has taken effect before."""
        try:
            wanted: Verb = msgspec.convert(verb, Verb)
        except msgspec.ValidationError:
            raise Unknown("command", verb, ["cancel", "pause", "resume", "retry", "dismiss"]) from None
        operation = whole_id(operation)
        mirror = participant.mirror(operation)
        if mirror is not None:
            await participant.commands.give_foreign(mirror, wanted)
            return Response(rows.mirror_row(mirror))
        record, at = await participant.commands.give(operation, wanted, keep_partial=bool(data and data.keep_partial))
        row = rows.detailed(record, rows.shares(participant.fold, record))
        return Response(row, headers=written(participant.tracker, at))


def is_known(etag: str, if_none_match: str) -> bool:
    """Tell whether a client's ``If-None-Match`` names the entity tag, by weak comparison (RFC 9110, section 13.1.2)."""
    known = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return etag in known or "*" in known


def _place(before: str) -> Place | None:
    place = parse_place(before)
    if place is not None or not before:
        return place
    try:
        return place_before(parse_time(before))
    except ValueError:
        raise BadInput(f"before is {before!r}; write a time like 2026-11-24T01:48:00Z, or a page's next") from None


def _if_none_match(request: Asked) -> str:
    # Read from what came: making all headers into a mapping costs a fifth of answering.
    return header(cast("Scope", request.scope), b"if-none-match").decode("latin-1")


def _is_later(participant: Participant, known: Revision) -> bool:
    now = participant.tracker.revision
    return now.identity != known.identity or now.sequence > known.sequence or participant.tracker.is_closing
