from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagecast import broadcast, operations, rows, subjects
from stagecast.errors import AppendConflict
from stagecast.fold import FOREIGN_LIFETIME, Fold
from stagecast.messages import (
    Entry,
    GalleryEvent,
    GalleryStatus,
    Holding,
    Instance,
    NodeRecord,
    Placement,
    Record,
)
from stagecast.mirror import speaks_of
from stagecast.presence import goodbye
from stagecast.revision import Revision
from tests.peers import SimulatedLog, a_record
from tests.test_operations import records


def entry(record: Record, sequence: int) -> Entry:
    return Entry(subjects.operation(record), sequence, broadcast.encode(record), 1.7e9)


def foreign(model: str = "m", *, done: bool = False, sequence: int = 1, time: float = 100.0, **status: object) -> Entry:
    body = {"model_id": model, "status": {"model_id": model, **status}, "done": done}
    return Entry(f"staging.{subjects.token(model)}.progress", sequence, msgspec.json.encode(body), time)


def folded(*entries: Entry) -> Fold:
    fold = Fold(Revision("s", 0))
    for each in entries:
        fold.apply(each)
    return fold


def picture(fold: Fold) -> bytes:
    return msgspec.json.encode((str(fold.revision), rows.listed(fold)))


def ids(fold: Fold) -> list[str]:
    return [row.id for row in rows.listed(fold)]


@given(st.lists(records(), min_size=1, max_size=8), st.data())
def test_any_interleaving_duplication_and_redelivery_lists_the_same(some: list[Record], data: st.DataObject) -> None:
    some = [msgspec.structs.replace(r, node=n, id=f"staging:m@{n}") for r, n in zip(some, "nopnopno", strict=False)]
    again = data.draw(st.lists(st.sampled_from(some), max_size=4))
    shuffled = data.draw(st.permutations([*some, *again]))
    one = folded(*(entry(record, at) for at, record in enumerate(some, 1)))
    other = folded(*(entry(record, at) for at, record in enumerate(shuffled, 1)))
    assert rows.listed(one) == rows.listed(other)


class Scene:
    """A log, a process that has seen all of it, and what a random script does to them."""

    def __init__(self) -> None:
        self.log = SimulatedLog()
        self.full = Fold(Revision("s", 0))
        self.shown: dict[str, rows.Row] = {}

    def say(self, subject: str, payload: bytes, expected: int | None = None) -> None:
        try:
            entry = self.log.append(subject, payload, expected)
        except AppendConflict:
            return
        change = self.full.apply(entry)
        if change.displaced is not None:
            self.say(subjects.operation(change.displaced), broadcast.encode(change.displaced), entry.sequence)

    def write(self, record: Record) -> None:
        """Append as a process does that saw everything: with a compare-and-set."""
        standing = self.log.last.get(subjects.operation(record))
        self.say(subjects.operation(record), broadcast.encode(record), standing.sequence if standing else 0)

    def act(self, action: str, node: str, size: int) -> None:
        if action in {"installation", "foreign installation"}:
            self._install(size, is_ours=action == "installation")
            return
        identifier = operations.operation_id("staging", "m", node)
        slot = self.full.slots.get(identifier)
        held = slot.record if slot else None
        own = f"staging.{subjects.distinct('m', identifier)}.progress"
        if action == "open" and (held is None or operations.is_ended(held)):
            call = ("", "c", "d")[size % 3]
            run = operations.opened(held, kind="staging", model="m", node=node, job="j", now=float(size), call=call)
            self.write(run)
        elif action == "foreign":
            self.say("staging.m.progress", foreign("m", bytes_sent=size, node_name="").payload)
        elif action == "foreign elsewhere":
            self.say("staging.x.progress", foreign("x", bytes_sent=size, done=size == 3).payload)
        elif action == "stray" and held is not None:
            self.say(own, foreign("m", bytes_sent=size, done=size % 2 == 1, node_name=node).payload)
        elif action == "malformed" and held is not None:
            self.say(own, b"{")
        elif action == "expire":
            for mirror in list(self.full.expired(1e12)):
                self.say(mirror.subject, goodbye(mirror), mirror.sequence)
        elif held is not None:
            self._act_on(action, held, size)

    def _install(self, size: int, *, is_ours: bool) -> None:
        if not is_ours:
            status = GalleryStatus(gallery_element_name="g", current_bytes=size, processed=size == 3)
            self.say("gallery.g.progress", msgspec.json.encode(GalleryEvent(job_id=f"job-{size % 2}", status=status)))
            return
        slot = self.full.slots.get("installation:g")
        held = slot.record if slot else None
        if held is None or operations.is_ended(held):
            job = f"ours-{size}"
            self.write(operations.opened(held, kind="installation", model="g", node="", job=job, now=float(size)))
        else:
            self.write(operations.ended(held, "succeeded", float(size)))

    def _act_on(self, action: str, held: Record, size: int) -> None:
        if action == "older":
            old = msgspec.structs.replace(held, seq=held.seq - 1, state="running", dismissed=False, bytes_done=size)
            self.say(subjects.operation(old), broadcast.encode(old))
        elif action in {"retry", "dismiss", "cancel"} and not held.dismissed:
            if (held.state == "failed") == (action != "cancel") and (
                action != "cancel" or not operations.is_ended(held)
            ):
                self.write(operations.commanded(held, action, float(size)))  # type: ignore[arg-type]
        elif operations.is_ended(held):
            return
        elif action == "claim":
            self.write(operations.claimed(held, f"p{size}", float(size)))
        elif action == "tick":
            self.write(operations.succeeding(held, float(size), bytes_done=held.bytes_done + size))
        elif action == "stall":
            self.write(operations.stalled(held, "silence", float(size)))
        elif action == "end":
            self.write(operations.ended(held, ("succeeded", "failed", "cancelled")[size % 3], float(size), "why"))

    def late(self) -> Fold:
        return folded(*self.log.standing())


