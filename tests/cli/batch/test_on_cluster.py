"""`flexref batch --scheduler`: what it refuses, and that Ctrl-C on a terminal pauses it without a word from Dask."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from flexref.cli.main import COMMANDS, command_group, run
from flexref.errors import JobPaused

pytest.importorskip("distributed")


def job_of(folder: Path, count: int) -> list[str]:
    """Write so many lines; the arguments of a job that answers them."""
    lines = [json.dumps({"prompt": "The king", "max_new_tokens": 400}) for _ in range(count)]
    (folder / "in.jsonl").write_text("\n".join(lines))
    return ["batch", str(folder / "in.jsonl"), "-o", str(folder / "out.jsonl"), "--model", "demo"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--scheduler", "local:none"], "--scheduler must be an address such as tcp://10.0.0.1:8786, or local:N"),
        (["--blas-threads", "2"], "--blas-threads belongs to --scheduler"),
        (["--scheduler", "local:2", "-o", "-"], "--scheduler needs an input and an output that are files"),
    ],
)
def test_what_cannot_be_asked_of_a_cluster_is_a_wrong_call(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command_group(COMMANDS), [*job_of(tmp_path, 1), *options]) == 2
    assert said in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["in.jsonl"]


def test_ctrl_c_pauses_the_job_and_no_worker_says_a_word(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flexref", *job_of(tmp_path, 2000), "--scheduler", "local:2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as client:
        assert client.stderr is not None
        said = [client.stderr.readline()]
        os.killpg(client.pid, signal.SIGINT)
        said += client.stderr.readlines()
        assert client.wait() == 0, "".join(said)
    assert "2 workers at work" in said[0] or "1 worker at work" in said[0]
    assert said[-1].startswith("paused (SIGINT): ")
    assert "resume with: flexref batch " in said[-1]
    assert "Traceback" not in "".join(said)
    assert [
        line for line in said[1:-1] if not line.startswith(("worker: ", "pause: ")) and " tokens/s" not in line
    ] == []


@contextmanager
def swallowing(scheduler: str, blas_threads: int) -> Iterator[None]:
    """Dask, where it happens to be in a callback in which nothing can be raised."""
    with suppress(JobPaused, KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    yield


def test_ctrl_c_that_dask_swallows_while_it_starts_acts_when_it_has_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("flexref.batch_job.cluster.local.connected", swallowing)
    assert run(command_group(COMMANDS), [*job_of(tmp_path, 1), "--scheduler", "local:1"]) == 130
    assert capsys.readouterr().err == "flexref: interrupted\n"
    assert os.listdir(tmp_path) == ["in.jsonl"]
