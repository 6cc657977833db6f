"""Operands of a model's run in a file: complete, repeatable, and what comes from outside reaches no port unchecked."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flexref_numpy import NumpyBackend
from hypothesis import given
from hypothesis import strategies as st

from flexref.architecture.spec import ModelSpec
from flexref.backend.protocol import Backend
from flexref.check.models import write_model
from flexref.check.operands.file import (
    FORMAT,
    OperandsError,
    OperandsFile,
    OperandsWriter,
    StoredCall,
    StoredMatrix,
    StoredOperand,
    StoredRows,
    StoredSegments,
)
from flexref.check.operands.recorder import OperandRecorder
from flexref.check.operands.shapes import SHAPES, check_fits
from flexref.check.portcheck import PortCheck, check_port
from flexref.policy import Policy

SPEC = ModelSpec("tiny", 61, 40, 32, 32, 2, 2, 64, activation="gelu")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The operands of a small model in 4 bits, with a 4-bit cache on the host, some of it attended to there."""
    folder = tmp_path_factory.mktemp("operands")
    write_model(folder / "tiny.h5", SPEC, scheme="int4")
    policy = Policy.from_percent((50, 50, 0, 100, 100, 0), rows_per_group=2, cache_scheme="int4", attention_on="host")
    job = PortCheck(str(folder / "tiny.h5"), NumpyBackend, (), 3, {"policy": policy}, record=str(folder / "ops.npz"))
    report = check_port(job)
    assert report.fault is None
    assert report.recorded_calls is not None
    return str(folder / "ops.npz")


def calls_of(path: str) -> list[StoredCall]:
    with OperandsFile(path) as file:
        return list(file.calls(tuple(SHAPES)))


def test_every_operator_of_a_model_is_kept_once_for_each_shape_and_fits(recorded: str) -> None:
    calls = calls_of(recorded)
    assert {call.operator for call in calls} == set(SHAPES)
    for call in calls:
        check_fits(call, "here")
    matrices = [call.arguments["w"] for call in calls if call.operator == "linear"]
    assert any(isinstance(matrix, StoredMatrix) and matrix.bits == 4 for matrix in matrices)
    tiers = {call.arguments["rows"].tier for call in calls if call.operator == "attend"}
    assert "host" in tiers
    with OperandsFile(recorded) as file:
        assert file.compute_dtype == "float32"
        assert len(file) == len(calls)


def test_the_calls_are_those_of_every_method_with_a_law() -> None:
    assert all(callable(getattr(Backend, name)) for name in SHAPES)
    with pytest.raises(AttributeError):
        OperandRecorder(NumpyBackend(), None).nonsense  # type: ignore[arg-type]  # noqa: B018


def changed(call: StoredCall, draw: Callable[[Any], Any]) -> StoredCall | None:
    """The call with one argument that no longer fits; None where there is nothing to change."""
    name = draw(st.sampled_from(sorted(call.arguments)))
    value = call.arguments[name]

    def other(part: Any) -> Any:
        wider = () if name in ("logits", "x") and call.operator in ("sample", "activate") else ("column",)
        way = draw(st.sampled_from((*wider, "axis", "dtype")))
        if way == "column":
            return np.concatenate([part, part[..., :1]], -1)
        return part[None] if way == "axis" else part.astype(np.float64 if part.dtype != np.float64 else np.uint8)

    new: Any
    if isinstance(value, StoredOperand):
        new = StoredOperand(other(value.content), value.tier)
    elif isinstance(value, StoredMatrix):
        which = draw(st.sampled_from(("codes", "scale", "zero")))
        new = replace(value, **{which: other(getattr(value, which))})
    elif isinstance(value, StoredRows):
        new = replace(value, records=[part[:-1] for part in value.records])
    elif isinstance(value, StoredSegments):
        new = draw(
            st.sampled_from(
                (
                    StoredSegments([past + 1000 for past in value.past], value.new),
                    StoredSegments(value.past, [*value.new, 1]),
                    StoredSegments(value.past, [0 for _ in value.new]),
                )
            )
        )
    elif name in ("first", "top_k", "epsilon", "scale", "temperature", "top_p", "activation"):
        new = draw(st.sampled_from((-1, "x", None, [])))
    else:
        return None
    return StoredCall(call.number, call.operator, {**call.arguments, name: new})


