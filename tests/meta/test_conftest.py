"""The suite's own rules: profiles have names, skips are listed, `--require` lets none pass, our warnings are errors."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS_FOLDER = Path(__file__).parents[1]
ROOT = TESTS_FOLDER.parent
CONFTEST = TESTS_FOLDER / "conftest.py"

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


def pytest_on(
    folder: Path, source: str, *options: str, profile: str | None = None, modules: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """A run of pytest, in a process of its own, on `source` under a copy of the conftest; it can import `modules`."""
    shutil.copy(CONFTEST, folder / "conftest.py")
    (folder / "test_planted.py").write_text(source, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FLEXREF_")}
    if modules is not None:
        environment["PYTHONPATH"] = os.pathsep.join([str(modules), *filter(None, [environment.get("PYTHONPATH")])])
    if profile is not None:
        environment["FLEXREF_HYPOTHESIS_PROFILE"] = profile
    command = [sys.executable, "-m", "pytest", "-rP", "-p", "no:cacheprovider", *options, "."]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


in_one_process_and_several = pytest.mark.parametrize("workers", ["-n0", "-n2"])


@in_one_process_and_several
def test_skips_are_listed_with_their_reasons_and_are_no_failure_where_another_backend_is_required(
    workers: str, tmp_path: Path
) -> None:
    done = pytest_on(tmp_path, TESTS, workers, "--require", "numpy")
    assert done.returncode == 0
    assert "2 skipped: these prove nothing here" in done.stdout
    assert "    1  it computes nothing" in done.stdout
    assert "examples: 25" in done.stdout


def test_a_skip_is_no_failure_where_nothing_is_required(tmp_path: Path) -> None:
    assert pytest_on(tmp_path, TESTS, "-n0").returncode == 0


@in_one_process_and_several
def test_a_skip_for_a_required_backend_is_a_failure(workers: str, tmp_path: Path) -> None:
    done = pytest_on(tmp_path, TESTS, workers, "--require", "dry", "--require", "numpy", profile="thorough")
    assert done.returncode == 1
    assert "2 failed, 2 passed, 1 xfailed" in done.stdout
    assert "--require dry: test_planted.py::test_port[dry] was skipped" in done.stdout
    assert "--require dry: no test of it passed" in done.stdout
    assert "--require numpy: no test" not in done.stdout
    assert "examples: 300" in done.stdout


@in_one_process_and_several
def test_a_module_skipped_for_a_required_backend_is_a_failure(workers: str, tmp_path: Path) -> None:
    source = "import pytest\npytest.skip('needs flexref_dry', allow_module_level=True)"
    (tmp_path / "test_other.py").write_text(source, encoding="utf-8")
    done = pytest_on(tmp_path, f"{source}\ndef test_nothing(): pass", workers, "--require", "numpy")
    assert done.returncode == NOTHING_RAN
    assert "    2  needs flexref_dry" in done.stdout
    done = pytest_on(tmp_path, source, workers, "--require", "dry")
    # Of several workers one may run its tests all the same, so that the whole was not stopped but failed.
    assert done.returncode == (STOPPED if workers == "-n0" else pytest.ExitCode.TESTS_FAILED)
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


EXAMPLES = """
{first}
from hypothesis import given, strategies as st

@given(st.lists(st.integers(0, 1 << 40), min_size=20))
def test_examples(values):
    print("values:", values)
"""


def test_examples_are_the_same_whatever_this_process_has_loaded(tmp_path: Path) -> None:
    (tmp_path / "constants_kit.py").write_text(f"VALUES = {list(range(123456, 123556))}\n", encoding="utf-8")
    found = []
    for first in ("", "import constants_kit"):
        folder = tmp_path / f"with {first}"
        folder.mkdir()
        done = pytest_on(folder, EXAMPLES.format(first=first), "-n0", modules=tmp_path)
        assert done.returncode == 0
        found.append([line for line in done.stdout.splitlines() if line.startswith("values: ")])
    assert len(found[0]) >= 25
    assert found[0] == found[1]


WARNS_HIMSELF = """
import warnings

