"""The laws L1 to L9, checked after every step that changed anything.

The ledger hears each message at the moment the server stores it and folds it with the production fold: that is the
ideal observer, who was there from the start and missed nothing. Whatever any process shows at a revision must be, byte
for byte, what the ideal observer showed there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NoReturn

import msgspec

from stagecast import revision, rows
from stagecast.answers import Operations
from stagecast.broadcast import decode
from stagecast.bus.nats import _identity
from stagecast.fold import Fold, Slot
from stagecast.messages import Entry, Record
from stagecast.revision import Revision
from stagecast.rows import Row
from tests.simulation.loop import Violation
from tests.simulation.nats import Stored, Stream

if TYPE_CHECKING:
    from tests.simulation.cluster import Answer, Browser, Cluster, Life

STALLED_WITHIN: Final = 10.0
TAKEN_WITHIN: Final = 10.0
AGREED_WITHIN: Final = 2.0
FENCED_WITHIN: Final = 2.5
"""Seconds after which an owner that could have heard of its fence moves nothing any more."""
DEGRADED_WITHIN: Final = 2.5
ENDED: Final = frozenset({"succeeded", "failed", "cancelled"})
EFFECTS: Final = {"cancel": {"cancelled"}, "pause": {"paused"}}
_encode: Final = msgspec.json.Encoder().encode
Rank = tuple[int, int, int]


@dataclass
class Seen:
    """What a process showed when it was looked at last."""

    fold: Fold | None = None
    revision: Revision | None = None
    slots: dict[str, Slot] = field(default_factory=dict)
    listed: bytes = b"[]"


@dataclass
class Risk:
    """The best word on an operation that living processes keep while the log has come back without it."""

    record: Record
    keepers: set[str]


class Ledger:
    """What has happened, and what must follow from it."""

    cluster: Cluster

    def __init__(self) -> None:
        self.checks: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        """What clients asked for, and with which status they were answered."""
        self.entries: list[tuple[float, Entry, Record | None]] = []
        self.ideal = Fold()
        self.listed: dict[tuple[str, int], bytes] = {}
        self.words: dict[tuple[str, int], Record] = {}
        self.owners: dict[tuple[str, str, int], str] = {}
        self.ends: dict[tuple[str, int], Record] = {}
        self.jobs: dict[str, str] = {}
        """Accepted operations: id -> job."""
        self.risks: dict[str, Risk] = {}
        self._accepted_at: dict[str, Revision] = {}
        self._began_by: dict[str, tuple[str, Browser]] = {}
        self.is_emptied = False
        self._kept: bytes = b"[]"
        self._seen: dict[str, Seen] = {}
        self._rows: dict[tuple[str, str], tuple[int, bool, int]] = {}
        self._highest: dict[str, Revision] = {}
        self._written: dict[str, float] = {}
        """When the present word on an operation came to be."""
        self._tails: list[tuple[float, str, int]] = []
        self._began: dict[str, tuple[str, int]] = {}
        self._since: dict[str, float] = {}
        self._history: dict[str, int] = {}

    def begin(self, cluster: Cluster) -> None:
        """Look at a cluster from now on."""
        self.cluster = cluster
        cluster.server.on_append = self._append

    def fail(self, law: str, what: str) -> NoReturn:
        """Say that a law is broken."""
        loop = self.cluster.loop
        loop.violation = Violation(f"{law}: {what} (at {loop.time():.4f} s, step {loop.steps})")
        raise loop.violation

    # The log.

    def _append(self, stream: Stream, stored: Stored) -> None:
        entry = Entry(stored.subject, stored.sequence, stored.data, stored.moment)
        if stream.config.name != "STAGECAST":
            self._history[stored.subject] = self._history.get(stored.subject, 0) + 1
            return
        identity = self._settle_identity(stream, stored.sequence - 1)
        now = self.cluster.loop.time()
        record = (
            None if entry.subject.startswith("stagecast.") else decode(entry.subject.split(".")[0], entry.payload).op
        )
        held = self.ideal.slots.get(record.id) if record is not None else None
        self.ideal.apply(entry)
        self.entries.append((now, entry, record))
        if record is not None:
            self._check_record(identity, held.record if held else None, record)
            self._written[record.id] = now
            self.words[identity, entry.sequence] = record
            self._kept = _encode(rows.listed(self.ideal))
        self.listed[identity, entry.sequence] = self._kept

    def _settle_identity(self, stream: Stream, before: int) -> str:
        identity = _identity(stream.info())
        if self.ideal.revision.identity != identity:
            self.ideal = Fold(Revision(identity, 0))
            self._kept = b"[]"
            self.listed[identity, before] = self._kept
        return identity

    def _check_record(self, identity: str, held: Record | None, record: Record) -> None:
        self.checks["L6"] += 1
        if held is not None and held != record:
            if rank(record) <= rank(held):
                self.fail("L6", f"the log holds {brief(record)} after {brief(held)}")
            if held.attempt == record.attempt:
                self._check_attempt(held, record)
            else:
                self._check_next_attempt(held, record)
        if record.state == "failed" and not record.error:
            self.fail("L3", f"{brief(record)} has no cause")
        if record.owner:
            owner = self.owners.setdefault((identity, record.id, record.attempt), record.owner)
            if owner != record.owner:
                self.fail("L6", f"{record.id} has two owners in attempt {record.attempt}: {owner} and {record.owner}")
        if is_ended(record):
            self.ends[record.job, record.attempt] = record
        risk = self.risks.get(record.id)
        if risk is not None and not outranks(risk.record, record):
            del self.risks[record.id]

    def _check_attempt(self, held: Record, record: Record) -> None:
        self.checks["L2"] += 1
        self.checks["L3"] += 1
        if is_ended(held) and record.state != held.state:
            self.fail("L3", f"{brief(held)} is followed by {brief(record)}")
        if held.state == "paused" and record.state in {"queued", "running", "stalled"}:
            self.fail("L3", f"{brief(held)} is followed by {brief(record)}")
        # An end that only a lost log had may be of an earlier moment than what its owner, who did not know of it, did since.
        is_of_lost_log = self.is_emptied and is_ended(record)
        if record.bytes_done < held.bytes_done and not is_of_lost_log:
            self.fail("L2", f"{brief(held)} is followed by {brief(record)}")

    def _check_next_attempt(self, held: Record, record: Record) -> None:
        """What has ended is begun anew only by whoever asks for that, and what is paused too."""
        self.checks["L3"] += 1
        begins = {"resume", "retry"} if held.state == "paused" else {"retry"}
        if (is_ended(held) or held.state == "paused") and record.job == held.job and record.begun_by not in begins:
            self.fail("L3", f"{brief(held)} is followed by {brief(record)}, and nobody asked for that")

    def emptied(self) -> None:
        """Note what living processes know, for the log is about to lose it."""
        self.is_emptied = True
        best: dict[str, Record] = {}
        for life in self.cluster.lives():
            for slots in _folds(life):
                for id_, slot in slots.items():
                    best[id_] = _better(best.get(id_), slot.record)
        self.risks = {}
        for id_, record in best.items():
            keepers = {life.id for life in self.cluster.lives() if any(_holds(s, record) for s in _folds(life))}
            self.risks[id_] = Risk(record, keepers)
        for id_ in set(self.ideal.slots) - best.keys():
            self._excuse(id_)
        for id_, record in best.items():
            held = self.ideal.slots.get(id_)
            if held is not None and outranks(held.record, record):
                self._forget_rows(id_)
        self.ideal = Fold()

    def _excuse(self, id_: str) -> None:
        """Expect nothing of an operation that no living process knows any more."""
        self.jobs.pop(id_, None)
        self._accepted_at.pop(id_, None)
        self.risks.pop(id_, None)
        self._forget_rows(id_)

    def _forget_rows(self, id_: str) -> None:
        for key in [key for key in self._rows if key[1] == id_]:
            del self._rows[key]

    # Processes.

    def born(self, life: Life) -> None:
        """Note that a process has started, and where the log stood."""
        stream = self.cluster.server.streams.get("STAGECAST")
        self._began[life.id] = (_identity(stream.info()), stream.last_sequence) if stream else ("", 0)

    def died(self, life: Life) -> None:
        """Note that a process is gone, and with it what only it knew."""
        self._seen.pop(life.id, None)
        for id_, risk in list(self.risks.items()):
            risk.keepers.discard(life.id)
            if not risk.keepers:
                self._excuse(id_)

    def watch(self, life: Life) -> Callable[[], None]:
        """Return what looks at a process after each of its steps; almost always nothing has changed."""
        tracker = life.tracker
        assert tracker is not None
        seen = self._seen[life.id] = Seen()

        def look() -> None:
            fold = tracker.fold
            if fold is seen.fold and fold.revision is seen.revision:
                return
            if tracker.caught_up.is_set():
                self._look(life, seen, fold)

        return look

    def _look(self, life: Life, seen: Seen, fold: Fold) -> None:
        at = fold.revision
        if seen.fold is None:
            self._check_late(life, at)
        elif seen.revision is not None and at < seen.revision and at.identity == seen.revision.identity:
            self.fail("L2", f"{life.id} goes from revision {seen.revision} back to {at}")
        slots = fold.slots
        if slots != seen.slots:
            self._check_slots(life, seen.slots, slots)
            seen.slots = dict(slots)
            seen.listed = _encode(rows.listed(fold))
        seen.fold, seen.revision = fold, at
        expected = self.listed.get(at)
        if expected is not None:
            self.checks["L1"] += 1
            if expected != seen.listed:
                self.fail("L1", f"{life.id} at {at} shows\n  {seen.listed!r}\nand the log there is\n  {expected!r}")
        elif at.sequence and at.identity == self.ideal.revision.identity:
            self.fail("L1", f"{life.id} stands at {at}, which the log never had")

    def _check_late(self, life: Life, at: Revision) -> None:
        identity, sequence = self._began[life.id]
        self.checks["L4"] += 1
        if at.identity == identity and at.sequence < sequence:
            self.fail("L4", f"{life.id} is ready at {at}; the log stood at {sequence} when it started")

    def _check_slots(self, life: Life, old: dict[str, Slot], new: dict[str, Slot]) -> None:
        for id_, slot in old.items():
            now = new.get(id_)
            if now is slot:
                continue
            self.checks["L2"] += 1
            if now is None:
                self.fail("L8", f"{life.id} shows {brief(slot.record)} no more")
            if outranks(slot.record, now.record):
                self.fail("L2", f"{life.id} goes from {brief(slot.record)} back to {brief(now.record)}")

    def moved(self, life: Life, record: Record) -> None:
        """A process moves bytes for an operation: it must not where it could know for long that it was fenced."""
        self.checks["L6"] += 1
        held = self.ideal.slots.get(record.id)
        well = life.well_since
        if held is None or well is None:
            return
        now, word = self.cluster.loop.time(), held.record
        is_fenced = word.owner != life.id or is_ended(word) or word.state == "paused"
        since = max(self._written.get(record.id, now), well)
        if is_fenced and now - since > FENCED_WITHIN:
            self.fail("L6", f"{life.id} still works on {brief(word)}, {now - since:.2f} s after it could know")

    # Clients.

    def answered(self, life: Life, body: bytes) -> None:
        """A replica answers with its list: the very bytes must be those of its revision."""
        assert life.replica is not None
        tracker = life.replica.tracker
        expected = self.listed.get(tracker.fold.revision)
        if expected is not None:
            flag = b"true" if tracker.is_degraded else b"false"
            whole = b'{"operations":%b,"revision":"%b","degraded":%b}' % (
                expected, str(tracker.fold.revision).encode(), flag,
            )  # fmt: skip
            self.checks["L1"] += 1
            if body != whole:
                self.fail("L1", f"{life.id} answers\n  {body!r}\nand the log there is\n  {whole!r}")

    def polled(self, browser: Browser, answer: Answer) -> None:
        """A client got the list."""
        self.answers["list 200"] += 1
        self.checks["L2"] += 1
        body = msgspec.json.decode(answer.body, type=Operations)
        at, before = revision.parse(body.revision), self._highest.get(browser.name)
        if at is None:
            self.fail("L2", f"{answer.replica} answers without a revision")
        asked = revision.parse(answer.asked)
        if asked is not None and at < asked:
            self.fail("L2", f"{browser.name} sees {at} on {answer.replica}, and had asked for {asked}")
        if before is not None and at < before:
            return  # of two answers on their way at once the older one came later: no client shows it
        self._highest[browser.name] = at
        shown = {row.id: row for row in body.operations}
        for id_, row in shown.items():
            self._check_row(browser, answer, id_, row)
        for key, (attempt, is_over, _) in list(self._rows.items()):
            if key[0] == browser.name and key[1] not in shown and not is_over:
                self._check_absent(browser, answer, at, key[1], attempt)

    def _check_row(self, browser: Browser, answer: Answer, id_: str, row: Row) -> None:
        if id_ in self.risks and answer.replica not in self.risks[id_].keepers:
            return  # who was born into the new log cannot know yet what the old one had
        key = (browser.name, id_)
        is_over = row.state in ENDED
        now, before = (row.attempt, is_over, row.current_bytes), self._rows.get(key)
        if before is not None and now < before:
            self.fail("L2", f"{browser.name} sees {id_} at {now} on {answer.replica} after {before}")
        self._rows[key] = now

    def _check_absent(self, browser: Browser, answer: Answer, at: Revision, id_: str, attempt: int) -> None:
        """A row that was there is not: then it has ended, by the log's own word."""
        self.checks["L3"] += 1
        held = self.ideal.slots.get(id_)
        if id_ in self.risks:
            # Who was born into the new log, before anybody has put back what it was, cannot know.
            if at.identity == self.ideal.revision.identity and answer.replica in self.risks[id_].keepers:
                self.fail("L8", f"{browser.name} misses {id_} on {answer.replica} at {at}; it was known")
            return
        if held is None or (not is_ended(held.record) and held.record.attempt <= attempt):
            what = brief(held.record) if held else "unknown to the log"
            self.fail("L3", f"{browser.name} misses {id_} on {answer.replica} at {at}; it is {what}")
        self._rows[browser.name, id_] = (attempt, True, 1 << 60)

    def accepted(self, browser: Browser, path: str, answer: Answer, record: Record, at: str) -> None:
        """A client was told that what it asked for is done."""
        self.checks["L5"] += 1
        verb = path.split("/")[2]
        self.answers[f"{verb} 200"] += 1
        written, held = revision.parse(at), self.ideal.slots.get(record.id)
        if written is not None:
            self._accepted_at.setdefault(record.id, written)
        self.jobs[record.id] = record.job
        if verb in {"stage", "install"}:
            self._began_by[record.id] = (answer.replica, browser)
        if held is None or written is None:
            return
        if written not in self.listed:
            self.fail("L5", f"{browser.name} was told {brief(record)} at {at}, which no log ever had")
        if written.identity != self.ideal.revision.identity:
            return
        if outranks(record, held.record):
            self.fail("L5", f"{browser.name} was told {brief(record)}, the log has {brief(held.record)}")
        effect = self.words.get(written)
        if verb in EFFECTS and (effect is None or effect.id != record.id or effect.state not in EFFECTS[verb]):
            found = brief(effect) if effect else "nothing of an operation"
            self.fail("L5", f"{verb} was answered with {brief(record)} at {at}, where the log has {found}")

    def refused(self, browser: Browser, path: str, answer: Answer) -> None:
        """A client was told no."""
        self.checks["L5"] += 1
        _, _, verb, name, *_ = path.split("/")
        self.answers[f"{verb} {answer.status}"] += 1
        known, asked = self._accepted_at.get(name), revision.parse(answer.asked)
        if answer.status == 404 and known is not None and asked is not None and known <= asked:
            self.fail("L5", f"{verb} of {name} on {answer.replica}: {answer.body!r}, though it was accepted at {known}")

    # What time brings.

    def tick(self) -> None:
        """Look at what must have happened by now."""
        now, server = self.cluster.loop.time(), self.cluster.server
        lives = self.cluster.lives()
        stream = server.streams.get("STAGECAST") if server.is_up else None
        if stream is not None:
            self._tails.append((now, _identity(stream.info()), stream.last_sequence))
        for life in lives:
            self._check_degraded(life, now)
            if life.well_since is not None and stream is not None:
                self._check_agreement(life, now, life.well_since)
        judges = [life.well_since for life in lives if life.replica is not None and life.well_since is not None]
        if judges and stream is not None:
            self._check_leases(now, min(judges))

    def _check_degraded(self, life: Life, now: float) -> None:
        tracker = life.tracker
        if tracker is None or not tracker.caught_up.is_set() or life.process.is_paused:
            return
        deaf = not life.client.is_connected or not self.cluster.server.is_up
        since = self._since.setdefault(life.id, now) if deaf else self._since.pop(life.id, None)
        if deaf and since is not None:
            self.checks["L8"] += 1
            if now - max(since, life.awake_since) > DEGRADED_WITHIN and not tracker.is_degraded:
                self.fail("L8", f"{life.id} hears nothing for {now - since:.1f} s and does not say degraded")

    def _check_agreement(self, life: Life, now: float, well: float) -> None:
        tracker = life.tracker
        past, noise = now - AGREED_WITHIN, self.cluster.server.noise
        if tracker is None or max(well, self.cluster.calm_since) > past or noise.drop_answer or noise.drop_delivery:
            return
        found = [tail for tail in self._tails if tail[0] <= past]
        if not found or found[-1][0] < well or self._tails[-1][1] != found[-1][1]:
            return
        self.checks["L8"] += 1
        _, identity, sequence = found[-1]
        at = tracker.revision
        if tracker.is_degraded or at.identity != identity or at.sequence < sequence:
            said = "degraded " if tracker.is_degraded else ""
            self.fail("L8", f"{life.id} is {said}at {at}; the log stood at {identity}-{sequence} for {AGREED_WITHIN} s")

    def _check_leases(self, now: float, judged_since: float) -> None:
        cluster = self.cluster
        living = {life.id: life for life in cluster.lives()}
        for id_, slot in self.ideal.slots.items():
            record = slot.record
            if is_ended(record) or not record.owner or record.owner in living or record.state == "paused":
                continue
            self.checks["L7"] += 1
            since = max(self._written[id_], judged_since, self._dead_since(record.owner))
            if record.state != "stalled":
                if now - since > STALLED_WITHIN:
                    self.fail(
                        "L7", f"{brief(record)} is not stalled {now - since:.1f} s after its owner could be missed"
                    )
                continue
            if record.kind == "installation":
                if now - max(self._written[id_], judged_since) > TAKEN_WITHIN:
                    self.fail("L7", f"nobody took {brief(record)} over")
                continue
            life = cluster.nodes[record.node].life
            well = life.well_since if life is not None else None
            if well is not None and now - max(well, self._written[id_]) > TAKEN_WITHIN:
                self.fail("L7", f"{record.node} is back and does not go on with {brief(record)}")

    def _dead_since(self, process: str) -> float:
        return self.cluster.deaths.get(process, 0.0)

    # The end.

    def finish(self) -> None:
        """Everything has ended as `unsettled` demands: count what ended though whoever began it was gone (L9)."""
        living = {life.id for life in self.cluster.lives()}
        for replica, browser in self._began_by.values():
            self.checks["L9"] += (replica not in living) + browser.process.is_dead

    def unsettled(self) -> str:
        """Return what is still to come before everything has converged; nothing once it has."""
        cluster = self.cluster
        stream = cluster.server.streams.get("STAGECAST")
        if stream is None:
            return "there is no log"
        at = Revision(_identity(stream.info()), stream.last_sequence)
        for record in self.ideal.live():
            if record.state != "paused":
                return f"{brief(record)} goes on"
        for id_, job in self.jobs.items():
            held = self.ideal.slots.get(id_)
            if held is None:
                return f"{id_} ({job}) was accepted and is not in the log"
        for risk in self.risks.values():
            return f"{brief(risk.record)} was known by {sorted(risk.keepers)} and is not in the log that came back"
        for life in cluster.lives():
            if not life.is_ready or life.tracker is None:
                return f"{life.id} is not ready"
            if life.tracker.revision != at or life.tracker.is_degraded:
                return f"{life.id} is at {life.tracker.revision}, the log at {at}"
            missing = self._missing_ends(life)
            if missing:
                return missing
        return ""

    def _missing_ends(self, life: Life) -> str:
        if life.history is None:
            return ""
        known = Counter((record.job, record.attempt) for record in life.history.newest(limit=1000))
        for slot in self.ideal.slots.values():
            if is_ended(slot.record) and known[slot.record.job, slot.record.attempt] != 1:
                return f"{life.id} has no history of {brief(slot.record)}"
        return ""


