"""A conversion that is ended from outside, however, leaves nothing: real processes, and real signals."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

NEVER_WHOLE = """
import time
from flexref.files import NewFile
NewFile.publish = lambda file: time.sleep(600)
from flexref.cli.main import main
main()
"""
"""The command, which waits before the new file gets its name: it never ends before it is ended."""


def writes_into(process: "subprocess.Popen[str]", folder: Path) -> bool:
    """Whether the process has a file of the folder open: the one in the making, which has no name."""
    try:
        descriptors = list(Path(f"/proc/{process.pid}/fd").iterdir())
        return any(os.readlink(descriptor).startswith(f"{folder}/") for descriptor in descriptors)
    except FileNotFoundError:  # closed meanwhile
        return False


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="what a process has open is looked up in /proc")
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("times", [1, 2])
def test_a_conversion_that_is_ended_leaves_the_older_file_and_no_other(
    tmp_path: Path, sent: signal.Signals, times: int
) -> None:
    out = tmp_path / "out.h5"
    out.write_text("older")
    command = [sys.executable, "-c", NEVER_WHOLE, "convert", "demo", str(out), "--force", "--quantize", "int4-mse"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not writes_into(process, tmp_path) and process.poll() is None:
        time.sleep(0.002)
    assert process.poll() is None, "it was to be ended while it wrote"
    for _ in range(times):
        process.send_signal(sent)
        time.sleep(0.005)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert out.read_text() == "older"
    assert os.listdir(tmp_path) == ["out.h5"]
