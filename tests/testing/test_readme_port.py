"""backends/README.md walked through: its smallest port, put into a new package, keeps the contract and generates."""

import os
import re
import subprocess
import sys
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from flexref.backend.capabilities import Capabilities
from flexref.testing.clauses.closing import a_closed_port_is_done_and_takes_no_work
from flexref.testing.conformance.calls import calls_of
from flexref.testing.conformance.watch import METHODS
from flexref.testing.contract import CONTRACT, Clause, clause_name, clauses_for, violation
from flexref.testing.scaffold import new_backend

README = Path(__file__).parents[2] / "backends" / "README.md"
TEXT = README.read_text(encoding="utf-8")

EXAMPLES = 5


def code() -> str:
    """The source of the port that the page shows."""
    (block,) = (part for part in re.findall(r"^```python\n(.*?)^```", TEXT, re.M | re.S) if "class MiniBackend" in part)
    return str(block)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of a new port `mini` with the page's code in it, as if it were installed."""
    folder = tmp_path_factory.mktemp("mini")
    new_backend("mini", str(folder))
    (folder / "flexref_mini" / "unwritten.py").write_text((folder / "flexref_mini" / "backend.py").read_text())
    (folder / "flexref_mini" / "backend.py").write_text(code())
    about = folder / "flexref_mini-0.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: flexref-mini\nVersion: 0.1\n")
    (about / "entry_points.txt").write_text("[flexref.backends]\nmini = flexref_mini:MiniBackend\n")
    return folder


@pytest.fixture(scope="module")
def mini(package: Path) -> Any:
    """The class that the page shows, and the one of a package with nothing written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(package))
        yield import_module("flexref_mini.backend").MiniBackend, import_module("flexref_mini.unwritten").MiniBackend


def flexref(package: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package), *sys.path])}
    command = [sys.executable, "-m", "flexref", *arguments]
    return subprocess.run(command, cwd=package, env=environment, capture_output=True, text=True, check=False)


def test_the_smallest_port_generates_what_the_reference_does(package: Path) -> None:
    words = ("--model", "demo", "--prompt", "The king said", "--max-new-tokens", "6")
    ours, reference = (flexref(package, "generate", "--backend", name, *words) for name in ("mini", "numpy"))
    assert ours.returncode == 0, ours.stderr
    assert ours.stdout == reference.stdout


@pytest.mark.parametrize("clause", CONTRACT, ids=clause_name)
def test_the_smallest_port_keeps_every_clause_that_it_must(mini: Any, clause: Clause) -> None:
    port = mini[0]()
    if clause in clauses_for(port.caps):
        error = violation(port, clause, EXAMPLES)
        assert error is None, error


def test_the_smallest_port_closes(mini: Any) -> None:
    a_closed_port_is_done_and_takes_no_work(mini[0])


def test_conformance_finds_it_by_its_entry_point(package: Path) -> None:
    done = flexref(package, "conformance", "--backend", "mini", "--clause", "norm_is_the_norm", "--examples", "5")
    assert done.returncode == 0, done.stderr
    assert "1 of 1 clause passed" in done.stdout


@pytest.mark.parametrize("last", ["empty", "close", "activate"])
def test_written_in_the_order_of_the_protocol_each_method_lets_more_clauses_pass(mini: Any, last: str) -> None:
    """With the methods up to `last` every clause passes that calls no later one, and the others are told as waiting."""
    written, unwritten = mini
    names = list(METHODS)[: list(METHODS).index(last) + 1]
    helpers = {name: part for name, part in vars(written).items() if name.startswith("_") and callable(part)}
    port = type("Partly", (unwritten,), {**helpers, **{name: getattr(written, name) for name in names}})()
    within = [clause for clause in clauses_for(port.caps) if calls_of(clause) <= set(names)]
    assert within
    # Beside what a clause is about, the bench places operands and reads them by these.
    placing = {"allocate", "release", "view", "upload", "download", "workspace", "host_memory", "mark"}
    for clause in within:
        error = violation(port, clause, 2)
        assert error is None or (isinstance(error, NotImplementedError) and not placing <= set(names)), clause


def test_the_page_tells_of_every_method_and_every_capability() -> None:
    assert [name for name in METHODS if f"`{name}`" not in TEXT] == []
    unlocked = TEXT[TEXT.index("### What each capability unlocks") :]
    assert [entry.name for entry in fields(Capabilities) if f"| `{entry.name}` |" not in unlocked] == []