@given(st.data())
def test_a_call_whose_operands_do_not_fit_is_refused(recorded: str, data: st.DataObject) -> None:
    calls = calls_of(recorded)
    wrong = changed(calls[data.draw(st.integers(0, len(calls) - 1))], data.draw)
    if wrong is None:
        return
    if wrong.operator == "gather" and isinstance(wrong.arguments["table"], StoredOperand):
        table, out = (wrong.arguments[name].content for name in ("table", "out"))
        types = {str(part.dtype) for part in (table, out)}
        if table.ndim == out.ndim == 2 and table.shape[1] == out.shape[1] and types <= {"float32", "float16"}:
            return  # another number of rows is as good
    with pytest.raises(OperandsError):
        check_fits(wrong, "here")


@pytest.mark.parametrize("name", ["x", "table", "ids", "out", "w"])
def test_a_call_that_lacks_an_argument_is_refused(recorded: str, name: str) -> None:
    for call in calls_of(recorded):
        if name in call.arguments and not (call.operator in ("linear", "layer_norm") and name in ("out", "w")):
            left = {key: value for key, value in call.arguments.items() if key != name}
            with pytest.raises(OperandsError, match="lacks its argument"):
                check_fits(StoredCall(0, call.operator, left), "here")


def test_an_id_outside_a_table_never_reaches_add_rows(recorded: str) -> None:
    call = next(call for call in calls_of(recorded) if call.operator == "add_rows")
    ids = call.arguments["ids"]
    wrong = StoredOperand(ids.content + 10**6, ids.tier)
    with pytest.raises(OperandsError, match="outside a table"):
        check_fits(StoredCall(0, "add_rows", {**call.arguments, "ids": wrong}), "here")


def text(calls: Any, **more: Any) -> Any:
    return np.frombuffer(
        json.dumps({"format": FORMAT, "compute_dtype": "float32", "calls": calls, **more}).encode(), "u1"
    )


def one(**arguments: Any) -> Any:
    return text([{"operator": "linear", "arguments": arguments}])


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({}, "needed an array 'calls'"),
        ({"calls": text([], format="x")}, "holds no operands"),
        ({"calls": text({})}, "a list of at most"),
        ({"calls": text([{"operator": "submit", "arguments": {}}])}, "needed one of"),
        ({"calls": text([{"operator": "linear", "arguments": {"a b": {"value": 1}}}])}, "arguments by name"),
        ({"calls": one(x=3)}, "needed an argument"),
        ({"calls": one(x={"value": 10**12})}, "needed an argument"),
        ({"calls": one(x={"array": 0, "tier": "disk"})}, "needed an argument"),
        ({"calls": one(x={"array": 0, "tier": "device"})}, "needed an array 'operand_0'"),
        ({"calls": one(x={"array": True, "tier": "device"})}, "needed an argument"),
        ({"calls": one(x={"matrix": {}})}, "needed an argument"),
        ({"calls": one(x={"rows": {"records": [], "prefixes": [], "tier": "device", "layout": {}}})}, "needed an arg"),
        ({"calls": one(x={"segments": {"past": [0], "new": [10**9]}})}, "needed an argument"),
        ({"calls": one(x={"segments": {"past": [0] * 5000, "new": [1]}})}, "needed an argument"),
        ({"calls": one(x={"array": 0, "tier": "device"}), "operand_0": np.zeros(2, "c16")}, "complex128"),
        ({"calls": one(x={"array": 0, "tier": "device"}), "operand_0": np.array([{}], object)}, "Python objects"),
        (
            {"calls": one(x={"array": 0, "tier": "device"}), "operand_0": np.broadcast_to(np.uint8(0), (1 << 28) + 1)},
            "bytes",
        ),
    ],
)
def test_a_foreign_file_is_refused_in_a_line(members: dict[str, Any], said: str, tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", **members)
    with pytest.raises(OperandsError, match=said) as error:
        calls_of(str(tmp_path / "a.npz"))
    assert str(error.value).isprintable()


def test_a_run_that_ends_early_leaves_no_file(tmp_path: Path) -> None:
    def fails() -> None:
        with OperandsWriter(str(tmp_path / "a.npz"), {}) as writer:
            writer.add("activate", {"x": StoredOperand(np.zeros(3), "device")})
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - it has no message
        fails()
    assert list(tmp_path.iterdir()) == []
