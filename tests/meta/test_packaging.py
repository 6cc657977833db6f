"""What pyproject.toml ships: every folder of code once, typed, and every port with its entry point."""

import re
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from flexref.__main__ import main
from flexref.backend import registry

ROOT = Path(__file__).parents[2]
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PORTS = sorted(path for path in (ROOT / "backends").iterdir() if any(path.glob("*.py")))
PACKAGES = frozenset(port.name for port in PORTS)


@pytest.mark.parametrize("top", [ROOT / "flexref", *PORTS], ids=lambda path: path.name)
def test_every_folder_of_code_is_a_package_and_so_is_shipped(top: Path) -> None:
    folders = {path.parent for path in top.rglob("*.py")}
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


def test_the_folder_of_ports_is_no_package_else_each_port_is_shipped_twice() -> None:
    assert not (ROOT / "backends" / "__init__.py").exists()
    assert "namespaces = false" in PYPROJECT


@pytest.mark.parametrize("top", [ROOT / "flexref", *PORTS], ids=lambda path: path.name)
def test_every_package_ships_its_types(top: Path) -> None:
    assert (top / "py.typed").exists()
    assert re.search(rf'^{top.name} = \[.*"py\.typed".*\]$', PYPROJECT, re.MULTILINE)


@pytest.mark.parametrize("top", [ROOT / "flexref", *PORTS], ids=lambda path: path.name)
def test_every_readme_of_a_package_is_shipped_with_it(top: Path) -> None:
    assert re.search(r'^"\*" = \["README\.md"\]$', PYPROJECT, re.MULTILINE)  # of every package
    inside = {path.parent for path in top.rglob("README.md") if not (path.parent / "__init__.py").exists()}
    assert inside <= {ROOT / "flexref" / "data" / "machines"}  # no package: its own line ships it


def test_every_port_is_registered_under_its_folders_name() -> None:
    """In what an install ships: one that was made before a port came knows nothing of it."""
    table = PYPROJECT.partition(f'[project.entry-points."{registry.GROUP}"]')[2].partition("\n[")[0]
    registered = dict(re.findall(r'^(\w+) = "(\w+):\w+"$', table, re.MULTILINE))
    assert {port.name.removeprefix("flexref_"): port.name for port in PORTS} == registered


def test_what_is_registered_here_is_what_an_install_ships() -> None:
    ours = {entry.name: entry.module for entry in entry_points(group=registry.GROUP) if entry.module in PACKAGES}
    assert all(f'{name} = "{module}:' in PYPROJECT for name, module in ours.items())
    assert {"numpy", "dry"} <= ours.keys()


def test_the_console_command_is_the_main_function() -> None:
    (entry,) = {entry.value: entry for entry in entry_points(group="console_scripts", name="flexref")}.values()
    assert entry.load() is main


def test_no_hint_sends_anybody_to_an_index_that_has_no_flexref() -> None:
    """What installs an extra is run in a checkout, and the extra is there."""
    extras = set(re.findall(r"^([\w-]+) = \[", PYPROJECT.partition("[project.optional-dependencies]")[2], re.M))
    wrong = []
    for top in ("flexref", "backends", "tools", "README.md"):
        for path in [ROOT / top, *(ROOT / top).rglob("*")]:
            if path.is_file() and path.suffix in ("", ".py", ".md"):
                text = path.read_text(encoding="utf-8")
                named = re.findall(r"install_hint\(['\"]([\w-]+)", text)
                named += re.findall(r"pip install '\.\[([\w-]+)\]", text)
                wrong += [f"{path}: no extra {name}" for name in named if name not in extras]
                wrong += [f"{path}: {hint}" for hint in re.findall(r"pip install '?flexref\b.*", text)]
    assert wrong == []
    assert re.search(r'^testing = \[.*"hypothesis.*"pytest', PYPROJECT, re.MULTILINE)
