"""Wrong ports at work on a model: each is named by its operator, layer and element, and no other operator is blamed."""

import json
import re
from typing import Any

import numpy as np
import pytest
from check_kit import CODES, GROUPS, HOME, MOVING, SPEC, checked, ports_of
from flexref_numpy import NumpyBackend

from flexref.backend.protocol import HostWork
from flexref.errors import FlexrefError
from flexref.policy import Policy, Shares

STREAMED = HOME.changed(weights=Shares(0, 1, 0))
"""Weights that stay on the device are expanded before a product sees them; these are not."""

ROW_PORTS, ATTENTION_PORTS, SAMPLING_PORTS = (
    ports_of(f"test_wrong_{what}") for what in ("operators", "attention", "sampling")
)


class WrongInOneLayer(NumpyBackend):
    """Loses a thousandth of one product: the third of the second layer, for groups of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def linear(self, x: Any, w: Any, b: Any, *, out: Any = None, add: bool = False) -> Any:
        result = super().linear(x, w, b, out=out, add=add)
        if w.shape == (64, 32):
            self.calls += 1
            if self.calls % 3 == 2:
                result[0, 7] *= np.float32(1.001)
        return result


def test_the_layer_the_element_and_the_error_are_those_that_are_wrong(model: Any) -> None:
    report = checked(model(SPEC), WrongInOneLayer, Policy(rows_per_group=4))
    worst = report.findings.worst
    assert worst is not None
    assert (worst.label, worst.stage, worst.element) == ("linear ffn_up", "layer 1", (0, 7))
    assert worst.error == pytest.approx(abs(worst.needed) / 1000, rel=0.01)
    assert worst.ratio == pytest.approx(worst.error / worst.bound)
    outside = [entry.worst.stage for entry in report.findings.entries.values() if not entry.worst.within]
    assert outside == ["layer 1"], "errors are not carried on"
    assert report.fault is not None
    assert report.fault.startswith("linear ffn_up of layer 1 (pass ")
    assert "\n" not in report.fault


WRONG: tuple[tuple[Any, str, str, Policy], ...] = (
    (ROW_PORTS.GatherReturnsTheTable, "gather", "none", HOME),
    (ROW_PORTS.GatherSkipsTheLastRow, "gather", "none", HOME),
    (ROW_PORTS.AddRowsOverwrites, "add_rows", "none", HOME),
    (ROW_PORTS.AddRowsByPlace, "add_rows", "none", HOME),
    (ROW_PORTS.LinearIsTransposed, "linear attention_qkv", "none", HOME),
    (ROW_PORTS.NibblesSwapped, "linear", "int4", STREAMED),
    (ROW_PORTS.NibblesSwapped, "expand", "int4", GROUPS),
    (ROW_PORTS.LinearInHalfPrecision, "linear", "none", HOME),
    (ROW_PORTS.LinearIgnoresAdd, "linear", "none", HOME),
    (ROW_PORTS.LinearAddsWithoutBias, "linear", "none", HOME),
    (ROW_PORTS.ForgetsTheBiasOfOneToken, "linear", "none", GROUPS),
    (ROW_PORTS.ExpandsToHalf, "expand", "int4", GROUPS),
    (ROW_PORTS.NormIsFlat, "layer_norm attention_norm", "none", HOME),
    (ROW_PORTS.VarianceOfASample, "layer_norm", "none", HOME),
    (ROW_PORTS.NormInPlaceAlways, "layer_norm", "none", HOME),
    (ROW_PORTS.ApproximatesGelu, "activate gelu", "none", HOME),
    (ROW_PORTS.ActivatesACopy, "activate gelu", "none", HOME),
    (ATTENTION_PORTS.AttendGivesHeads, "attend", "none", HOME),
    (ATTENTION_PORTS.SwapsKeysAndValues, "append", "none", HOME),
    (ATTENTION_PORTS.AppendsOneTooFar, "append", "none", Policy(rows_per_group=1)),
    (ATTENTION_PORTS.CodesAreCutOff, "append", "none", CODES),
    (ATTENTION_PORTS.ZeroBeforeScale, "append", "none", CODES),
    (ATTENTION_PORTS.SharesScalesBetweenTokens, "append", "none", CODES),
    (ATTENTION_PORTS.SeesOneTokenAhead, "attend", "none", HOME),
    (ATTENTION_PORTS.ForgetsThePast, "attend", "none", HOME),
    (ATTENTION_PORTS.DecodesWithoutItself, "attend", "none", HOME),
    (ATTENTION_PORTS.AddsToItsResult, "attend", "none", HOME),
    (ATTENTION_PORTS.ScratchTooSmall, "attend", "none", CODES),
    (ATTENTION_PORTS.AttendsOnDeviceOnly, "attend", "none", MOVING.changed(attention_on="host")),
    (ATTENTION_PORTS.AppendsOnDeviceOnly, "append", "none", MOVING.changed(attention_on="host")),
    (SAMPLING_PORTS.IdsAsThirtyTwoBits, "sample", "none", HOME),
)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # wrong ports compute on what is no number
@pytest.mark.parametrize(
    ("port", "operator", "scheme", "policy"), WRONG, ids=lambda part: getattr(part, "__name__", "")
)
def test_a_wrong_port_is_named_by_its_operator(
    model: Any, port: Any, operator: str, scheme: str, policy: Policy
) -> None:
    report = checked(model(SPEC, scheme), port, policy)
    assert report.fault is not None
    assert report.fault.startswith(operator)
    assert "\n" not in report.fault
    wrong = {entry.worst.operator for entry in report.findings.entries.values() if not entry.worst.within}
    assert wrong == {operator.split(maxsplit=1)[0]}, "no other operator is blamed"


class GivesNothing(NumpyBackend):
    """Operators that work in place, and forget to return."""

    def layer_norm(self, x: Any, w: Any, b: Any, epsilon: float, out: Any = None) -> Any:
        super().layer_norm(x, w, b, epsilon, out)


class SaysWhatNobodyCanWrite(NumpyBackend):
    """Raises with half of a surrogate pair, as of a device's name that is no UTF-8."""

    def layer_norm(self, x: Any, w: Any, b: Any, epsilon: float, out: Any = None) -> Any:
        raise ValueError("device \udcff")