ACTIONS = (
    "open", "claim", "tick", "stall", "end", "retry", "dismiss", "cancel", "older", "foreign", "foreign elsewhere",
    "stray", "malformed", "expire", "installation", "foreign installation",
)  # fmt: skip
SCRIPTS = st.lists(st.tuples(st.sampled_from(ACTIONS), st.sampled_from("no"), st.integers(0, 3)), max_size=25)


@settings(max_examples=300)
@given(SCRIPTS)
def test_who_comes_late_shows_the_same_bytes_as_who_saw_everything(script: list[tuple[str, str, int]]) -> None:
    scene = Scene()
    for action, node, size in script:
        scene.act(action, node, size)
        assert picture(scene.late()) == picture(scene.full)


@settings(max_examples=200)
@given(SCRIPTS, st.integers(0, 25))
def test_whoever_was_away_needs_only_what_changed(script: list[tuple[str, str, int]], cut: int) -> None:
    scene = Scene()
    for action, node, size in script[:cut]:
        scene.act(action, node, size)
    shown = {row.id: row for row in rows.listed(scene.full)}
    after = scene.full.revision.sequence
    for action, node, size in script[cut:]:
        scene.act(action, node, size)
    for _, row in rows.changed(scene.full, after):
        shown[row.id] = row
        if row.state in {"succeeded", "cancelled"} or row.dismissed is True:
            del shown[row.id]
    assert sorted(shown.values(), key=lambda row: (row.started_at, row.id)) == rows.listed(scene.full)


@settings(max_examples=300)
@given(SCRIPTS)
def test_what_is_found_by_name_is_what_a_look_at_everything_finds(script: list[tuple[str, str, int]]) -> None:
    scene = Scene()
    fold = scene.full
    for action, node, size in script:
        scene.act(action, node, size)
        slots, mirrors = list(fold.slots.values()), list(fold.mirrors.values())
        assert list(fold.live()) == [slot.record for slot in fold.live_slots()]
        unfinished = {slot.record.id for slot in slots if not operations.is_ended(slot.record)}
        assert {record.id for record in fold.live()} == unfinished
        for record in (slot.record for slot in slots):
            assert fold.record(record.id) is record
            assert fold.record(record.job) in [slot.record for slot in slots if slot.record.job == record.job]
        for mirror in mirrors:
            named = [each for each in mirrors if mirror.job in {each.id, each.job}]
            assert fold.mirror(mirror.job) == min(named, key=lambda each: (each.done, -each.sequence))
            assert fold.is_shadowed(mirror) == any(speaks_of(mirror, record) for record in fold.live())
        for after in range(fold.revision.sequence + 1):
            newest = sorted((slot for slot in slots if slot.sequence > after), key=lambda slot: -slot.sequence)
            assert list(fold.slots_after(after)) == newest
            assert {each.id for each in fold.mirrors_after(after)} == {m.id for m in mirrors if m.sequence > after}


