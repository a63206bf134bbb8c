from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagecast import subjects
from stagecast.messages import Kind
from tests.peers import a_record

NAMES = st.text(min_size=1, max_size=40)


def is_taken_by(pattern: str, subject: str) -> bool:
    """Match as a NATS server does: ``*`` is exactly one token without a dot or white space."""
    expression = re.escape(pattern).replace(r"\*", r"[^.\s*>]+")
    return re.fullmatch(expression, subject) is not None


def test_a_token_replaces_what_a_subject_cannot_hold_and_nothing_else() -> None:
    assert subjects.token("a.b*c>d e\tf\ng") == "a-b-c-d-e-f-g"
    assert subjects.token("org/Model_1:Q4") == "org/Model_1:Q4"


@given(NAMES, NAMES)
def test_distinct_tokens_are_equal_only_for_equal_names(one: str, other: str) -> None:
    assert (subjects.distinct(one) == subjects.distinct(other)) == (one == other)


def test_names_with_one_token_and_nodes_of_one_model_get_subjects_of_their_own() -> None:
    records = [a_record(model="a.b"), a_record(model="a-b"), a_record(model="a b"), a_record(model="a.b", node="o")]
    assert len({subjects.operation(record) for record in records}) == 4


@given(st.sampled_from(["staging", "installation", "loading", "deletion"]), NAMES, NAMES)
def test_every_operation_of_any_name_stands_on_one_subject_of_the_log(kind: Kind, model: str, node: str) -> None:
    subject = subjects.operation(a_record(kind=kind, model=model, node=node))
    matching = [pattern for pattern in subjects.LOG_SUBJECTS if is_taken_by(pattern, subject)]
    assert matching == [f"{subjects.KIND_PREFIX[kind]}.*.progress"]


@given(NAMES, NAMES)
def test_what_else_the_log_keeps_is_captured_too(name: str, other: str) -> None:
    made = [
        subjects.node(name),
        subjects.holding(name, other),
        subjects.placement(name),
        subjects.instance(name, other),
    ]
    assert all(any(is_taken_by(pattern, subject) for pattern in subjects.LOG_SUBJECTS) for subject in made)
    assert len(set(made)) == 4


@given(NAMES)
def test_commands_and_beats_are_not_kept(name: str) -> None:
    beside = [subjects.command(name), subjects.BEAT, "gallery.x.cancel", subjects.history("job", 1)]
    assert not any(is_taken_by(pattern, subject) for pattern in subjects.LOG_SUBJECTS for subject in beside)


@pytest.mark.parametrize(("one", "other"), [(("a", "b"), ("ab", "")), (("a", "b c"), ("a b", "c"))])
def test_a_pair_of_names_is_not_mixed_up_with_another(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert subjects.holding(*one) != subjects.holding(*other)


def test_each_attempt_of_a_job_has_its_place_in_the_history() -> None:
    places = {subjects.history("one", 1), subjects.history("one", 2), subjects.history("two", 1)}
    assert len(places) == 3
    assert all(is_taken_by(subjects.HISTORY_SUBJECTS[0], place) for place in places)