@pytest.mark.parametrize(
    ("port", "said"),
    [
        (GivesNothing, "gives NoneType, needed an array of the shape"),
        (SaysWhatNobodyCanWrite, "raised ValueError: device \\udcff, needed a result"),
    ],
)
def test_a_port_that_gives_no_array_is_named_and_no_bug_of_ours(model: Any, port: Any, said: str) -> None:
    report = checked(model(SPEC), port, HOME)
    assert report.fault is not None
    assert report.fault.startswith("layer_norm")
    assert said in report.fault
    report.fault.encode("utf-8")


class ForgetsCopies(NumpyBackend):
    """One lane says that it has copied, and has not; memory starts as zeros."""

    lane = ""

    def submit(self, lane: str, steps: Any, after: Any) -> Any:
        nothing = [HostWork("nothing", lambda: None) for _ in steps]
        return super().submit(lane, nothing if lane == self.lane else steps, after)

    def allocate(self, tier: str, nbytes: int) -> Any:
        buffer = super().allocate(tier, nbytes)
        buffer[...] = 0
        return buffer


class BringsNoWeights(ForgetsCopies):
    lane = "weights_in"


class StoresNothing(ForgetsCopies):
    lane = "cache_out"


class BringsNothing(ForgetsCopies):
    lane = "cache_in"


@pytest.mark.parametrize(
    ("port", "policy", "kind"),
    [
        (BringsNoWeights, Policy.from_percent([0, 50, 100, 0, 100, 0]), "weights"),
        (BringsNoWeights, Policy.from_percent([0, 0, 100, 0, 100, 0]), "weights"),
        (StoresNothing, Policy.from_percent([100, 0, 0, 100, 100, 0]), "cache"),
        (BringsNothing, Policy.from_percent([100, 0, 0, 0, 100, 0]), "cache"),
        (BringsNothing, Policy.from_percent([100, 0, 100, 0, 0, 100]), "activations"),
        (StoresNothing, Policy.from_percent([100, 0, 100, 0, 0, 0]), "activations"),
    ],
)
def test_a_copy_that_is_missing_is_named_by_what_it_should_have_brought(
    model: Any, port: Any, policy: Policy, kind: str
) -> None:
    # Three groups in two slots: what stays where it was is not taken for what was brought.
    report = checked(model(SPEC), port, policy.changed(rows_per_group=1, groups_per_block=3))
    wrong = {entry.worst.label for entry in report.findings.entries.values() if not entry.worst.within}
    assert f"moved {kind}" in wrong
    assert all(label.startswith("moved") for label in wrong), "every operator is right on what it found"
    assert report.fault is not None
    assert report.fault.startswith("moved ")


