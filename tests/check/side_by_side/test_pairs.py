"""Two ports on one model: where they part first is found, by which operator, and which of the two is right."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from check_kit import HALF, SPEC
from flexref_numpy import NumpyBackend

from flexref.check.portcheck import PortCheck
from flexref.check.side_by_side.run import PairReport, compare_ports
from flexref.errors import WrongCall
from flexref.policy import Policy

MakeModel = Callable[..., Path]


class ShiftsOneElement(NumpyBackend):
    """In the second layer of three alone, and where there is more than one token."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = 0

    def layer_norm(self, x: Any, w: Any, b: Any, epsilon: float, out: Any = None) -> Any:
        result = super().layer_norm(x, w, b, epsilon, out)
        self.norms += 1
        if self.norms % 7 == 4:  # three layers of two norms, and the head's
            result[-1, 5] += np.float32(0.01)
        return result


class OtherOrder(NumpyBackend):
    """Right, with other roundings: it sums in float64."""

    def linear(self, x: Any, w: Any, b: Any, *, out: Any = None, add: bool = False) -> Any:
        full = super().expand(w, np.empty(w.shape, np.float32)).astype(np.float64)
        product = x @ full.T + (0 if b is None else b)
        out = self.empty(product.shape, "float32") if out is None else out
        out[...] = product + (out if add else 0)
        return out


class RaisesInAttention(NumpyBackend):
    def attend(self, rows: Any, segments: Any, q: Any, scale: float, out: Any) -> Any:
        raise ValueError("out of registers")


class WrongShape(NumpyBackend):
    def activate(self, x: Any, activation: str) -> Any:
        return super().activate(x, activation)[:1]


def compared(
    file: Path, first: type[NumpyBackend], second: type[NumpyBackend], policy: Policy | None = None
) -> PairReport:
    options = {} if policy is None else {"policy": policy}
    return compare_ports(PortCheck(str(file), first, (), 2, options), second, ("one", "other"))


@pytest.mark.parametrize("scheme", ["none", "int4"])
def test_a_port_is_not_apart_from_itself(model: MakeModel, scheme: str) -> None:
    policy = Policy.from_percent((50, 50, 0, 50, 50, 0), rows_per_group=2, cache_scheme=scheme)
    report = compared(model(SPEC, "int4"), NumpyBackend, NumpyBackend, policy)
    assert report.fault is None
    assert report.findings.calls > 50
    assert {finding.ratio for finding in report.findings.worst.values()} == {0}
    assert report.partings == []
    assert set(report.logits_apart) == {0}
    assert list(report.findings.by_stage())[:4] == ["embed", "layer 0", "layer 1", "layer 2"]


def test_two_right_ports_are_apart_by_rounding_alone(model: MakeModel) -> None:
    report = compared(model(SPEC, "int4"), NumpyBackend, OtherOrder)
    assert report.fault is None
    ratios = {finding.operator: finding.ratio for finding in report.findings.worst.values()}
    assert 0 < ratios["linear ffn_up"] < 1
    assert max(report.logits_apart) < 1e-4


@pytest.mark.parametrize("is_first", [True, False])
def test_the_first_divergence_names_operator_layer_element_and_who_is_right(model: MakeModel, is_first: bool) -> None:
    ports = (ShiftsOneElement, NumpyBackend) if is_first else (NumpyBackend, ShiftsOneElement)
    report = compared(model(SPEC), *ports)
    found = report.findings.first
    assert found is not None
    assert (found.stage, found.turn) == ("layer 1", 0)
    assert found.operator == "layer_norm ffn_norm"
    assert found.place.endswith(", 5)")
    assert found.apart == pytest.approx(0.01, rel=1e-3)
    wrong, right = found.shares if is_first else reversed(found.shares)
    assert right <= 1 < wrong
    assert len(found.rows) == 1
    assert report.fault is not None
    assert "times what rounding permits, on token " in report.fault
    apart = {finding.stage for finding in report.findings.worst.values() if finding.ratio > 1}
    assert apart == {"layer 1"}  # each is given the first one's operands: nothing is carried on


def test_tokens_that_part_are_told_with_both_logits(model: MakeModel) -> None:
    class Negates(NumpyBackend):
        def sample(self, logits: Any, temperature: float, top_k: int, top_p: float, uniforms: Any) -> Any:
            return super().sample(-logits, temperature, top_k, top_p, uniforms)

    report = compared(model(SPEC), NumpyBackend, Negates)
    assert report.findings.first is not None
    assert report.findings.first.operator == "sample"
    assert {parting.turn for parting in report.partings} == {0}
    (best, worst), again = report.partings[0].logits
    assert best > worst
    assert again == (best, worst)


@pytest.mark.parametrize(
    ("second", "said"), [(RaisesInAttention, "ValueError: out of registers"), (WrongShape, "gives the shape (1, 64)")]
)
def test_a_second_port_that_cannot_answer_is_the_divergence(
    model: MakeModel, second: type[NumpyBackend], said: str
) -> None:
    report = compared(model(SPEC), NumpyBackend, second)
    assert report.findings.first is not None
    assert said in str(report.fault)
    assert report.findings.first.stage == "layer 0"


def test_the_wider_port_comes_second(model: MakeModel) -> None:
    with pytest.raises(WrongCall, match="name the narrower first: other one"):
        compared(model(SPEC), NumpyBackend, HALF)
