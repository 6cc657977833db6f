"""The report of a run with other versions, the lower bounds, and that every tool's version is held."""

import os
import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from lib import versions  # noqa: E402

PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
HELD = (ROOT / "tools" / "constraints.txt").read_text(encoding="utf-8")


def test_every_requirement_of_the_suite_is_held_to_one_version() -> None:
    wanted = [line for line in requires("flexref") or () if "cuda12" not in line and "cuda13" not in line]
    names = {versions.normal(re.split(r"[^\w.-]", line)[0]) for line in wanted} - {"flexref"}
    assert {"numpy", "torch", "transformers", "pytest", "ruff", "mypy"} <= names
    held = versions.held_versions(HELD)
    assert sorted(names - set(held)) == []
    assert all(re.fullmatch(r"[0-9]+(\.[0-9a-z]+)*", version) for version in held.values())


def test_of_every_requirement_at_run_time_the_least_version_is_known() -> None:
    least = versions.lower_bounds(PYPROJECT)
    assert {"numpy", "ml-dtypes", "h5py", "threadpoolctl", "matplotlib"} <= set(least)
    found = list(versions.lowest(PYPROJECT, HELD))
    assert f"numpy=={least['numpy']}" in found
    assert [line for line in found if line.startswith("pytest==")]
    assert not [line for line in found if line.startswith(("torch", "huggingface"))]


def test_a_requirement_without_a_lower_bound_is_refused() -> None:
    with pytest.raises(ValueError, match="'numpy': not of the form"):
        versions.lower_bounds('dependencies = [\n    "numpy",\n]\n')


def test_only_what_differs_is_told() -> None:
    held, here = (
        {"a": "1.0", "b": "2.0", "torch": "2.13.0", "gone": "1"},
        {"a": "1.0", "b": "2.1", "new": "3", "torch": "2.13.0+cpu"},
    )
    assert versions.differing(held, here) == [("b", "2.0", "2.1"), ("new", "none", "3")]


def test_the_report_names_versions_and_failing_tests() -> None:
    xml = """<testsuites><testsuite>
    <testcase classname="tests.a" name="test_right" />
    <testcase classname="tests.a" name="test_skipped"><skipped /></testcase>
    <testcase classname="tests.a" name="test_wrong"><failure>x</failure></testcase>
    <testcase classname="tests.b" name="test_broken"><error>x</error></testcase>
    </testsuite></testsuites>"""
    text = "\n".join(versions.report(PYPROJECT, "numpy==1.0\nclick==1.0 ; python_version < '3'\npluggy==0.1", xml))
    assert re.search(r"^  numpy 1\.0 -> [\d.]+$", text, re.MULTILINE)
    assert re.search(r"^  click none -> [\d.]+$", text, re.MULTILINE)
    assert re.search(r"^  pluggy 0\.1 -> [\d.]+ \(comes with others\)$", text, re.MULTILINE)
    assert text.index("numpy 1.0") < text.index("pluggy 0.1")
    assert text.endswith("tests that failed: 2\n  tests.a::test_wrong\n  tests.b::test_broken")


FAKE_PYTHON = """#!/bin/sh
case "$*" in
*-m\\ venv*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
*-m\\ pip*) ;;
*-m\\ pytest*) {pytest} ;;
*) exec {python} "$@" ;;
esac
"""


@pytest.mark.parametrize(
    "ending",
    [
        pytest.param("exit 4", id="before any test"),
        pytest.param('for word; do case $word in *.xml) echo "<tests" >"$word" ;; esac; done; exit 3', id="amid them"),
    ],
)
def test_where_pytest_stops_early_one_line_says_so_and_the_exit_code_too(tmp_path: Path, ending: str) -> None:
    python = tmp_path / "python"
    python.write_text(FAKE_PYTHON.format(python=sys.executable, pytest=ending), encoding="utf-8")
    python.chmod(0o755)
    done = subprocess.run(
        [ROOT / "tools" / "test_versions", "lowest"],
        env={**os.environ, "PYTHON": str(python), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "tests that failed: unknown, since pytest stopped before it had run them"
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "tools/test_versions lowest: failed: tests")
