"""What tools import from flexref is there: most run by hand only, and a name that moves would break them unseen."""

import ast
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


def is_python(path: Path) -> bool:
    if path.suffix:
        return path.suffix == ".py"
    return path.is_file() and path.read_bytes().startswith(b"#!/usr/bin/env python")


def imported(source: str) -> Iterator[tuple[str, str]]:
    """(module, name) of all that a script imports from flexref and its ports; the name is "" for a module as such."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.startswith("flexref"))
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("flexref"):
            yield from ((node.module, alias.name) for alias in node.names)


def missing(source: str) -> list[str]:
    found = []
    for module, name in imported(source):
        try:
            found_module = import_module(module)
            if name and not hasattr(found_module, name):
                import_module(f"{module}.{name}")
        except ModuleNotFoundError as error:
            if str(error.name).startswith("flexref"):
                found.append(f"{module} {name}".strip())
    return found


@pytest.mark.parametrize("path", sorted(filter(is_python, TOOLS.rglob("*"))), ids=lambda path: path.name)
def test_what_a_tool_imports_from_flexref_is_there(path: Path) -> None:
    assert missing(path.read_text(encoding="utf-8")) == []


def test_a_name_that_is_gone_is_found() -> None:
    source = "import flexref.gone\nfrom flexref.units import Tier, Gone\nfrom flexref.cli import main\nimport gone"
    assert missing(source) == ["flexref.gone", "flexref.units Gone"]