def rank(record: Record) -> Rank:
    """Return what orders the records of an operation by law L6: the attempt, whether it has ended, the number.

    The invariants' own words, so that they hold where the production code is broken.
    """
    return (record.attempt, (record.state in ENDED) + record.dismissed, record.seq)


def outranks(one: Record, other: Record) -> bool:
    """Tell whether ``one`` is a later word than ``other``."""
    return rank(one) > rank(other)


def is_ended(record: Record) -> bool:
    """Tell whether the record is an end."""
    return record.state in ENDED


def brief(record: Record) -> str:
    """Return a record in one line."""
    owner = f" by {record.owner}" if record.owner else ""
    note = f" ({record.error or record.note})" if record.error or record.note else ""
    return f"{record.id} {record.attempt}.{record.seq} {record.state}{owner} {record.bytes_done}/{record.bytes_total}{note}"


def _better(held: Record | None, other: Record) -> Record:
    return other if held is None or outranks(other, held) else held


def _folds(life: Life) -> list[dict[str, Slot]]:
    if life.tracker is None:
        return []
    return [life.tracker.fold.slots, life.tracker._incoming.slots]


def _holds(slots: dict[str, Slot], record: Record) -> bool:
    slot = slots.get(record.id)
    return slot is not None and slot.record == record
