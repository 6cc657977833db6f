"""The package of a new port: it has all of the protocol, nothing is replaced, and conformance says what to write."""

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.backend.protocol import Backend
from flexref.errors import StorageError, WrongCall
from flexref.testing.conformance.watch import METHODS
from flexref.testing.scaffold import check_name, new_backend

OWN = [name for name in METHODS if name in vars(Backend)]
"""What a port must write: recordings have a base class that does without."""


def flexref(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command for which the package in `folder` is installed, as `pip install -e` would do it."""
    project = (folder / "pyproject.toml").read_text(encoding="utf-8")
    (ports,) = re.findall(r'^\[project.entry-points."flexref.backends"\]\n(.*)$', project, re.MULTILINE)
    about = folder / "port-0.1.dist-info"
    about.mkdir(exist_ok=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: port\nVersion: 0.1\n")
    (about / "entry_points.txt").write_text("[flexref.backends]\n" + ports.replace('"', "") + "\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    command = [sys.executable, "-m", "flexref", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_new_port_is_found_and_conformance_lists_its_methods_in_the_order_of_the_protocol(tmp_path: Path) -> None:
    new_backend("my_gpu", str(tmp_path))
    done = flexref(tmp_path, "conformance", "--backend", "my_gpu", "--examples", "2", "--json", "--clause", "view")
    assert done.returncode == 1, done.stderr
    result = json.loads(done.stdout)
    assert [part["method"] for part in result["to_do"]] == OWN
    assert {clause["status"] for clause in result["clauses"]} == {"not written"}
    waiting = {part["method"]: part["waiting"] for part in result["to_do"]}
    assert waiting["allocate"] == [clause["clause"] for clause in result["clauses"]]
    said = f"flexref: the port my_gpu lacks {len(OWN)} methods; the next to write: describe"
    assert done.stderr.splitlines()[-1] == said
    assert list(tmp_path.glob("*-cases")) == []


def test_every_method_has_the_protocols_signature_and_words_and_raises_with_its_law(tmp_path: Path) -> None:
    new_backend("mine", str(tmp_path))
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from flexref_mine import MineBackend as B; port = B()"
    names = OWN
    code += f"""
import inspect
from flexref.backend.protocol import Backend
for name in {names}:
    mine, asked = getattr(B, name), getattr(Backend, name)
    assert inspect.signature(mine) == inspect.signature(asked), name
    assert inspect.getdoc(mine) == inspect.getdoc(asked), name
    count = len(inspect.signature(mine).parameters) - 1
    try:
        kinds = inspect.signature(mine).parameters.values()
        mine(port, *[None for part in list(kinds)[1:] if part.kind is not part.KEYWORD_ONLY])
    except NotImplementedError as error:
        assert str(error).startswith(name + ": "), error
        assert str(error).partition(": ")[2][:40] in " ".join(asked.__doc__.split()), error
    else:
        raise AssertionError(name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert inspect.isfunction(Backend.linear)


def test_what_is_written_is_clean_and_is_tested_by_its_own_test_file(tmp_path: Path) -> None:
    paths = new_backend("mine", str(tmp_path))
    sources = [path for path in paths if path.endswith(".py")]
    ruff = [sys.executable, "-m", "ruff"]
    settings = ["--config", str(Path(__file__).parents[2] / "pyproject.toml")]
    subprocess.run([*ruff, "check", *settings, "--ignore", "I001", *sources], check=True)
    subprocess.run([*ruff, "format", "--check", *settings, *sources], check=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "describes", "tests"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout
    assert "NotImplementedError: describe: The port's devices" in done.stdout


@pytest.mark.parametrize("there", ["pyproject.toml", "flexref_mine/backend.py", "tests/test_contract.py"])
def test_nothing_that_is_there_is_replaced_and_then_nothing_is_written(there: str, tmp_path: Path) -> None:
    path = tmp_path / there
    path.parent.mkdir(exist_ok=True)
    path.symlink_to("nowhere")
    with pytest.raises(StorageError, match="nothing is replaced"):
        new_backend("mine", str(tmp_path))
    assert [one for one in tmp_path.rglob("*") if not one.is_dir()] == [path]


@pytest.mark.parametrize("name", ["numpy", "class", "Mine", "my-gpu", "9x", "", "a" * 41, "../x", "mïne", "_x", "x_"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(WrongCall):
        check_name(name)


@given(st.from_regex("[a-z]([a-z0-9_]{0,20}[a-z0-9])?", fullmatch=True).map(lambda name: f"p_{name}"))
def test_every_identifier_in_small_letters_is_a_name(name: str) -> None:
    check_name(name)
