"""A disk that fails or fills while files are written or read: one clear line and nothing left, whichever call it is."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flexref.storage.names import resolve

WRITE = """
import sys
from pathlib import Path
import numpy as np
from flexref.architecture.spec import ModelSpec
from flexref.errors import StorageError
from flexref.storage.weightfile import open_weight_file
from flexref.storage.writer import WeightFileWriter

folder, armed = map(Path, sys.argv[1:])
spec = ModelSpec("tiny", 150, 6, 64, 64, 2, 4, 128)
armed.touch()
try:
    with WeightFileWriter(folder / "model.h5", spec, "int4", 64, "float16", b"{}") as writer:
        for tensor in writer.tensors:
            writer.write(tensor.name, np.ones(tensor.shape, np.float32))
except StorageError as error:
    print(error)
    raise SystemExit(3)
"""

CALLS = 90
"""More calls than a file of this model takes: from some number on nothing fails any more."""


@pytest.fixture(scope="session")
def failing_calls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler to make calls of the operating system fail with")
    library = tmp_path_factory.mktemp("failing") / "failing_calls.so"
    source = Path(__file__).with_name("failing_calls.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


def write_with_failure(library: Path, folder: Path, at: int, error: str) -> subprocess.CompletedProcess[str]:
    """Write a file in a process of its own, whose calls fail from number `at` on."""
    armed = folder.parent / f"{folder.name} armed"
    environment = {**os.environ, "LD_PRELOAD": str(library), "FAIL_AT": str(at), "FAIL_WITH": error}
    environment["FAIL_FILE"] = str(armed)
    command = [sys.executable, "-c", WRITE, str(folder), str(armed)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
def test_whichever_call_fails_it_is_one_line_and_leaves_the_older_file(
    failing_calls: Path, tmp_path: Path, error: str
) -> None:
    said = {"ENOSPC": "No space left on device", "EIO": "Input/output error"}[error]
    failed = 0
    for at in (1, 2, 3, 5, 8, 13, 21, 34, 55, CALLS):
        folder = tmp_path / str(at)
        folder.mkdir()
        (folder / "model.h5").write_bytes(b"an older file")
        done = write_with_failure(failing_calls, folder, at, error)
        assert done.stderr == ""
        assert [path.name for path in folder.iterdir()] == ["model.h5"]
        if done.returncode == 0:
            assert (folder / "model.h5").stat().st_size > 4096
            break
        failed += 1
        assert done.returncode == 3
        assert done.stdout == f"cannot write {folder}/model.h5: {said}\n"
        assert (folder / "model.h5").read_bytes() == b"an older file"
    assert failed >= 3
    assert done.returncode == 0, "no write came to its end: CALLS is too small"


def test_a_disk_that_fails_while_metadata_is_read_is_one_plain_line(failing_calls: Path, tmp_path: Path) -> None:
    (tmp_path / "read.h5").write_bytes(Path(resolve("demo")).read_bytes())
    command = [sys.executable, "-m", "flexref", "inspect", str(tmp_path / "read.h5")]
    for at in (1, 3, 4, 5, 8, 12):
        environment = {**os.environ, "LD_PRELOAD": str(failing_calls), "FAIL_AT": str(at), "FAIL_READS": "/read.h5"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.stderr == f"flexref: cannot read {tmp_path}/read.h5: Input/output error\n", at
        assert (done.returncode, done.stdout) == (1, "")


WRITE_OUTPUT = """
import sys
from pathlib import Path
from flexref.errors import StorageError
from flexref.files import write_text

path, armed = map(Path, sys.argv[1:])
armed.touch()
try:
    write_text(path, "new" * 100_000)
except StorageError as error:
    print(error)
    raise SystemExit(3)
"""


def test_a_disk_that_is_full_tears_no_output(failing_calls: Path, tmp_path: Path) -> None:
    path, armed = tmp_path / "folder" / "policy.json", tmp_path / "armed"
    path.parent.mkdir()
    codes = []
    for at in range(1, 6):
        path.write_text("older")
        armed.unlink(missing_ok=True)
        environment = {**os.environ, "LD_PRELOAD": str(failing_calls), "FAIL_AT": str(at), "FAIL_FILE": str(armed)}
        command = [sys.executable, "-c", WRITE_OUTPUT, str(path), str(armed)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        codes.append(done.returncode)
        assert done.stderr == ""
        assert [entry.name for entry in path.parent.iterdir()] == ["policy.json"]
        if done.returncode:
            assert done.stdout == f"cannot write {path}: No space left on device\n"
            assert path.read_text() in ("older", "new" * 100_000)  # the latter where only the folder was not synced
    assert codes[0] == 3
    assert codes[-1] == 0
