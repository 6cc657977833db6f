"""Batch jobs that are killed, torn and let down by the operating system, in short; none of it is overlooked."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from hostile_batch_run.calls import FailingCalls, InjectedError  # noqa: E402
from hostile_batch_run.plan import BUG, CALLS, MEMORY, READS, SYNCS, WRITES, Plan  # noqa: E402
from hostile_batch_run.work import complaints  # noqa: E402
from hostile_run.trial import HUNG, Ran  # noqa: E402


@pytest.mark.parametrize(
    "arguments",
    [
        ("kills", "--kills", "2", "--lines", "24"),
        ("torn", "--jobs", "1", "--every", "150", "--lines", "8"),
        ("faults", "--cases", "6"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_job_ends_with_the_same_files_whatever_is_done_to_it(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "hostile_batch"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed" not in done.stdout


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(64)))
    descriptor = os.open(path, os.O_RDWR)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls are themselves again after the test."""
    for name in (name for names in CALLS.values() for name in names):
        monkeypatch.setattr(os, name, getattr(os, name))


@pytest.mark.usefixtures("calls")
def test_a_call_fails_as_it_is_planned_to_and_no_other_does(file: int) -> None:
    FailingCalls(Plan(READS, "flip", 2, 1, seed=3)).install()
    whole = bytes(range(64))
    read = [os.pread(file, 64, 0) for _ in range(3)]
    changed = int.from_bytes(read[1], "big") ^ int.from_bytes(whole, "big")
    assert (read[0], read[2], changed.bit_count()) == (whole, whole, 1)
    into = bytearray(64)
    FailingCalls(Plan(READS, "short", 1)).install()
    assert os.preadv(file, [into], 0) == 32
    FailingCalls(Plan(READS, "nothing", 1)).install()
    assert os.pread(file, 64, 0) == b""
    FailingCalls(Plan(WRITES, "flip", 1)).install()
    assert os.pwritev(file, [memoryview(bytes(64))], 0) == 64
    assert int.from_bytes(os.pread(file, 64, 0), "big").bit_count() == 1
    FailingCalls(Plan(WRITES, "short", 1)).install()
    assert os.pwrite(file, b"abcd", 0) == 2
    failing = FailingCalls(Plan(SYNCS, "ENOSPC", 2, 2))
    failing.install()
    for number in range(1, 5):
        if number in (2, 3):
            with pytest.raises(OSError, match="No space left") as raised:
                os.fdatasync(file)
            assert raised.value.errno == errno.ENOSPC
        else:
            os.fsync(file)
    assert failing.counts == {SYNCS: 4}
    for fault, error in ((MEMORY, MemoryError), (BUG, InjectedError)):
        FailingCalls(Plan(WRITES, fault, 1)).install()
        with pytest.raises(error):
            os.pwritev(file, [b"abcd"], 0)


@pytest.mark.parametrize(
    ("code", "said", "may_refuse", "found"),
    [
        (0, b"", False, None),
        (0, b"a notice\n", True, None),
        (1, b"a notice\nflexref: cannot read x: Input/output error\n", True, None),
        (1, b"flexref: cannot read x\n", False, "it ended with 1"),
        (1, b"flexref: one\nflexref: two\n", True, "not one line"),
        (1, b"", True, "not one line"),
        (70, b"Traceback (most recent call last):\nflexref: this is a bug in flexref\n", True, "it ended with 70"),
        (0, b"Exception in thread x\n", True, "it shows"),
        (HUNG, b"", True, "it hung"),
        (-9, b"", True, "it ended with -9"),
    ],
)
def test_an_end_that_is_not_in_order_is_a_fault(code: int, said: bytes, may_refuse: bool, found: str | None) -> None:
    ran = Ran(["batch"], code, b"", said, 0.0, 0)
    told = " ".join(complaints(ran, may_refuse=may_refuse))
    assert found in told if found else not told
