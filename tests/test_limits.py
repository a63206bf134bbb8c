from __future__ import annotations

from math import inf

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from stagecast import broadcast, limits, operations, subjects
from stagecast.fold import Fold
from stagecast.messages import Entry, Limits, NodeLimits, NodeRecord, Record
from tests.peers import a_record

NAMES = "abcde"
caps = st.dictionaries(st.sampled_from(NAMES), st.sampled_from([1.0, 10.0, 300.0, inf]), min_size=1)


@given(st.floats(1, 1e12), caps)
def test_the_shares_are_never_more_than_there_is_nor_than_one_may_use(total: float, caps: dict[str, float]) -> None:
    granted = limits.shares(total, caps)
    assert granted.keys() == caps.keys()
    assert sum(granted.values()) <= total * (1 + 1e-9)
    assert all(0 < granted[name] <= caps[name] for name in caps)


@given(st.floats(1, 1e12), caps)
def test_nothing_is_left_over_that_somebody_could_use_and_nobody_has_more_than_another_wants(
    total: float, caps: dict[str, float]
) -> None:
    granted = limits.shares(total, caps)
    free = [name for name in caps if granted[name] < caps[name] * (1 - 1e-9)]
    if free:
        assert sum(granted.values()) >= total * (1 - 1e-9)
        assert all(granted[name] >= max(granted.values()) * (1 - 1e-9) for name in free)


class Log:
    """A fold, and the messages that it is told."""

    def __init__(self) -> None:
        self.fold = Fold()

    def say(self, subject: str, message: msgspec.Struct) -> None:
        payload = broadcast.encode(message) if isinstance(message, Record) else msgspec.json.encode(message)
        self.fold.apply(Entry(subject, self.fold.revision.sequence + 1, payload, 1.7e9))

    def record(self, record: Record) -> None:
        self.say(subjects.operation(record), record)

    def node(self, name: str, rate_limit: int = 0) -> None:
        node = NodeRecord(name=name, kind="worker", process=f"{name}/1", rate_limit=rate_limit)
        self.say(subjects.node(name), node)

    def limit(self, rate: int, generation: int = 1, **nodes: NodeLimits) -> None:
        self.say(subjects.LIMITS, Limits(rate=rate, nodes=nodes, generation=generation))


def moving(node: str, model: str = "m", **changes: object) -> Record:
    return a_record(node=node, model=model, owner=f"{node}/1", phase="transferring", **changes)


steps = st.tuples(
    st.sampled_from(NAMES),
    st.sampled_from(["m", "o"]),
    st.sampled_from(["running", "stalled", "paused", "queued", "succeeded", "failed"]),
    st.sampled_from(["planning", "transferring", "verifying", "publishing"]),
)


@given(st.lists(steps, max_size=40), st.integers(1, 10**9), st.data())
def test_whoever_comes_and_goes_at_no_revision_is_more_allowed_than_the_limit(
    script: list[tuple[str, str, str, str]], rate: int, data: st.DataObject
) -> None:
    log = Log()
    for name in NAMES:
        log.node(name, data.draw(st.sampled_from([0, 10, 10**6])))
    log.limit(rate)
    for seq, (node, model, state, phase) in enumerate(script):
        log.record(a_record(node=node, model=model, owner=f"{node}/1", seq=seq, state=state, phase=phase))
        allowed = {name: limits.allowed(log.fold, f"{name}/1", 0) for name in NAMES}
        assert sum(allowed.values()) <= rate * (1 + 1e-9)
        busy = {record.node for record in log.fold.live() if operations.is_moving(record)}
        assert {name for name in NAMES if allowed[name] > 0} == busy
        assert log.fold.moving() == {f"{name}/1" for name in busy}


def test_without_a_cluster_s_limit_each_goes_by_its_own_and_the_lower_one_counts() -> None:
    log = Log()
    assert limits.allowed(log.fold, "a/1", 0) == inf
    assert limits.allowed(log.fold, "a/1", 7) == 7
    log.limit(0, a=NodeLimits(rate=5))
    assert [limits.allowed(log.fold, "a/1", own) for own in (0, 3, 7)] == [5, 3, 5]
    assert limits.allowed(log.fold, "b/1", 7) == 7


def test_what_one_may_not_use_goes_to_the_others() -> None:
    log = Log()
    log.node("a", rate_limit=10)
    log.node("b")
    log.node("c")
    log.limit(100, b=NodeLimits(rate=20))
    for name in "abc":
        log.record(moving(name))
    assert limits.cluster_shares(log.fold) == {"a/1": 10, "b/1": 20, "c/1": 70}
    log.record(operations.ended(moving("c"), "succeeded", 2.0))
    assert limits.cluster_shares(log.fold) == {"a/1": 10, "b/1": 20}


def test_who_does_not_answer_may_move_bytes_still_and_keeps_its_share() -> None:
    log = Log()
    log.limit(100)
    for name in "ab":
        log.record(moving(name))
    log.record(operations.stalled(moving("a"), "gone", 2.0))
    assert limits.allowed(log.fold, "b/1", 0) == 50
    log.record(operations.ended(moving("a", seq=2), "failed", 3.0, error="stayed away"))
    assert limits.allowed(log.fold, "b/1", 0) == 100


def test_an_installation_moves_bytes_too_and_a_load_does_not() -> None:
    log = Log()
    log.limit(100)
    log.record(a_record(kind="installation", node="", owner="r/1", phase="transferring"))
    log.record(a_record(kind="loading", owner="n/1", phase="transferring"))
    assert limits.cluster_shares(log.fold) == {"r/1": 100}


def test_a_change_says_what_it_names_and_leaves_the_rest() -> None:
    held = limits.changed(Limits(), 1.0, 100, {"a": NodeLimits(rate=5)})
    assert held == Limits(rate=100, nodes={"a": NodeLimits(rate=5)}, generation=1, changed_at=1.0)
    assert limits.changed(held, 2.0, None, {}) is held
    assert limits.changed(held, 2.0, 100, {"a": NodeLimits(rate=5)}) is held, "said twice is said once"
    more = limits.changed(held, 3.0, None, {"b": NodeLimits(stagings_at_once=2), "a": NodeLimits()})
    assert more == Limits(rate=100, nodes={"b": NodeLimits(stagings_at_once=2)}, generation=2, changed_at=3.0)
    assert limits.changed(more, 4.0, 0, {"b": None}).nodes == {}