def tells(category, level):
    warnings.warn("planted", category, stacklevel=level)
"""

CALLS_OTHERS = """
import numpy as np
import planted_library

def tells(category, level):
    planted_library.tells(category, level)

def divides():
    return np.float32(1) / np.zeros(1, np.float32)

def averages_nothing():
    return np.mean(np.zeros(0))
"""

WARNS_IN_TESTS = """
import flexref_planted
import oracle_kit
import planted_library
import pytest

def test_in_a_test(): planted_library.tells(UserWarning, 2)
def test_in_our_code(): flexref_planted.tells(UserWarning, 2)
def test_deprecated_for_our_code(): flexref_planted.tells(DeprecationWarning, 2)
def test_pending_for_our_code(): flexref_planted.tells(PendingDeprecationWarning, 2)
def test_future_for_our_code(): flexref_planted.tells(FutureWarning, 2)
def test_our_arithmetic(): flexref_planted.divides()
def test_our_arithmetic_inside_numpy(): flexref_planted.averages_nothing()
def test_deprecated_for_the_oracles_caller(): oracle_kit.tells(DeprecationWarning, 2)
def test_arithmetic_of_the_oracles_caller(): oracle_kit.divides()

def test_a_thread_that_dies():
    import threading
    thread = threading.Thread(target=divmod, args=(1, 0))
    thread.start()
    thread.join()

def test_others_in_others(): planted_library.tells(UserWarning, 1)
def test_others_deprecated_in_others(): planted_library.tells(DeprecationWarning, 1)
def test_others_future_in_others(): planted_library.tells(FutureWarning, 1)
def test_others_arithmetic(): planted_library.tells(RuntimeWarning, 1)
def test_others_future_for_the_oracles_caller(): oracle_kit.tells(FutureWarning, 2)
def test_others_word_for_the_oracles_caller(): oracle_kit.tells(UserWarning, 2)
"""


def test_our_warnings_are_errors_and_those_of_others_are_not(tmp_path: Path) -> None:
    """Planted modules have the names of ours, and their tests lie where ours do: a warning is told by its module."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "planted_library.py").write_text(WARNS_HIMSELF, encoding="utf-8")
    for name in ("flexref_planted", "oracle_kit"):
        (tmp_path / f"{name}.py").write_text(CALLS_OTHERS, encoding="utf-8")
    options = ("-c", str(ROOT / "pyproject.toml"), f"--rootdir={tmp_path}", "-rA")
    done = pytest_on(tmp_path / "tests", WARNS_IN_TESTS, *options, modules=tmp_path)
    found = re.findall(r"^(PASSED|FAILED) \S*::test_(\w+)", done.stdout, re.MULTILINE)
    assert len(found) == WARNS_IN_TESTS.count("def test_")
    assert sorted(name for outcome, name in found if outcome == "PASSED") == sorted(
        name for _, name in found if name.startswith("others_")
    )


def test_every_helper_of_the_tests_has_a_name_of_which_warnings_are_errors() -> None:
    """What a test imports beside the packages has a module's name of its own; a new one must be in the list too."""
    pattern = re.search(r"error:::(\(flexref.*\))'", (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert pattern
    helpers = [path for path in TESTS_FOLDER.rglob("*.py") if not path.name.startswith("test_")]
    packages = [path.parent if path.name == "__init__.py" else path for path in helpers]
    inner = [path for path in packages if not (path.parent / "__init__.py").exists()]
    names = {path.stem for path in inner} | {
        f"{path.parent.name}.{path.stem}" for path in (ROOT / "tools").glob("*/*.py")
    }
    assert {"oracle_kit", "check_kit", "builtin.corpus"} <= names
    assert sorted(name for name in names if not re.match(pattern[1], name)) == []