@settings(max_examples=200)
@given(SCRIPTS)
def test_nothing_moves_an_end_within_its_attempt(script: list[tuple[str, str, int]]) -> None:
    scene = Scene()
    ends: dict[tuple[str, int], str] = {}
    for action, node, size in script:
        scene.act(action, node, size)
        for slot in scene.full.slots.values():
            key = (slot.record.id, slot.record.attempt)
            if operations.is_ended(slot.record):
                assert ends.setdefault(key, slot.record.state) == slot.record.state
            else:
                assert key not in ends


def test_a_slot_stands_where_the_log_has_its_record() -> None:
    scene = Scene()
    scene.act("open", "n", 1)
    scene.act("stray", "n", 1)
    (slot,) = scene.full.slots.values()
    assert slot.sequence == scene.log.last[subjects.operation(slot.record)].sequence == 3


def test_a_foreign_event_becomes_a_row() -> None:
    fold = folded(foreign("m", bytes_sent=5, total_bytes=10, progress=50.0, file_name="f", started_at="2026-01-01"))
    (row,) = rows.listed(fold)
    assert (row.id, row.state, row.current_bytes, row.progress, row.owner) == ("staging:m", "running", 5, 50, "")
    assert (row.file_name, row.started_at) == ("f", "2026-01-01")


def test_a_foreign_event_without_a_status_is_a_row_too() -> None:
    fold = folded(Entry("staging.m.progress", 1, b'{"model_id":"m","done":false}', 5.0))
    assert ids(fold) == ["staging:m"]
    assert ids(folded(Entry("staging.m.progress", 1, b'{"model_id":"m","status":null}', 5.0))) == ["staging:m"]


def test_a_row_is_named_by_the_payload_never_by_the_subject() -> None:
    event = foreign("org/Model v1.5")
    assert event.subject == "staging.org/Model-v1-5.progress"
    assert ids(folded(event)) == ["staging:org/Model v1.5"]


def test_done_removes_a_mirror_and_a_later_event_shows_it_again() -> None:
    fold = folded(foreign(sequence=1), foreign(sequence=2, done=True))
    assert ids(fold) == []
    assert [(at, row.id, row.state) for at, row in rows.changed(fold, 1)] == [(2, "staging:m", "succeeded")]
    fold.apply(foreign(sequence=3))
    assert ids(fold) == ["staging:m"]


def test_a_gallery_event_becomes_a_row_and_processed_removes_it() -> None:
    body = {"job_id": "j", "status": {"gallery_element_name": "m", "progress": 12.5, "cancellable": True, "phase": "x"}}
    fold = folded(Entry("gallery.m.progress", 1, msgspec.json.encode(body), 5.0))
    (row,) = rows.listed(fold)
    assert (row.id, row.task_type, row.progress, row.is_deletion) == ("installation:m", "installation", 12, False)
    body["status"] |= {"processed": True}  # type: ignore[operator]
    fold.apply(Entry("gallery.m.progress", 2, msgspec.json.encode(body), 5.0))
    assert ids(fold) == []


@pytest.mark.parametrize("end", [{"processed": True, "error": "no"}, {"cancelled": True}, {"processed": True}])
def test_a_gallery_event_tells_how_it_ended(end: dict[str, object]) -> None:
    fold = folded(Entry("gallery.m.progress", 1, msgspec.json.encode({"job_id": "m", "status": end}), 5.0))
    ((_, row),) = rows.changed(fold, 0)
    expected = "failed" if "error" in end else "cancelled" if "cancelled" in end else "succeeded"
    assert row.state == expected
    assert row.error == end.get("error", msgspec.UNSET), "the cause, wherever it failed (WIRE section 3)"
    assert ids(fold) == []


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("node", ["", "n"])
def test_a_stray_event_neither_changes_nor_removes_what_one_of_us_owns(done: bool, node: str) -> None:
    ours = a_record(bytes_done=50, bytes_total=100)
    fold = folded(entry(ours, 1), foreign(sequence=2, done=done, bytes_sent=1, node_name=node))
    assert rows.listed(fold) == [rows.row(ours)]
    end = operations.ended(ours, "succeeded", 9.0)
    fold.apply(entry(end, 3))
    assert ids(fold) == []  # the echo does not come to light when ours goes


