"""Lower bounds of the requirements; the report of a run with other versions than the held ones. It installs nothing.

    python tools/lib/versions.py lowest pyproject.toml tools/constraints.txt             # constraints for pip
    python tools/lib/versions.py report pyproject.toml tools/constraints.txt tests.xml   # of the Python that runs this

`lowest` needs the standard library alone, `report` also `packaging`, which comes with pytest.
"""

import re
import sys
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path
from xml.etree import ElementTree

TEST_TOOLS = ("pytest", "pytest-timeout", "pytest-xdist", "hypothesis")


def normal(name: str) -> str:
    """A package's name as all tools spell it, `ml_dtypes` as `ml-dtypes`."""
    return re.sub(r"[-_.]+", "-", name).lower()


def lower_bounds(pyproject: str) -> dict[str, str]:
    """The least version of every run-time requirement and of plots, by name; `ValueError` where there is none."""
    blocks = re.findall(r"^(?:dependencies|plots) = \[(.*?)\]$", pyproject, re.DOTALL | re.MULTILINE)
    found = {}
    for requirement in re.findall(r'"([^"]+)"', "".join(blocks)):
        name, separator, version = requirement.partition(">=")
        if not separator or not re.fullmatch(r"[0-9.]+", version):
            raise ValueError(f"{requirement!r}: not of the form name>=version")
        found[normal(name)] = version
    return found


def lowest(pyproject: str, held: str) -> Iterator[str]:
    """Constraints under which requirements are as old as they may be and what runs the tests is as it is held."""
    for name, version in lower_bounds(pyproject).items():
        yield f"{name}=={version}"
    for line in held.splitlines():
        if line.partition("==")[0] in TEST_TOOLS:
            yield line


def held_versions(held: str) -> dict[str, str]:
    """What the constraints hold for the Python that runs this."""
    from packaging.requirements import Requirement

    found = {}
    for line in held.splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate():
                found[normal(requirement.name)] = str(requirement.specifier).removeprefix("==")
    return found


def differing(held: dict[str, str], here: dict[str, str]) -> list[tuple[str, str, str]]:
    """(package, held version, version here) of all that differ; what is held but not here was not asked for."""
    changes = ((name, held.get(name, "none"), version) for name, version in sorted(here.items()))
    # A local version, such as that of a build for CPUs, is the same version.
    return [(name, old, new) for name, old, new in changes if old != new.partition("+")[0]]


def failing(xml: str) -> list[str]:
    """Tests that failed, in the words of a JUnit report."""
    cases = ElementTree.fromstring(xml).iter("testcase")
    wrong = (case for case in cases if any(case.find(kind) is not None for kind in ("failure", "error")))
    return [f"{case.get('classname')}::{case.get('name')}" for case in wrong]


def report(pyproject: str, held: str, xml: str) -> Iterator[str]:
    """Versions that differ, those that pyproject.toml names first, and the tests that failed.

    `xml` is no JUnit report where pytest stopped early, in a conftest say: the last line says so.
    """
    here = {normal(found.name): found.version for found in distributions()}
    ours = {normal(name) for name in re.findall(r'"([A-Za-z0-9_.-]+?)(?:\[\w+\])?[><=]=', pyproject)}
    changes = [change for change in differing(held_versions(held), here) if change[0] not in ("pip", "flexref")]
    yield f"versions that differ from those held: {len(changes)}"
    for name, old, new in sorted(changes, key=lambda change: change[0] not in ours):
        yield f"  {name} {old} -> {new}{'' if name in ours else ' (comes with others)'}"
    try:
        tests = failing(xml)
    except ElementTree.ParseError:
        yield "tests that failed: unknown, since pytest stopped before it had run them"
        return
    yield f"tests that failed: {len(tests)}"
    yield from (f"  {test}" for test in tests)


def main(command: str, *paths: str) -> None:
    texts = [Path(path).read_text(encoding="utf-8") for path in paths]
    print(*{"lowest": lowest, "report": report}[command](*texts), sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
