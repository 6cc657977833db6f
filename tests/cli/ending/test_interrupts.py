"""Ctrl-C at a command: one line that says so, the exit code that shells know, and no traceback; twice, too."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from flexref.architecture.spec import ModelSpec
from flexref.check.models import write_model
from flexref.cli.main import INTERRUPTED

SLOW = ModelSpec("slow", 2048, 2048, 128, 512, 8, 4, 128)
"""Takes seconds for the tokens that are asked for here."""
BENCH = (
    *("bench", "--model", "tiny", "--rows", "4", "--gen-len", "4", "--prompt-len", "16", "--repeat", "9999", "--json"),
    *("-v", "--percent", "50", "50", "0", "100", "0", "100"),
)


def interrupted(arguments: Sequence[str], presses: int, errors: bool, until: str) -> tuple[int, str, str]:
    """Run a command and press Ctrl-C when it has said `until`, on stderr or stdout; (exit code, stdout, stderr)."""
    code = "import sys; from flexref.cli.main import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    stream = process.stderr if errors else process.stdout
    assert stream is not None
    said = ""
    while until not in said and process.poll() is None:
        said += stream.read(1)
    for _ in range(presses):
        process.send_signal(signal.SIGINT)
        time.sleep(0.002)
    out, err = process.communicate(timeout=60)
    return process.returncode, ("" if errors else said) + out, (said if errors else "") + err


@pytest.mark.parametrize("presses", [1, 2])
def test_generate_says_that_it_was_interrupted(tmp_path: Path, presses: int) -> None:
    write_model(tmp_path / "model.h5", SLOW)
    arguments = ("generate", "--model", str(tmp_path / "model.h5"), "--input", str(tmp_path / "prompts.jsonl"))
    (tmp_path / "prompts.jsonl").write_text('{"prompt": [1, 2, 3]}\n')
    places = ("--percent", *("0", "50", "0", "100", "0", "100"), "--disk-dir", str(tmp_path))
    code, out, err = interrupted((*arguments, *places, "--max-new-tokens", "1500"), presses, False, until=" ")
    assert len(out.split()) < 1500
    if presses == 1:
        assert code == INTERRUPTED
        assert err.splitlines()[-1] == "flexref: interrupted"
        assert "Traceback" not in err
    else:  # the second may come when the first has been told of, and ends the process as it stands; shells say 130 too
        assert code in (INTERRUPTED, -signal.SIGINT)


def test_a_benchmark_reports_the_runs_that_ended() -> None:
    code, out, err = interrupted(BENCH, 1, True, until="run 3 of 9999\n")
    assert code == INTERRUPTED
    assert err.splitlines()[-1] == "flexref: interrupted"
    assert "Traceback" not in err
    found = json.loads(out)
    assert found["cut_short"].startswith("interrupted in run")
    assert len(found["runs"]) >= 2
