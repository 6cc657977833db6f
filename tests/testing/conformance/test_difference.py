"""Two results compared: what got worse, what got better, and that any result comes back from its JSON."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.json_types.objects import object_of
from flexref.testing.conformance.difference import ABSENT, difference
from flexref.testing.conformance.page import page
from flexref.testing.conformance.results import (
    FINDINGS,
    NOT_NEEDED,
    PASSED,
    UNWRITTEN,
    ClauseResult,
    ConformanceError,
    ConformanceResult,
    LeftToDo,
    MethodResult,
    OperatorRate,
    PortRates,
    read_result,
)
from flexref.testing.verdicts import CLAUSES

words = st.text(min_size=1, max_size=12)
statuses = st.sampled_from((PASSED, *FINDINGS, UNWRITTEN, NOT_NEEDED))
clauses = st.builds(
    ClauseResult,
    clause=st.sampled_from(list(CLAUSES)),
    part=words,
    law=words,
    status=statuses,
    cases=st.integers(0, 100),
    seconds=st.floats(0, 100),
    error=st.none() | words,
    method=st.none() | st.sampled_from(("linear", "attend")),
    known=st.none() | words,
    case_file=st.none() | words,
)
methods = st.builds(
    MethodResult,
    method=st.sampled_from(("linear", "attend")),
    status=st.just(PASSED),
    calls=st.integers(0, 9),
    worst_share=st.none() | st.floats(0, 10),
    dtypes=st.lists(words, max_size=2),
    edges=st.lists(words, max_size=2),
)
rates = st.builds(
    OperatorRate,
    method=words,
    shape=words,
    seconds=st.floats(0, 1),
    least_s=st.floats(0, 1),
    limit=st.sampled_from(("memory", "compute")),
    bytes=st.floats(0, 1e9),
    flops=st.floats(0, 1e9),
)
results = st.builds(
    ConformanceResult,
    rates=st.none()
    | st.builds(
        PortRates,
        memory_bytes_per_s=st.floats(1, 1e12),
        flops_per_s=st.floats(1, 1e12),
        operators=st.lists(rates, max_size=2),
    ),
    not_timed=st.none() | words,
    backend=words,
    flexref=words,
    devices=st.lists(words, max_size=2),
    versions=st.dictionaries(words, words, max_size=2),
    examples=st.integers(1, 9),
    seconds=st.floats(0, 9),
    clauses=st.lists(clauses, max_size=4, unique_by=lambda clause: clause.clause),
    methods=st.lists(methods, max_size=2, unique_by=lambda method: method.method),
    to_do=st.lists(st.builds(LeftToDo, method=words, law=words, waiting=st.lists(words, max_size=2)), max_size=2),
)


@given(results)
def test_a_result_comes_back_from_its_json_and_does_not_differ_from_itself(result: ConformanceResult) -> None:
    values = json.loads(result.to_json())
    again = object_of(ConformanceResult).read("result", values, ConformanceError)
    assert json.loads(again.to_json()) == values
    same = difference(result, again)
    assert (same.statuses, same.shares, same.versions) == ([], [], {})


@given(results, results)
def test_what_got_worse_one_way_did_not_the_other(before: ConformanceResult, now: ConformanceResult) -> None:
    there, back = difference(before, now), difference(now, before)
    assert [(change.before, change.now) for change in sorted(there.statuses, key=lambda one: one.clause)] == [
        (change.now, change.before) for change in sorted(back.statuses, key=lambda one: one.clause)
    ]
    assert not {change.clause for change in there.worse} & {change.clause for change in back.worse}
    failing = {clause.clause for clause in now.clauses if clause.status in (*FINDINGS, UNWRITTEN)}
    fine = {clause.clause for clause in before.clauses if clause.status in (*FINDINGS, UNWRITTEN)}
    assert {change.clause for change in there.worse} == failing - fine


@given(results)
def test_the_page_is_whole_and_lets_no_name_be_markup(result: ConformanceResult) -> None:
    text = page(replace(result, backend="<script>x</script>", versions={"<b>": '"'}))
    assert text.startswith("<!DOCTYPE html>")
    assert text.rstrip().endswith("</html>")
    assert "<script>" not in text
    assert "<b>" not in text


def test_a_clause_that_was_not_tried_before_and_fails_is_worse() -> None:
    empty = ConformanceResult(backend="a", flexref="1", versions={}, examples=1, seconds=0, clauses=(), methods=())
    failing = replace(empty, clauses=(ClauseResult(clause="x", part="p", law="l", status="failed", error="e"),))
    (change,) = difference(empty, failing).worse
    assert (change.before, change.now) == (ABSENT, "failed")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "JSON object"),
        ("{}", "format is None"),
        ('{"format": "flexref-conformance 1"}', "must have the fields"),
        ('{"format": "flexref-conformance 1", "nonsense": 1}', "must have the fields"),
    ],
)
def test_a_file_that_is_no_result_is_told(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ConformanceError, match=said):
        read_result(str(tmp_path / "a.json"))
