"""A port whose operators are checked one by one: right ports are within bounds, and the worst element is the worst."""

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from check_kit import HALF, SPEC, checked
from flexref_dry import DryBackend
from flexref_numpy import NumpyBackend
from hypothesis import given, settings
from hypothesis import strategies as st

from flexref.check.checked import CheckedBackend
from flexref.check.findings import Call, Finding, Findings, OperatorFindings
from flexref.check.models import write_model
from flexref.check.portcheck import PortCheck, check_port
from flexref.errors import FlexrefError
from flexref.policy import Policy
from flexref.testing import clause_name, clauses_for, violation
from flexref.testing import strategies as own
from flexref.testing.contract import Clause


@pytest.fixture(scope="module")
def checked_numpy() -> Any:
    findings = Findings()
    backend = CheckedBackend(NumpyBackend(), findings)
    yield backend, findings
    backend.close()


@pytest.mark.parametrize("clause", clauses_for(NumpyBackend().caps), ids=clause_name)
def test_a_checked_port_keeps_the_contract_and_is_within_its_bounds(checked_numpy: Any, clause: Clause) -> None:
    backend, findings = checked_numpy
    error = violation(backend, clause, examples=8)
    if error is not None:
        raise error
    assert findings.worst is None or findings.worst.within, findings.worst


@pytest.mark.parametrize("port", [NumpyBackend, HALF], ids=lambda port: port.__name__)
@settings(max_examples=settings.default.max_examples // 2)  # each example is a whole job, in float64 too
@given(st.data())
def test_a_right_port_is_within_bounds_on_any_model_in_any_place(
    tmp_path_factory: pytest.TempPathFactory, port: Any, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("models") / "model.h5"
    spec = data.draw(own.specs(layers=2))
    kinds = [("none", "float32"), ("none", "float16"), ("int4", "float16"), ("int8", "float16")]
    stored = data.draw(st.sampled_from(kinds))
    write_model(path, spec, scheme=stored[0], dtype=stored[1], seed=data.draw(st.integers(0, 9)))
    rows = data.draw(own.token_rows(spec.vocabulary, rows=4, longest=6))
    report = checked(path, port, data.draw(own.policies()), rows, 3)
    assert report.fault is None
    assert report.ended is None
    assert report.tokens is not None
    found = {entry.worst.operator for entry in report.findings.entries.values()}
    assert {"linear", "layer_norm", "append", "attend", "activate", "sample", "moved"} <= found
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["checked_calls"] == report.findings.calls


def test_every_operator_of_every_stage_is_named_by_what_it_does(model: Any) -> None:
    spec = replace(SPEC, embed_width=16, tied_head=False)
    report = checked(model(spec, "int4", "float16"), NumpyBackend, Policy(rows_per_group=1, groups_per_block=3))
    names = {(entry.worst.label, entry.worst.stage) for entry in report.findings.entries.values()}
    for layer in range(3):
        for operator in (
            *(f"linear {name}" for name in ("attention_qkv", "attention_out", "ffn_up", "ffn_down")),
            *(f"expand {name}" for name in ("attention_qkv", "attention_out", "ffn_up", "ffn_down")),
            *("layer_norm attention_norm", "layer_norm ffn_norm", "activate gelu", "append", "attend"),
            *("moved weights", "moved activations", "moved cache"),
        ):
            assert (operator, f"layer {layer}") in names
    assert {("linear project_in", "embed"), ("gather", "embed"), ("add_rows", "embed")} <= names
    assert {("layer_norm norm", "head 0"), ("linear project_out", "head 0"), ("linear table", "head 0")} <= names
    assert ("sample", "head 0") in names


def test_some_layers_can_be_left_out(model: Any) -> None:
    spec = replace(SPEC, layers=7)
    report = check_port(PortCheck(str(model(spec)), NumpyBackend, max_new_tokens=3, layers=3))
    stages = {entry.worst.stage for entry in report.findings.entries.values()}
    assert stages == {"embed", "layer 0", "layer 3", "layer 6", "head 0"}
    assert report.checked_layers == [0, 3, 6]
    assert report.findings.skipped_calls > 0
    assert report.fault is None


def test_an_error_of_the_user_is_no_finding(model: Any) -> None:
    with pytest.raises(FlexrefError, match="token 1 is 61"):
        checked(model(SPEC), NumpyBackend, rows=[[61]])
    with pytest.raises(FlexrefError, match="computes nothing"):
        checked(model(SPEC), DryBackend)


@given(st.data())
def test_the_worst_element_is_the_one_that_takes_most_of_its_bound(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 7)))
    value, noise, bound = (own.numbers(shape, "float64", "normal", data.draw(own.seeds)) for _ in range(3))
    found = (value + noise).astype(np.float32)
    base = Finding("linear", "", "layer 0", 0, 0, {}, 0.0)
    call = Call(OperatorFindings(base), base)
    cut = data.draw(st.integers(0, shape[0]))
    for rows in (slice(0, cut), slice(cut, None)):  # in blocks as at once
        call.compare(found[rows], (value[rows], np.abs(bound[rows])), first=(rows.start, 0))
    ratio = np.abs(found - value) / np.abs(bound)
    worst = call.entry.worst
    assert worst.ratio == ratio.max()
    assert ratio[worst.element] == ratio.max()
    assert (worst.needed, worst.found) == (value[worst.element], found[worst.element])
    assert (call.entry.elements, call.entry.unjudged) == (found.size, 0)


def test_what_has_no_finite_bound_is_counted_and_not_judged() -> None:
    base = Finding("linear", "", "layer 0", 0, 0, {}, 0.0)
    call = Call(OperatorFindings(base), base)
    value = np.array([np.nan, 1.0, 7e4, 1.0])
    found = np.array([0, 5, np.inf, 1], np.float16)  # 7e4 is more than float16 holds
    call.compare(found, (value, np.array([1.0, np.inf, 1.0, 0.0])))
    assert (call.entry.unjudged, call.entry.elements, call.entry.worst.ratio) == (3, 4, 0)
    call.compare(np.array([np.nan], np.float32), (np.ones(1), np.ones(1)))
    assert not call.entry.worst.within


def test_a_checked_run_needs_no_hypothesis() -> None:
    code = """
import sys
sys.modules["hypothesis"] = None
import flexref.check.portcheck, flexref.cli.check, flexref.cli.show.check_report
try:
    from flexref.testing import CONTRACT, clauses_for
except ImportError as error:
    print(error.name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "hypothesis\n"
