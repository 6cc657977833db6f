"""Nominal files: measured and nominal ones read alike, and whatever is wrong in one is a single clear line."""

import json
from pathlib import Path
from typing import Any

import pytest
from flexref_cupy.nominal import machine_of
from hypothesis import given
from hypothesis import strategies as st

import flexref.data
from flexref.errors import PolicyError, StorageError
from flexref.machine.known import read_machine
from flexref.machine.machine import read_machine_object
from flexref.machine.nominal_facts import FIGURES, Figure, NominalFacts
from flexref.machine.plain import plain_machine

jsons = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**400), 10**400) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
VALUES = read_machine_object(Path(flexref.data.__file__).parent / "machines" / "t4-gcp.json")
FACTS = NominalFacts.from_mapping(VALUES, "some.json")
PLACES = [
    *((name,) for name in VALUES),
    *(("figures", name) for name in FIGURES),
    *(("figures", name, part) for name in FIGURES for part in ("value", "unit", "source")),
]


def with_value(path: tuple[str, ...], new: object) -> dict[str, Any]:
    """The file's values with another one at `path`."""
    values = json.loads(json.dumps(VALUES))
    inner = values
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = new
    return values  # type: ignore[no-any-return]


@given(st.sampled_from(PLACES), jsons)
def test_any_value_anywhere_makes_a_machine_or_one_line(path: tuple[str, ...], new: object) -> None:
    refusal = "some.json: "
    try:
        machine_of(NominalFacts.from_mapping(with_value(path, new), "some.json"))
    except PolicyError as error:
        refusal = str(error)
    assert refusal.startswith("some.json: ")
    assert "\n" not in refusal
    assert len(refusal) < 600


@given(jsons)
def test_any_file_is_a_machine_or_one_line(tmp_path_factory: pytest.TempPathFactory, values: object) -> None:
    path = tmp_path_factory.mktemp("machines") / "m.json"
    path.write_text(json.dumps(values))
    with pytest.raises(PolicyError) as caught:
        read_machine(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "new", "says"),
    [
        (("figures", "link_in"), 12, "link_in must be an object of value, unit and source, found 12"),
        (("figures", "link_in", "unit"), "GiB/s", "link_in: unit must be 'GB/s', found 'GiB/s'"),
        (("figures", "link_in", "source"), " ", "link_in: source must say where the value is from"),
        (("figures", "link_in", "value"), 0, "link_in: value must be a number from 0.0001 to 1e\\+07, found 0"),
        (("figures", "link_in", "value"), True, "link_in: value must be a number"),
        (("figures", "link_in", "value"), 10, "link_in_beside_out must be at most link_in \\(10 GB/s\\), found 11.5"),
        (("figures", "host_reserved", "value"), 208, "host_reserved must be at most host_memory"),
        (("figures", "matrix_sustained", "value"), 1.1, "matrix_sustained: value must be a number from 0.001 to 1"),
        (("figures", "compute_capability", "value"), 7.0, "compute_capability: value must be a number from 7.5"),
        (("figures", "colour"), {}, "unknown figure 'colour'; known: compute_capability, "),
        (("figures",), {}, "figure 'compute_capability' is missing"),
        (("figures",), [], "figures must be a JSON object"),
        (("name",), "", "name must be text"),
        (("format",), "flexref nominal machine 2", "format must be 'flexref nominal machine 1'"),
        (("colour",), 1, "must have the fields about, figures, format, name"),
    ],
)
def test_what_is_wrong_is_said(path: tuple[str, ...], new: object, says: str) -> None:
    with pytest.raises(PolicyError, match=says):
        NominalFacts.from_mapping(with_value(path, new), "some.json")


def test_measured_and_nominal_files_are_read_alike(tmp_path: Path) -> None:
    plain_machine().write(tmp_path / "measured.json")
    (tmp_path / "nominal.json").write_text(json.dumps(VALUES))
    assert read_machine(tmp_path / "measured.json") == plain_machine()
    assert read_machine(str(tmp_path / "nominal.json")) == machine_of(FACTS)


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 100_000, b"[]", b'{"format": []}', b'{"format": "x"}'])
def test_a_file_that_is_no_machine_is_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.json").write_bytes(content)
    with pytest.raises(PolicyError, match=r"m\.json"):
        read_machine(tmp_path / "m.json")
    with pytest.raises(StorageError, match="cannot read machine"):
        read_machine(tmp_path / "none.json")


def test_what_is_assumed_is_warned_of() -> None:
    known = {name: Figure(figure.value, figure.unit, "here") for name, figure in FACTS.figures.items()}
    assert machine_of(NominalFacts("some", "a machine", known)).warnings == ()
    guessed = {**known, "disk_read": Figure(2.0, "GB/s", "Assumed: such disks"), "disk": FACTS.figures["disk"]}
    machine = machine_of(NominalFacts("some", "a machine", guessed))
    assert machine.warnings == ("assumed, not measured: disk_read",)
    assert machine.sources["disk_read"] == "2 GB/s: Assumed: such disks"


def test_a_figure_that_is_missing_is_named() -> None:
    for name in FIGURES:
        figures = {other: figure for other, figure in FACTS.figures.items() if other != name}
        with pytest.raises(PolicyError, match=f"^figure '{name}' is missing$"):
            NominalFacts("some", "a machine", figures)