class NeverTheSameBits(NumpyBackend):
    """Adds one rounding to the first logit of every second instance."""

    made = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).made += 1
        self.odd = self.made % 2

    def sample(self, logits: Any, *rest: Any) -> Any:
        return super().sample(logits, *rest)

    def linear(self, x: Any, w: Any, b: Any, *, out: Any = None, add: bool = False) -> Any:
        result = super().linear(x, w, b, out=out, add=add)
        if self.odd and w.shape[0] == SPEC.vocabulary:
            result[0, 0] = np.nextafter(result[0, 0], np.float32(np.inf))
        return result


def test_a_port_that_gives_other_bits_without_checks_is_at_fault(model: Any) -> None:
    report = checked(model(SPEC), NeverTheSameBits)
    assert all(entry.worst.within for entry in report.findings.entries.values())
    assert report.unsteady is not None
    assert report.fault is not None
    assert report.fault.startswith("the same run without checks gives other logits (row 0, pass 0: logits differ by")


class GivesNoNumbers(NumpyBackend):
    def layer_norm(self, x: Any, w: Any, b: Any, epsilon: float, out: Any = None) -> Any:
        result = super().layer_norm(x, w, b, epsilon, out)
        result[0, 0] = np.nan
        return result


class RefusesLogits(NumpyBackend):
    def sample(self, logits: Any, *rest: Any) -> Any:
        raise FlexrefError("no")


class Raises(NumpyBackend):
    def activate(self, x: Any, activation: str) -> Any:
        raise RuntimeError("kernel\nnot found")


class ChoosesTheSecond(NumpyBackend):
    def sample(self, logits: Any, *rest: Any) -> Any:
        return np.argsort(-logits, -1)[:, 1]


@pytest.mark.parametrize(
    ("port", "fault", "ended"),
    [
        (GivesNoNumbers, r"layer_norm .* more than any rounding|layer_norm .* inf times", "sampling: row 0"),
        (RefusesLogits, r"sample of head 0 .* refuses finite logits: no", "refuses finite logits"),
        (Raises, r"activate gelu of layer 0 .* raised RuntimeError: kernel not found", "kernel not found"),
        (ChoosesTheSecond, r"sample of head 0 .* gives token \d+ for row 0, needed \d+", None),
    ],
)
def test_a_port_that_fails_is_named_and_the_run_says_where_it_ended(
    model: Any, port: Any, fault: str, ended: str | None
) -> None:
    report = checked(model(SPEC), port)
    assert report.fault is not None
    assert re.match(fault, report.fault)
    assert (report.ended is None) == (ended is None)
    assert ended is None or ended in str(report.ended)
    assert json.dumps(report.to_json(), allow_nan=False)


class RaisesWithoutAMessage(NumpyBackend):
    def attend(self, rows: Any, segments: Any, q: Any, scale: float, out: Any) -> Any:
        raise NotImplementedError


class NormIsNoNumber(NumpyBackend):
    def layer_norm(self, x: Any, w: Any, b: Any, epsilon: float, out: Any = None) -> Any:
        result = super().layer_norm(x, w, b, epsilon, out)
        result[0, 3] = np.nan
        return result


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_what_is_no_number_and_what_is_raised_without_a_word_are_told_in_whole_sentences(model: Any) -> None:
    raised = checked(model(SPEC), RaisesWithoutAMessage).fault
    assert raised is not None
    assert raised.endswith(" raised NotImplementedError without a message, needed a result")
    number = checked(model(SPEC), NormIsNoNumber).fault
    assert number is not None
    assert re.search(
        r"\) gives no finite number, .* any rounding: \(0, 3\) is nan, needed [-\d.e]+ within [\d.e-]+$",
        number,
    )
