"""The recipe for a port of one's own works as printed: its test file, word for word, on a port of another name."""

import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import flexref.testing
from flexref.backend.capabilities import Capabilities
from flexref.units import DTYPE_BYTES

README = Path(flexref.testing.__file__).with_name("README.md")
PORTS = Path(__file__).parents[2] / "backends" / "README.md"


def run_recipe(folder: Path, port: str) -> subprocess.CompletedProcess[str]:
    """Run the test file of the recipe, some clauses of it, on a port of this source."""
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (folder / "test_my_port.py").write_text(re.sub(r"(?m)^   ", "", block), encoding="utf-8")
    (folder / "my_port.py").write_text(port, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "gather or frames"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)


def test_the_recipe_begins_with_check_and_names_what_a_port_needs_to_know() -> None:
    """A type, a capability or a file that is new has to be told of."""
    text = README.read_text(encoding="utf-8")
    assert 0 < text.index("flexref check --backend mine") < text.index("import pytest")
    for name in (*DTYPE_BYTES, *(entry.name for entry in fields(Capabilities))):
        assert f"`{name}`" in text, name
    for name in ("records.py", "workspace.py", "quant.py", "protocol.py"):
        assert name in text


def test_the_recipe_passes_a_right_port(tmp_path: Path) -> None:
    result = run_recipe(tmp_path, "from flexref_numpy import NumpyBackend as MyBackend\n")
    assert result.returncode == 0, result.stdout
    assert "3 passed" in result.stdout


def test_the_recipe_fails_a_wrong_port(tmp_path: Path) -> None:
    wrong = """
    from contextlib import nullcontext
    from flexref_numpy import NumpyBackend

    class MyBackend(NumpyBackend):
        def frame(self):
            return nullcontext()
    """
    result = run_recipe(tmp_path, re.sub(r"(?m)^    ", "", wrong))
    assert result.returncode == 1, result.stdout
    assert "frames_give_back" in result.stdout


def test_the_wrong_port_that_is_shown_is_told_of_in_the_line_that_is_shown(tmp_path: Path) -> None:
    """Figures aside: they depend on the processor."""
    shown = PORTS.read_text(encoding="utf-8")
    (port,) = re.findall(r"```python\n( +from flexref_numpy.*?)```", shown, re.DOTALL)
    (line,) = re.findall(r"```text\n +(flexref: .*?)\n +```", shown, re.DOTALL)
    (tmp_path / "my_port.py").write_text(re.sub(r"(?m)^   ", "", port), encoding="utf-8")
    about = tmp_path / "my_port-0.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my-port\nVersion: 0.1\n")
    (about / "entry_points.txt").write_text("[flexref.backends]\nmine = my_port:MyBackend\n")
    call = ("-m", "flexref", "check", "--backend", "mine", "--model", "demo", "--no-contract")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run([sys.executable, *call], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    told, expected = (re.sub(r"[0-9.e+-]+", "#", text) for text in (done.stderr.splitlines()[-1], line))
    assert told == expected
