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

from stagecast import revision, rows, subjects
from stagecast.answers import Operations
from stagecast.broadcast import decode, percentage
from stagecast.bus.nats import _identity
from stagecast.fold import Fold, Slot
from stagecast.messages import Entry, Record
from stagecast.revision import Revision
from stagecast.rows import Row
from tests.simulation.loop import Violation
from tests.simulation.stream import Stored, Stream
from tests.simulation.words import ENDED, better, brief, folds, holds, is_ended, outranks, rank

if TYPE_CHECKING:
    from tests.simulation.browser import Browser
    from tests.simulation.cluster import Answer, Cluster
    from tests.simulation.life import Life

FENCED_WITHIN: Final = 2.5
"""Seconds after which an owner that could have heard of its fence moves nothing any more."""
EFFECTS: Final = {"cancel": {"cancelled"}, "pause": {"paused"}}
_encode: Final = msgspec.json.Encoder().encode


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
        self.named: dict[tuple[str, int], frozenset[str]] = {}
        """Which operations are known at a revision, ended or not."""
        self.forgotten: dict[str, tuple[int, float]] = {}
        """Where in the log, and when, an operation was forgotten last."""
        self.ended_jobs: set[str] = set()
        self.words: dict[tuple[str, int], Record] = {}
        self.owners: dict[tuple[str, str, int, int], str] = {}
        self.ends: dict[tuple[str, int], Record] = {}
        self.jobs: dict[str, str] = {}
        """Accepted operations: id -> job."""
        self.risks: dict[str, Risk] = {}
        self._kept_by: dict[str, set[str]] = {}
        self._back: dict[str, Revision] = {}
        """Where in the new log the words stand that were at risk."""
        self._accepted_at: dict[str, Revision] = {}
        self.began_by: dict[str, tuple[str, Browser]] = {}
        self.is_emptied = False
        self._kept: bytes = b"[]"
        self._names: frozenset[str] = frozenset()
        self._seen: dict[str, Seen] = {}
        self._rows: dict[tuple[str, str], tuple[str, tuple[int, bool, int]]] = {}
        self._earlier: dict[tuple[str, str], set[str]] = {}
        """The runs of an operation that a client has seen another one after."""
        self._highest: dict[str, Revision] = {}
        self.written: dict[str, float] = {}
        """When the present word on an operation came to be."""
        self._began: dict[str, tuple[str, int]] = {}
        self._history: set[tuple[str, str]] = set()

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
            self._check_history(stream, stored)
            return
        identity = self._settle_identity(stream, stored.sequence - 1)
        now = self.cluster.loop.time()
        record = (
            None if entry.subject.startswith("stagecast.") else decode(entry.subject.split(".")[0], entry.payload).op
        )
        held = self.ideal.slots.get(record.id) if record is not None else None
        change = self.ideal.apply(entry)
        if change.forgotten:
            self._check_forgotten([word for word in change.forgotten if isinstance(word, Slot)], entry.sequence, now)
        self.entries.append((now, entry, record))
        if record is not None:
            self._check_record(identity, held.record if held else None, record)
            self.written[record.id] = now
            self.words[identity, entry.sequence] = record
            self._kept = _encode(rows.listed(self.ideal))
        if len(self._names) != len(self.ideal.slots):
            self._names = frozenset(self.ideal.slots)
        self.listed[identity, entry.sequence] = self._kept
        self.named[identity, entry.sequence] = self._names

    def _check_forgotten(self, slots: list[Slot], sequence: int, now: float) -> None:
        """All forget what has ended, nobody is shown, and the history has; the list stays what it was."""
        history = self.cluster.server.streams["STAGECAST_HISTORY"].messages
        for slot in slots:
            self.checks["forgotten"] += 1
            record = slot.record
            if not is_ended(record) or (record.state == "failed" and not record.dismissed):
                self.fail("L3", f"{brief(record)} is forgotten")
            if subjects.history(record.job, record.attempt) not in history:
                self.fail("L3", f"{brief(record)} is forgotten, and the history does not have it")
            self.forgotten[record.id] = (sequence, now)
        if _encode(rows.listed(self.ideal)) != self._kept:
            self.fail("L3", "the list changes though only what has ended is forgotten")

    def _check_history(self, stream: Stream, stored: Stored) -> None:
        self.checks["L3"] += 1
        key = (_identity(stream.info()), stored.subject)
        if key in self._history:
            self.fail("L3", f"the history is told of {stored.subject} twice")
        self._history.add(key)

    def _settle_identity(self, stream: Stream, before: int) -> str:
        identity = _identity(stream.info())
        if self.ideal.revision.identity != identity:
            self.ideal = Fold(Revision(identity, 0))
            self._kept = b"[]"
            self._names = frozenset()
            self.listed[identity, before], self.named[identity, before] = self._kept, self._names
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
            owner = self.owners.setdefault((identity, record.id, record.era, record.attempt), record.owner)
            if owner != record.owner:
                self.fail("L6", f"{record.id} has two owners in attempt {record.attempt}: {owner} and {record.owner}")
        if is_ended(record):
            self.ends[record.job, record.attempt] = record
            self.ended_jobs.add(record.job)
        elif held is None and not self.is_emptied and (record.job, record.attempt) in self.ends:
            self.fail("L3", f"{brief(record)} is revived")
        risk = self.risks.get(record.id)
        if risk is not None and not outranks(risk.record, record):
            del self.risks[record.id]
            self._back[record.id] = self.ideal.revision

    def _check_attempt(self, held: Record, record: Record) -> None:
        self.checks["L2"] += 1
        self.checks["L3"] += 1
        if is_ended(held) and record.state != held.state:
            self.fail("L3", f"{brief(held)} is followed by {brief(record)}")
        if held.state == "paused" and record.state in {"queued", "running", "stalled"}:
            self.fail("L3", f"{brief(held)} is followed by {brief(record)}")
        # An end that only a lost log had may be of an earlier moment than what its owner, unaware of it, did since.
        is_of_lost_log = self.is_emptied and is_ended(record)
        has_fallen = record.bytes_done < held.bytes_done or percentage(record) < percentage(held)
        if has_fallen and not is_of_lost_log:
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
            for slots in folds(life):
                for id_, slot in slots.items():
                    best[id_] = better(best.get(id_), slot.record)
        self.risks = {}
        for id_, record in best.items():
            keepers = {life.id for life in self.cluster.lives() if any(holds(s, record) for s in folds(life))}
            self.risks[id_] = Risk(record, keepers)
            self._kept_by[id_] = set(keepers)
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
            self._check_slots(life, seen.slots, slots, at)
            seen.slots = dict(slots)
            seen.listed = _encode(rows.listed(fold))
        seen.fold, seen.revision = fold, at
        expected = self.listed.get(at)
        if expected is not None:
            self.checks["L1"] += 1
            if slots.keys() != self.named[at]:
                self.fail(
                    "L1", f"{life.id} at {at} knows {sorted(slots.keys() ^ self.named[at])} or not, unlike the log"
                )
            if expected != seen.listed:
                self.fail("L1", f"{life.id} at {at} shows\n  {seen.listed!r}\nand the log there is\n  {expected!r}")
        elif at.sequence and at.identity == self.ideal.revision.identity:
            self.fail("L1", f"{life.id} stands at {at}, which the log never had")

    def _check_late(self, life: Life, at: Revision) -> None:
        identity, sequence = self._began[life.id]
        self.checks["L4"] += 1
        if at.identity == identity and at.sequence < sequence:
            self.fail("L4", f"{life.id} is ready at {at}; the log stood at {sequence} when it started")

    def _check_slots(self, life: Life, old: dict[str, Slot], new: dict[str, Slot], at: Revision) -> None:
        for id_, slot in old.items():
            now = new.get(id_)
            if now is slot:
                continue
            self.checks["L2"] += 1
            if now is None and id_ in self.forgotten and id_ not in self.named.get(at, (id_,)):
                continue
            if now is None:
                self.fail("L8", f"{life.id} shows {brief(slot.record)} no more")
            if outranks(slot.record, now.record):
                self.fail("L2", f"{life.id} goes from {brief(slot.record)} back to {brief(now.record)}")

    def moved(self, life: Life, record: Record) -> None:
        """A process moves bytes for an operation: it must not where it could know for long that it was fenced."""
        self.checks["L6"] += 1
        held = self.ideal.slots.get(record.id)
        well, now = life.well_since, self.cluster.loop.time()
        if held is None and well is not None and record.id in self.forgotten:
            since = max(self.forgotten[record.id][1], well)
            if now - since > FENCED_WITHIN:
                self.fail("L6", f"{life.id} still works on {record.id}, {now - since:.2f} s after all forgot it")
        if held is None or well is None:
            return
        word = held.record
        is_fenced = word.owner != life.id or is_ended(word) or word.state == "paused"
        since = max(self.written.get(record.id, now), well)
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
            whole = b'{"operations":%b,"revision":"%b","degraded":%b}\n' % (
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
        for key, (_, (attempt, is_over, _)) in list(self._rows.items()):
            if key[0] == browser.name and key[1] not in shown and not is_over:
                self._check_absent(browser, answer, at, key[1], attempt)

    def _check_row(self, browser: Browser, answer: Answer, id_: str, row: Row) -> None:
        at = revision.parse(answer.revision)
        if at is not None and self._cannot_know(answer, id_, at):
            return
        key = (browser.name, id_)
        is_over = row.state in ENDED
        now = (row.attempt, is_over, row.current_bytes)
        job, before = self._rows.get(key, (row.job_id, now))
        earlier = self._earlier.setdefault(key, set())
        is_anew = job != row.job_id and self._is_long_over(id_, job)
        if row.job_id in earlier or (now < before and not is_anew):
            self.fail("L2", f"{browser.name} sees {id_} at {now} on {answer.replica} after {before}")
        if job != row.job_id:
            earlier.add(job)
        self._rows[key] = (row.job_id, now)

    def _is_long_over(self, id_: str, job: str) -> bool:
        """Tell whether a run has ended by the log's own word, and the log has forgotten the operation since."""
        return id_ in self.forgotten and job in self.ended_jobs

    def _cannot_know(self, answer: Answer, id_: str, at: Revision) -> bool:
        """Tell whether a replica was born into a log that came back empty, where nobody had put back this word yet."""
        back = self._back.get(id_)
        if back is not None and at < back:
            return answer.replica not in self._kept_by.get(id_, ())
        return id_ in self.risks and answer.replica not in self.risks[id_].keepers

    def _check_absent(self, browser: Browser, answer: Answer, at: Revision, id_: str, attempt: int) -> None:
        """A row that was there is not: then it has ended, by the log's own word."""
        self.checks["L3"] += 1
        held = self.ideal.slots.get(id_)
        if self._cannot_know(answer, id_, at):
            return
        if id_ in self.risks:
            if at.identity == self.ideal.revision.identity:
                self.fail("L8", f"{browser.name} misses {id_} on {answer.replica} at {at}; it was known")
            return
        job, _ = self._rows[browser.name, id_]
        if not self._is_long_over(id_, job) and (
            held is None or (not is_ended(held.record) and held.record.attempt <= attempt)
        ):
            what = brief(held.record) if held else "unknown to the log"
            self.fail("L3", f"{browser.name} misses {id_} on {answer.replica} at {at}; it is {what}")
        self._rows[browser.name, id_] = (job, (attempt, True, 1 << 60))

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
            self.began_by[record.id] = (answer.replica, browser)
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

    def refused(self, path: str, answer: Answer) -> None:
        """A client was told no."""
        self.checks["L5"] += 1
        _, _, verb, name, *_ = path.split("/")
        self.answers[f"{verb} {answer.status}"] += 1
        known, asked = self._accepted_at.get(name), revision.parse(answer.asked)
        at = revision.parse(answer.revision)
        if answer.status == 404 and at is not None and self._cannot_know(answer, name, at):
            return
        if answer.status == 404 and known is not None and asked is not None and known <= asked:
            self.fail("L5", f"{verb} of {name} on {answer.replica}: {answer.body!r}, though it was accepted at {known}")
