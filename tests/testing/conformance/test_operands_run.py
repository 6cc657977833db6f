"""Operands of a model are given to other ports: a wrong call, and one that ends the process, are found by number."""

from collections.abc import Callable
from pathlib import Path

import pytest
from flexref_numpy import NumpyBackend

from flexref.architecture.spec import ModelSpec
from flexref.check.models import write_model
from flexref.check.operands.file import OperandsError
from flexref.check.portcheck import PortCheck, check_port
from flexref.policy import Policy
from flexref.testing.conformance.operands_run import replay_operands

Install = Callable[..., None]

SPEC = ModelSpec("tiny", 61, 40, 32, 32, 2, 2, 64, activation="gelu")

LIMIT_S = 60.0

PORTS = """
import os
from dataclasses import replace
import numpy as np
from flexref_numpy import NumpyBackend


class Aborts(NumpyBackend):
    def layer_norm(self, x, w, b, epsilon, out=None):
        if len(x) > 1:
            os.abort()
        return super().layer_norm(x, w, b, epsilon, out)


class Half(NumpyBackend):
    def __init__(self):
        super().__init__()
        self.caps = replace(self.caps, compute_dtype="float16")


class Unfinished(NumpyBackend):
    def segments(self, past, new):
        raise NotImplementedError("segments")

    def close(self):
        raise NotImplementedError("close")


class ClosesBadly(NumpyBackend):
    def close(self):
        raise ValueError("not now")


class DeviceOnly(NumpyBackend):
    def __init__(self):
        super().__init__()
        self.caps = replace(self.caps, attends_on_host=False)


class WritesBeside(NumpyBackend):
    def activate(self, x, activation):
        result = super().activate(x, activation)
        np.lib.stride_tricks.as_strided(x, (x.size + 1,), (x.itemsize,))[-1] = 3
        return result
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("operands")
    write_model(folder / "tiny.h5", SPEC, scheme="int4")
    check_port(PortCheck(str(folder / "tiny.h5"), NumpyBackend, (), 2, record=str(folder / "ops.npz")))
    return str(folder / "ops.npz")


def test_the_port_they_come_from_gets_them_right(recorded: str) -> None:
    result = replay_operands("numpy", recorded, LIMIT_S)
    assert result.operands == []
    assert {method.status for method in result.methods} == {"passed"}
    shares = {method.method: method.worst_share for method in result.methods}
    assert 0 < shares["linear"] <= 1  # type: ignore[operator]
    assert len(shares) == 9


def test_a_wrong_operator_is_found_on_operands_of_a_model(planted: Install, recorded: str) -> None:
    planted(wrong="test_wrong_operators:NibblesSwapped")
    result = replay_operands("wrong", recorded, LIMIT_S)
    assert {failure.method for failure in result.operands} == {"expand"}
    assert {failure.status for failure in result.operands} == {"failed"}
    statuses = {method.method: method.status for method in result.methods}
    assert (statuses["expand"], statuses["attend"]) == ("failed", "passed")


def test_calls_after_one_that_ends_the_process_are_tried_too(planted: Install, recorded: str) -> None:
    planted(PORTS, wrong="planted_port:Aborts")
    result = replay_operands("wrong", recorded, LIMIT_S)
    assert result.operands
    assert {(failure.method, failure.status) for failure in result.operands} == {("layer_norm", "crashed")}
    whole = replay_operands("numpy", recorded, LIMIT_S)
    tried = sum(method.calls for method in result.methods) + len(result.operands)
    assert tried == sum(method.calls for method in whole.methods)


def test_a_stray_write_is_found(planted: Install, recorded: str) -> None:
    planted(PORTS, wrong="planted_port:WritesBeside")
    result = replay_operands("wrong", recorded, LIMIT_S)
    assert {failure.method for failure in result.operands} == {"activate"}
    assert "wrote outside its result" in result.operands[0].error


def test_operands_of_another_type_are_refused(planted: Install, recorded: str) -> None:
    planted(PORTS, wrong="planted_port:Half")
    with pytest.raises(OperandsError, match="computes in float32, wrong computes in float16"):
        replay_operands("wrong", recorded, LIMIT_S)


def test_calls_that_the_port_need_not_take_are_counted(planted: Install, tmp_path: Path) -> None:
    planted(PORTS, wrong="planted_port:DeviceOnly")
    write_model(tmp_path / "tiny.h5", SPEC)
    policy = Policy.from_percent((100, 0, 0, 100, 100, 0), rows_per_group=2, attention_on="host")
    path = str(tmp_path / "ops.npz")
    check_port(PortCheck(str(tmp_path / "tiny.h5"), NumpyBackend, (), 2, {"policy": policy}, record=path))
    result = replay_operands("wrong", path, LIMIT_S)
    assert result.operands_skipped > 0
    assert result.operands == []


def test_a_port_that_raises_while_operands_are_placed_is_wrong_in_these_calls(planted: Install, recorded: str) -> None:
    planted(PORTS, wrong="planted_port:Unfinished")
    result = replay_operands("wrong", recorded, LIMIT_S)
    assert {failure.error for failure in result.operands} == {"NotImplementedError: segments"}
    assert {failure.method for failure in result.operands} == {"append", "attend"}
    assert {method.status for method in result.methods if method.method == "linear"} == {"passed"}


def test_a_port_that_cannot_be_closed_is_told_of_beside_what_was_found(planted: Install, recorded: str) -> None:
    planted(PORTS, wrong="planted_port:ClosesBadly")
    (failure,) = replay_operands("wrong", recorded, LIMIT_S).operands
    assert (failure.method, failure.status) == ("close", "failed")
    assert failure.error == "after the last call it raised ValueError: not now"
