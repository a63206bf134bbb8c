from __future__ import annotations

import pytest

from stagecast import operations
from stagecast.fold import Fold, Slot
from stagecast.leases import LIFETIME, MEMORY, NAP, PATIENCE, Leases, responsible, unattended, verdicts
from stagecast.messages import Hindrance, NodeRecord, Record
from tests.peers import a_record


def a_fold(*records: Record) -> Fold:
    nodes = {"n": NodeRecord(name="n", kind="worker", process="p")}
    return Fold(slots={record.id: Slot(record, at) for at, record in enumerate(records, 1)}, nodes=nodes)


def judged(fold: Fold, leases: Leases, now: float) -> list[tuple[int, Record]]:
    return [(slot.sequence, record) for slot, record in verdicts(fold, leases, now, 1.7e9)]


def test_a_lease_runs_out_after_its_lifetime_and_is_renewed_by_a_sign_of_life() -> None:
    leases = Leases()
    leases.renew("a", 0.0)
    assert leases.is_alive("a", LIFETIME - 0.01)
    assert not leases.is_alive("a", LIFETIME)
    leases.renew("a", LIFETIME)
    assert leases.is_alive("a", 2 * LIFETIME - 0.01)


def test_who_was_never_heard_of_begins_its_lease_when_first_asked_about() -> None:
    leases = Leases()
    assert leases.is_alive("a", 1000.0)
    assert not leases.is_alive("a", 1000.0 + LIFETIME)


def test_who_said_goodbye_is_dead_at_once_until_it_is_heard_again() -> None:
    leases = Leases()
    leases.renew("a", 0.0)
    leases.leave("a")
    assert not leases.is_alive("a", 0.1)
    leases.renew("a", 0.2)
    assert leases.is_alive("a", 0.3)


def test_a_judge_that_napped_does_not_condemn() -> None:
    leases = Leases()
    leases.look(0.0)
    leases.renew("a", 0.0)
    asleep_until = 10 * LIFETIME
    leases.look(asleep_until)
    assert leases.is_alive("a", asleep_until + LIFETIME - 0.01)
    assert judged(a_fold(a_record()), leases, asleep_until) == []


def test_a_judge_that_stays_awake_does() -> None:
    leases = Leases()
    leases.renew("a", 0.0)
    now = 0.0
    while now < LIFETIME:
        leases.look(now)
        now += NAP / 2
    leases.look(now)
    ((sequence, record),) = judged(a_fold(a_record()), leases, now)
    assert (sequence, record.state, record.owner, record.seq) == (1, "stalled", "a", 1)
    assert "node n does not answer" in record.note


def test_a_dead_owners_operation_is_said_to_stall_once() -> None:
    leases = Leases()
    leases.renew("a", 0.0)
    ((_, stalled),) = judged(a_fold(a_record()), leases, LIFETIME)
    assert judged(a_fold(stalled), leases, LIFETIME + 1) == []


def test_a_node_that_stays_away_ends_its_operations_with_that_cause() -> None:
    leases = Leases()
    leases.renew("a", 0.0)
    ((_, record),) = judged(a_fold(a_record(state="stalled")), leases, PATIENCE)
    assert (record.state, record.error) == ("failed", "node n stayed away for 120 s")


def test_an_installation_names_its_owner() -> None:
    leases = Leases(left={"a"})
    ((_, record),) = judged(a_fold(a_record(kind="installation", node="")), leases, 1.0)
    assert "its owner a does not answer" in record.note


@pytest.mark.parametrize("state", ["paused", "succeeded", "failed", "cancelled"])
def test_nobody_waits_for_what_is_paused_or_has_ended(state: str) -> None:
    assert judged(a_fold(a_record(state=state)), Leases(left={"a"}), 1e6) == []


def test_a_queued_operation_waits_for_its_nodes_process() -> None:
    queued = a_record(state="queued", owner="")
    fold = a_fold(queued)
    assert responsible(fold, queued) == "p"
    assert judged(fold, Leases(), 0.0) == []
    ((_, record),) = judged(fold, Leases(left={"p"}), 0.0)
    assert record.state == "stalled"


def test_what_anybody_may_claim_waits_for_nobody() -> None:
    queued = a_record(kind="installation", node="", state="queued", owner="")
    assert responsible(a_fold(queued), queued) == ""
    assert judged(a_fold(queued), Leases(), 1e9) == []


def test_the_living_are_not_judged() -> None:
    leases = Leases()
    leases.renew("a", 100.0)
    assert judged(a_fold(a_record()), leases, 101.0) == []