def test_a_foreign_staging_to_a_node_that_is_not_ours_is_a_row_beside_ours() -> None:
    fold = folded(entry(a_record(), 1), foreign(sequence=2, node_name="elsewhere"))
    assert sorted(ids(fold)) == ["staging:m", "staging:m@n"]


def test_an_event_after_the_end_of_ours_is_another_staging() -> None:
    fold = folded(entry(a_record(state="succeeded"), 1), foreign(sequence=2))
    assert ids(fold) == ["staging:m"]


def test_what_is_written_over_our_word_is_told_so_that_it_can_be_mended() -> None:
    ours = a_record(seq=5)
    subject = subjects.operation(ours)
    older = broadcast.encode(msgspec.structs.replace(ours, seq=4))
    for payload in (foreign(done=True).payload, b"{", older, b'{"model_id":""}'):
        fold = folded(entry(ours, 1))
        assert fold.apply(Entry(subject, 2, payload, 5.0)).displaced == ours
        assert fold.record("staging:m@n") == ours
    assert folded(entry(ours, 1)).apply(entry(ours, 2)).displaced is None


@pytest.mark.parametrize(
    "payload",
    [b"", b"nonsense", b"[]", b'{"done":true}', b'{"model_id":7}', b'{"model_id":""}', b'{"model_id":"m","status":1}'],
)
def test_malformed_events_change_nothing_but_the_revision(payload: bytes) -> None:
    fold = folded(foreign("other", sequence=1))
    assert fold.apply(Entry("staging.m.progress", 2, payload, 5.0)).what == "malformed"
    assert ids(fold) == ["staging:other"]
    assert fold.revision == Revision("s", 2)


def test_a_mirror_expires_a_minute_after_its_last_event() -> None:
    fold = folded(foreign(time=100.0), foreign(time=130.0, sequence=2))
    assert list(fold.expired(130.0 + FOREIGN_LIFETIME - 0.01)) == []
    (mirror,) = fold.expired(130.0 + FOREIGN_LIFETIME)
    assert (mirror.id, mirror.sequence) == ("staging:m", 2)
    fold.apply(Entry(mirror.subject, 3, goodbye(mirror), 190.0))
    assert list(fold.expired(1e9)) == []


def test_an_operation_is_found_by_its_id_and_by_its_job() -> None:
    fold = folded(entry(a_record(state="succeeded"), 1))
    assert fold.record("staging:m@n") == fold.record("j") == a_record(state="succeeded")
    assert fold.record("nothing") is None


def test_what_nodes_say_counts_by_the_last_word_and_holders_are_whole_and_here() -> None:
    def say(subject: str, what: object, sequence: int) -> Entry:
        return Entry(subject, sequence, msgspec.json.encode(what), 5.0)

    fold = folded(
        say(subjects.node("a"), NodeRecord(name="a", kind="worker", process="p"), 1),
        say(subjects.node("b"), NodeRecord(name="b", kind="worker", process="q", left=True), 2),
        say(subjects.holding("a", "m"), Holding(node="a", model="m", state="reading"), 3),
        say(subjects.holding("b", "m"), Holding(node="b", model="m"), 4),
        say(subjects.holding("c", "m"), Holding(node="c", model="m"), 5),
        say(subjects.placement("m"), Placement(model="m", nodes=("a",)), 6),
        say(subjects.instance("a", "m"), Instance(node="a", model="m", process="p", instance="i"), 7),
    )
    assert list(fold.holders("m")) == []
    assert fold.apply(say(subjects.holding("a", "m"), Holding(node="a", model="m"), 8)).what == "holding"
    assert [holding.node for holding in fold.holders("m")] == ["a"]
    assert fold.placements["m"].nodes == ("a",)
    assert fold.instances["a", "m"].instance == "i"
    assert fold.apply(Entry("stagecast.node.x", 9, b"{}", 5.0)).what == "malformed"
    assert fold.apply(Entry("stagecast.unknown.x", 10, b"{}", 5.0)).what == "nothing"
