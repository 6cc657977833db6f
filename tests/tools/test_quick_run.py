"""What a quick run of the suite chooses: changed parts first, then the fastest, within its seconds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from lib import quick_run  # noqa: E402

NODES = [f"tests/{part}/test_x.py::test_{number}" for part in ("a", "b", "c") for number in range(5)]
PARTS = sorted({path.parent.name for path in ROOT.glob("flexref/*/*.py") if path.name != "__init__.py"})
SECONDS = st.floats(0, 10)


@given(
    kept=st.dictionaries(st.sampled_from([*NODES, *(node.partition("::")[0] for node in NODES)]), SECONDS),
    budget=SECONDS,
)
def test_what_is_chosen_fits_and_of_what_is_left_out_nothing_would(kept: dict[str, float], budget: float) -> None:
    taken = quick_run.chosen(NODES, (), kept, budget)

    def cost(nodes: set[str]) -> float:
        files = {node.partition("::")[0] for node in nodes}
        calls = sum(kept.get(node, quick_run.USUAL_SECONDS) for node in nodes)
        return calls + sum(kept.get(file, 0.0) for file in files)

    assert cost(taken) <= budget + 1e-9
    assert all(cost(taken | {node}) > budget - 1e-9 for node in set(NODES) - taken)


def test_changed_parts_come_first_and_then_the_fastest() -> None:
    kept = {node: float(number + 1) for number, node in enumerate(NODES)}
    assert quick_run.chosen(NODES, (), kept, 3) == set(NODES[:2])
    assert quick_run.chosen(NODES, ("tests/c/",), kept, 3 + 11 + 12 + 13 + 14 + 15) == {*NODES[10:], *NODES[:2]}


def test_of_tests_that_were_never_timed_every_file_has_its_first() -> None:
    taken = quick_run.chosen(NODES, (), {}, 3 * quick_run.USUAL_SECONDS + 1e-9)
    assert sorted(taken) == [NODES[0], NODES[5], NODES[10]]


@pytest.mark.parametrize(
    "path",
    [
        *(f"flexref/{part}/some.py" for part in PARTS),
        *("flexref/policy.py", "backends/flexref_cupy/kernels/some.cu", "backends/flexref_dry/some.py"),
        *("tools/some", "tests/cli/conftest.py", "pyproject.toml", "README.md"),
    ],
)
def test_every_file_that_changes_has_tests(path: str) -> None:
    files = [str(test.relative_to(ROOT)) for test in ROOT.glob("tests/**/test_*.py")]
    assert any(file.startswith(quick_run.tests_of(ROOT, path)) for file in files)


PLANTED = """
import pytest

@pytest.mark.parametrize("number", range(4))
def test_number(number): pass
"""


@pytest.mark.parametrize("workers", ["-n0", "-n2"])
def test_seconds_are_kept_and_a_quick_run_leaves_out_what_was_slow_and_says_so(workers: str, tmp_path: Path) -> None:
    (tmp_path / "tests" / "part").mkdir(parents=True)
    (tmp_path / "tests" / "part" / "test_planted.py").write_text(PLANTED, encoding="utf-8")
    (tmp_path / "pytest.ini").touch()
    command = [sys.executable, "-m", "pytest", "-p", "lib.quick_run", workers]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "tools")}

    def told(*options: str) -> str:
        done = subprocess.run(
            [*command, *options], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout

    assert "4 passed" in told()
    record = tmp_path / ".pytest_cache" / "v" / quick_run.KEPT
    kept = json.loads(record.read_text(encoding="utf-8"))
    file = "tests/part/test_planted.py"
    assert sorted(kept) == [file, *(f"{file}::test_number[{number}]" for number in range(4))]
    record.write_text(json.dumps({**kept, f"{file}::test_number[1]": 1000.0}), encoding="utf-8")
    found = told("--quick", "300")
    assert "3 passed" in found
    assert "first came: nothing, for no file differs from the main branch" in found
    assert "left out, the slowest: 1 (tests/part 1)" in found
    assert "not started" not in found
    record.write_text(json.dumps(dict.fromkeys(kept, 0.0)), encoding="utf-8")
    assert "not started, for the time was up: 4" in told("--quick", "0")
