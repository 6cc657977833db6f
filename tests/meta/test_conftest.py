"""The test-suite's own rules: profiles are chosen by name, skips are told aloud, and `--require` lets none pass."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"

STOPPED, REFUSED, NOTHING_RAN = (
    pytest.ExitCode.INTERRUPTED,
    pytest.ExitCode.USAGE_ERROR,
    pytest.ExitCode.NO_TESTS_COLLECTED,
)

TESTS = """
import pytest
from hypothesis import settings

def test_profile():
    print("examples:", settings.default.max_examples)

@pytest.mark.parametrize("port", ["numpy", "dry"])
def test_port(port):
    if port == "dry":
        pytest.skip("it computes nothing")

def test_planner():
    pytest.skip("needs the dry backend")

@pytest.mark.xfail(reason="dry: known")
def test_known():
    assert False
"""


def pytest_on(folder: Path, source: str, *options: str, profile: str | None = None) -> subprocess.CompletedProcess[str]:
    """A run of pytest, in a process of its own, on `source` under a copy of the suite's conftest."""
    shutil.copy(CONFTEST, folder / "conftest.py")
    (folder / "test_planted.py").write_text(source, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FLEXREF_")}
    if profile is not None:
        environment["FLEXREF_HYPOTHESIS_PROFILE"] = profile
    command = [sys.executable, "-m", "pytest", "-s", "-p", "no:cacheprovider", *options, "."]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_skips_are_listed_with_their_reasons_and_are_no_failure(tmp_path: Path) -> None:
    done = pytest_on(tmp_path, TESTS)
    assert done.returncode == 0
    assert "2 skipped: these prove nothing here" in done.stdout
    assert "    1  it computes nothing" in done.stdout
    assert "examples: 25" in done.stdout


def test_a_skip_for_a_required_backend_is_a_failure(tmp_path: Path) -> None:
    done = pytest_on(tmp_path, TESTS, "--require", "dry", "--require", "numpy", profile="thorough")
    assert done.returncode == 1
    assert "2 failed, 2 passed, 1 xfailed" in done.stdout
    assert "--require dry: test_planted.py::test_port[dry] was skipped" in done.stdout
    assert "--require dry: no test of it passed" in done.stdout
    assert "--require numpy: no test" not in done.stdout
    assert "examples: 300" in done.stdout


def test_a_required_backend_whose_tests_ran_is_satisfied(tmp_path: Path) -> None:
    assert pytest_on(tmp_path, TESTS, "--require", "numpy").returncode == 0


def test_a_module_skipped_for_a_required_backend_is_a_failure(tmp_path: Path) -> None:
    source = "import pytest\npytest.skip('needs flexref_dry', allow_module_level=True)"
    assert pytest_on(tmp_path, f"{source}\ndef test_nothing(): pass", "--require", "numpy").returncode == NOTHING_RAN
    done = pytest_on(tmp_path, source, "--require", "dry")
    assert done.returncode == STOPPED
    assert "--require dry: test_planted.py was skipped" in done.stdout


@pytest.mark.parametrize(
    ("options", "profile", "told"),
    [
        (["--require", "abacus"], None, "--require abacus: not installed; installed: "),
        ([], "slow", "FLEXREF_HYPOTHESIS_PROFILE=slow: must be one of quick, thorough, nightly"),
    ],
)
def test_an_unknown_backend_or_profile_is_refused(
    options: list[str], profile: str | None, told: str, tmp_path: Path
) -> None:
    done = pytest_on(tmp_path, TESTS, *options, profile=profile)
    assert done.returncode == REFUSED
    assert told in done.stderr
