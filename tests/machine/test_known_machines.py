"""The machines that are shipped: every file reads, every figure says where it is from, and names are theirs alone."""

import json
from pathlib import Path

import pytest

import flexref.data
from flexref.errors import PolicyError
from flexref.machine import known
from flexref.machine.known import read_machine
from flexref.machine.machine import FORMAT, read_machine_object
from flexref.machine.nominal_facts import FIGURES, NOMINAL_FORMAT, NominalFacts
from flexref.units import TIERS

FOLDER = Path(flexref.data.__file__).parent / "machines"
FILES = sorted(FOLDER.glob("*.json"))
NOMINAL = [path for path in FILES if json.loads(path.read_text())["format"] == NOMINAL_FORMAT]
PYPROJECT = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")


def test_the_machines_that_people_ask_for_are_there() -> None:
    assert {"t4-gcp", "l4", "a10g", "rtx4090", "a100-40g"} <= {path.stem for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_is_a_machine_of_its_own_name(path: Path) -> None:
    machine = read_machine(path)
    assert machine.name == path.stem
    assert all(machine.capacity_bytes[tier] > 1 << 30 for tier in TIERS)
    assert machine.sources


def test_names_are_unique_and_formats_known() -> None:
    values = [read_machine_object(path) for path in FILES]
    assert len({value["name"] for value in values}) == len(FILES)
    assert {value["format"] for value in values} <= {FORMAT, NOMINAL_FORMAT}


@pytest.mark.parametrize("path", NOMINAL, ids=lambda path: path.stem)
def test_every_figure_has_a_unit_and_a_source(path: Path) -> None:
    facts = NominalFacts.from_mapping(read_machine_object(path), path.name)
    assert list(facts.figures) == list(FIGURES)
    for name, figure in facts.figures.items():
        assert figure.unit == FIGURES[name].unit
        assert len(figure.source) > 10, name
    machine = read_machine(path)
    assert set(FIGURES) <= set(machine.sources)
    assert machine.warnings == (f"assumed, not measured: {', '.join(facts.assumed())}",)


@pytest.mark.parametrize("path", NOMINAL, ids=lambda path: path.stem)
def test_what_decides_a_plan_is_not_assumed(path: Path) -> None:
    facts = NominalFacts.from_mapping(read_machine_object(path), path.name)
    assumed = set(facts.assumed())
    assert not assumed & {"device_memory", "device_memory_peak", "matrix_peak", "matrix_sustained"}
    assert path.stem == "l4" or "link_in" not in assumed


def test_the_t4_is_the_one_that_flexgen_measured_with() -> None:
    facts = NominalFacts.from_mapping(read_machine_object(FOLDER / "t4-gcp.json"), "t4-gcp.json")
    assert (facts["host_memory"], facts["disk"]) == (208 << 30, 1500 << 30)
    assert (facts["disk_read"], facts["disk_write"]) == (2e9, 1e9)
    assert 20e12 < facts["matrix_peak"] * facts["matrix_sustained"] < 30e12


def test_machines_and_what_is_said_about_them_are_shipped() -> None:
    assert '"machines/*.json"' in PYPROJECT
    assert (FOLDER / "README.md").exists()
    assert all(f"`{name}`" in (FOLDER / "README.md").read_text(encoding="utf-8") for name in FIGURES)


def test_nominal_figures_without_a_port_that_knows_them_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known, "entry_points", lambda group: [])
    path = tmp_path / "t4.json"
    path.write_bytes((FOLDER / "t4-gcp.json").read_bytes())
    with pytest.raises(
        PolicyError, match=r"t4\.json holds nominal figures, and no installed port says what it reaches"
    ):
        read_machine(path)
