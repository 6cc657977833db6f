"""Failing inputs in files: they come back as they were written, and what comes from outside is believed nothing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flexref.errors import FlexrefError
from flexref.testing.conformance.blame import FailedCall
from flexref.testing.conformance.cases import FORMAT, Case, read_case, write_case
from flexref.testing.conformance.draws import CaseError, DrawnValues

CLAUSE = "linear_is_the_product"


def written(path: Path) -> Case:
    drawn = DrawnValues()
    for value in (3, "int4 float16", np.arange(6, dtype=np.float32).reshape(2, 3), (1, 2)):
        drawn.add(value)
    case = Case(CLAUSE, drawn, "mine", "it is off")
    write_case(str(path), case, FailedCall("linear", 3.0, "off", {"x": np.ones((2, 2))}, {"add": True}, {}))
    return case


def test_a_case_comes_back_and_shows_its_operands_to_numpy(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    case = written(path)
    again = read_case(str(path))
    assert (again.clause, again.backend, again.error) == (CLAUSE, "mine", "it is off")
    assert again.drawn.values == case.drawn.values
    assert np.array_equal(again.drawn.arrays[0], case.drawn.arrays[0])
    with np.load(path, allow_pickle=False) as shown:
        assert np.array_equal(shown["operand_x"], np.ones((2, 2)))
        about = json.loads(shown["case"].tobytes())
    assert (about["method"], about["arguments"]) == ("linear", {"add": True})


def text(**changes: Any) -> Any:
    about = {"format": FORMAT, "clause": CLAUSE, "backend": "b", "error": "e", "draws": [1], "arrays": 0, **changes}
    return np.frombuffer(json.dumps(about).encode(), np.uint8)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({}, "needed an array 'case'"),
        ({"case": np.zeros(3)}, "needed one axis"),
        ({"case": np.frombuffer(b"\xff{", np.uint8)}, "not UTF-8"),
        ({"case": np.frombuffer(b"{]", np.uint8)}, "not JSON"),
        ({"case": np.frombuffer(b"[]", np.uint8)}, "is no case"),
        ({"case": text(format="flexref-case 9")}, "needed 'flexref-case 1'"),
        ({"case": text(clause="no_such_clause")}, "there is no clause"),
        ({"case": text(clause="a_closed_port_is_done_and_takes_no_work")}, "there is no clause"),
        ({"case": text(clause=["a"])}, "there is no clause"),
        ({"case": text(draws={})}, "a list of draws"),
        ({"case": text(arrays=10**9)}, "at most 1024 arrays"),
        ({"case": text(arrays=True)}, "at most 1024 arrays"),
        ({"case": text(arrays=1)}, "needed an array 'draw_0'"),
        ({"case": text(draws=[{"lane": "x"}])}, "draw 0"),
        ({"case": text(arrays=1), "draw_0": np.zeros(2, np.complex128)}, "complex128"),
        ({"case": text(arrays=1), "draw_0": np.array(1.0)}, "with an axis"),
        ({"case": text(arrays=1), "draw_0": np.broadcast_to(np.uint8(0), (1 << 28) + 1)}, "bytes"),
    ],
)
def test_a_foreign_file_is_refused_in_a_line(members: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "case.npz"
    np.savez_compressed(path, **members)
    with pytest.raises(CaseError, match=said) as error:
        read_case(str(path))
    assert str(error.value).isprintable()


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "case.npz"
    np.savez(path, case=text(arrays=1), draw_0=np.array([{}], dtype=object))
    with pytest.raises(CaseError, match="Python objects"):
        read_case(str(path))


@pytest.mark.parametrize("keep", [0, 1, 30, 100, -1, -30])
def test_a_damaged_file_is_refused(keep: int, tmp_path: Path) -> None:
    path = tmp_path / "case.npz"
    written(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FlexrefError):
        read_case(str(path))
