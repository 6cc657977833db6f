"""What the tool that mutates ports knows of numba's compiled functions: which a file is part of, and which stay."""

import shutil
import sys
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from mutate_operators_run import numba_functions
from mutate_operators_run.numba_functions import Asked, digest_of_sources, files_of, take_over
from mutate_operators_run.ports import PORTS

FOLDER = PORTS["numba"].folder


def test_a_function_comes_of_its_kernel_and_of_what_that_imports() -> None:
    assert files_of(FOLDER, "flexref_numba.kernels.append") >= {"kernels/append.py", "kernels/numbers.py"}
    assert "kernels/attend.py" not in files_of(FOLDER, "append")
    for name in ("append", "attend", "products"):
        assert "kernels/vectors.py" in files_of(FOLDER, name)  # through others


def copied(folder: Path) -> Path:
    package = folder / "flexref_numba"
    shutil.copytree(FOLDER, package)
    return package


def sources(package: Path, *modules: str) -> str:
    """What a package names as the sources of a function of these kernels, the first of which makes it of the others."""
    line = next(line for line in (package / "compiled.py").read_text().splitlines() if "told = (" in line)
    told = line.partition("told = (")[2].partition(", protocol.")[0]

    def make() -> None:
        """Stands for what makes a function."""

    parts = [FunctionType(make.__code__, {}) for _ in modules]
    for part, module in zip(parts, modules, strict=True):
        part.__module__ = f"flexref_numba.kernels.{module}"
    found: str = eval(told, {"SOURCES": "own", "make": parts[0], "variant": (*parts[1:], "float16")})
    return found


def test_functions_of_the_changed_file_are_compiled_anew_and_all_others_are_those_of_the_port(tmp_path: Path) -> None:
    package, known = copied(tmp_path), digest_of_sources(FOLDER)
    take_over(package, "kernels/attend.py", FOLDER)
    assert {name: sources(package, name) for name in ("attend", "append", "products")} == {
        "attend": "own",
        "append": known,
        "products": known,
    }
    assert [sources(package, "sharing", name) for name in ("attend", "append")] == ["own", known]


@pytest.mark.parametrize(
    ("changed", "anew"), [("kernels/vectors.py", True), ("host_attention.py", False), ("compiled.py", True)]
)
def test_a_file_that_every_kernel_imports_changes_all_and_one_that_none_imports_changes_none(
    tmp_path: Path, changed: str, anew: bool
) -> None:
    package = copied(tmp_path)
    take_over(package, changed, FOLDER)
    assert {sources(package, name) == "own" for name in ("attend", "append", "products")} == {anew}


def test_a_package_that_names_its_sources_otherwise_is_refused(tmp_path: Path) -> None:
    package = copied(tmp_path)
    path = package / "compiled.py"
    path.write_text(path.read_text().replace(numba_functions.TOLD, "told = SOURCES, ("))
    with pytest.raises(ValueError, match="names the sources"):
        take_over(package, "products.py", FOLDER)


def test_the_digest_is_the_ports_own() -> None:
    compiled = pytest.importorskip("flexref_numba.compiled", reason="numba is not installed")
    assert digest_of_sources(FOLDER) == compiled.SOURCES == compiled.digest_of_sources()


def test_what_a_port_asks_for_is_noted_and_given() -> None:
    class Functions:
        def get(self, make: Any, *variant: Any) -> tuple[Any, ...]:
            return make, *variant

    def make() -> None:
        """Stands for what makes a function."""

    make.__module__ = "flexref_numba.kernels.append"
    functions = Functions()
    asked = Asked(FOLDER, SimpleNamespace(_attention=SimpleNamespace(functions=functions)))  # type: ignore[arg-type]
    assert functions.get("shared", make, "float16") == ("shared", make, "float16")
    assert asked.files == files_of(FOLDER, "append")
    assert Asked(FOLDER, SimpleNamespace()).files == set()  # type: ignore[arg-type]