def test_which_kinds_are_performed_is_known_once_everybody_can_have_been_heard() -> None:
    leases = Leases()
    leases.look(0.0)
    leases.renew("a", 1.0, ("render",))
    leases.renew("b", 1.0, ("crunch", "render"))
    assert leases.performed(LIFETIME - 0.1) is None
    leases.renew("b", LIFETIME, ("crunch",))
    assert leases.performed(LIFETIME) == {"render", "crunch"}
    assert leases.performed(LIFETIME + 1.0) == {"crunch"}, "a is dead"
    leases.look(LIFETIME + NAP + 1.0)
    assert leases.performed(LIFETIME + NAP + 1.0) is None, "the judge has slept"


def test_queued_work_that_nobody_performs_says_so_until_somebody_does() -> None:
    queued = a_record(kind="render", node="", owner="", state="queued")
    others = [
        a_record(kind="render", model="running", node="", owner="p"),
        a_record(kind="staging", owner="", state="queued"),
        a_record(kind="installation", node="", owner="", state="queued"),
    ]
    fold = a_fold(queued, *others)
    [(slot, told)] = unattended(fold, frozenset({"crunch"}), 1.7e9)
    assert (slot.record, told.seq, told.state) == (queued, queued.seq + 1, "queued")
    assert told.note == "no living process performs render; it waits for one"
    fold = a_fold(told, *others)
    assert list(unattended(fold, frozenset(), 1.7e9)) == [], "once is enough"
    [(_, again)] = unattended(fold, frozenset({"render"}), 1.7e9)
    assert again.note == ""


@pytest.mark.parametrize("waits_on", ["source", "network", "target disk", "room", "backend"])
def test_an_owner_that_dies_while_it_waits_for_bytes_is_what_the_operation_waits_for(waits_on: Hindrance) -> None:
    held = operations.stalled(a_record(), "no byte", 5.0, waits_on)
    ((_, record),) = judged(a_fold(held), Leases(left={"a"}), 1.0)
    assert (record.state, record.waits_on) == ("stalled", "owner")
    assert judged(a_fold(record), Leases(left={"a"}), 1.0) == []
    leases = Leases()
    leases.renew("a", 1.0)
    assert judged(a_fold(held), leases, 1.0) == []


def test_a_verdict_says_what_follows() -> None:
    ((_, staging),) = judged(a_fold(a_record()), Leases(left={"a"}), 1.0)
    assert staging.note.endswith("it goes on when that is back, and fails once it was away for 120 s")
    ((_, installation),) = judged(a_fold(a_record(kind="installation", node="")), Leases(left={"a"}), 1.0)
    assert installation.note.endswith("another process takes it over")


def test_whom_nothing_names_is_forgotten_long_after_it_fell_silent() -> None:
    leases = Leases()
    for process in ("a", "p", "went", "died"):
        leases.renew(process, 0.0, ("render",))
    leases.leave("went")
    leases.leave("never heard")
    fold = a_fold(a_record())  # owned by a, for the node of p
    leases.forget(fold, 1.0)
    leases.renew("lives", MEMORY / 2)
    leases.forget(fold, MEMORY - 0.1)
    assert set(leases.heard) == {"a", "p", "went", "died", "lives", "never heard"}
    leases.forget(fold, MEMORY + 1.0)
    assert (set(leases.heard), set(leases.performs), leases.left) == ({"a", "p", "lives"}, {"a", "p", "lives"}, set())
    assert not leases.is_alive("a", MEMORY + 1.0), "the dead that somebody waits for stay dead"
    leases.forget(a_fold(), MEMORY + 1.0)
    assert set(leases.heard) == {"p", "lives"}


def test_where_nobody_could_be_heard_nobody_is_forgotten() -> None:
    leases = Leases()
    leases.renew("a", 0.0)
    leases.look(2 * MEMORY)
    leases.forget(a_fold(), 2 * MEMORY)
    assert set(leases.heard) == {"a"}


@pytest.mark.parametrize(
    ("changes", "performed", "what"),
    [
        ({}, {"render"}, "another process takes it over"),
        ({}, {"crunch"}, "it fails after 120 s, unless a process that performs render takes it over"),
        ({"cause": "program"}, {"render"}, "it goes on when that is back, and fails once it was away for 120 s"),
        ({"cause": "program", "begun_by": "retry"}, {"render"}, "another process takes it over"),
    ],
)
def test_a_verdict_on_a_programs_work_says_what_will_really_follow(
    changes: dict[str, str], performed: set[str], what: str
) -> None:
    fold, leases = a_fold(a_record(kind="render", node="", **changes)), Leases(left={"a"})
    ((_, record),) = verdicts(fold, leases, 1.0, 1.7e9, frozenset(performed))
    assert record.note == f"its owner a does not answer; {what}"
