"""A real `flexref generate` that is ended by signals wherever it is, or that gets no threads or no memory."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

EVERYWHERE = ("--percent", *("20", "40", "0", "50", "0", "50"))
TOO_SMALL = ("--device-mem-gib", "0.02")
"""Not all fits on the device, so that the machine is measured."""

STAGES = {
    "loading": ("port numpy", EVERYWHERE),
    "measuring": ("this machine is measured once", TOO_SMALL),
    "prefill": ("block 1 begins", EVERYWHERE),
    "decode": (None, EVERYWHERE),
}
"""What is said on stderr when a stage begins (None: text on stdout), and the options that lead there."""

INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


@pytest.mark.parametrize(
    ("stage", "numbers"),
    [
        ("loading", (INT,)),
        ("loading", (HUP, HUP)),
        ("measuring", (TERM,)),
        ("measuring", (INT, INT)),
        ("prefill", (HUP,)),
        ("prefill", (TERM, TERM)),
        ("decode", (INT,)),
        ("decode", (TERM, INT)),
    ],
)
def test_a_job_ends_in_order_wherever_a_signal_meets_it(stage: str, numbers: tuple[int, ...], tmp_path: Path) -> None:
    until, options = STAGES[stage]
    spill, cache = tmp_path / "spill", tmp_path / "cache"
    spill.mkdir()
    (tmp_path / "long.jsonl").write_text(json.dumps({"prompt": [5 + at % 400 for at in range(200)]}))
    call = ["generate", "-v", "--model", "demo", "--input", str(tmp_path / "long.jsonl"), "--max-new-tokens", "300"]
    process = subprocess.Popen(
        [sys.executable, "-m", "flexref", *call, "--ignore-eos", "--disk-dir", str(spill), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "FLEXREF_CACHE_DIR": str(cache)},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    said = ""
    if until is None:
        assert process.stdout.read(1)
    while until is not None and until not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.02)
    _, rest = process.communicate(timeout=60)
    said += rest
    # A second one may come when all is done and said, and the interpreter has given the signals back.
    allowed = {128 + numbers[0], *(-number for number in numbers[1:])}
    assert process.returncode in allowed, said
    assert said.splitlines()[-1] == "flexref: interrupted"
    assert sum(line.startswith("flexref: ") for line in said.splitlines()) == 1
    assert "Traceback" not in said
    assert os.listdir(spill) == []
    assert [path for path in cache.rglob("*") if path.is_file()] == []


REFUSING = """
import sys, threading
allowed, start = int(sys.argv.pop(1)), threading._start_new_thread
def start_or_refuse(*arguments, **options):
    global allowed
    allowed -= 1
    if allowed < 0:
        raise RuntimeError("can't start new thread")
    return start(*arguments, **options)
threading._start_new_thread = start_or_refuse
from flexref.cli.main import main
main()
"""


@pytest.mark.parametrize("allowed", [0, 1, 3, 5])
def test_threads_that_are_not_to_be_had_are_one_line(allowed: int, tmp_path: Path) -> None:
    call = ("generate", "--model", "demo", "--prompt", "x", "--max-new-tokens", "1", "--disk-dir", str(tmp_path))
    command = [sys.executable, "-c", REFUSING, str(allowed), *call, *EVERYWHERE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == "flexref: the system refuses threads or memory: can't start new thread\n"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "call", ["generate --model demo --prompt x", "plan --model tiny --machine t4-gcp", "inspect demo"]
)
@pytest.mark.parametrize("kibibytes", [60_000, 100_000, 300_000])
def test_too_little_address_space_is_one_line(call: str, kibibytes: int) -> None:
    """With 300,000 KiB a library asked for memory for ever and heard no signal, with 100,000 there was a traceback."""
    line = f'ulimit -v {kibibytes}; exec "{sys.executable}" -m flexref {call}'
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("flexref: this process may have ")
    assert done.stderr.endswith("of address space (ulimit -v), needed at least 512.00 MiB\n")


def test_a_job_that_needs_more_address_space_than_there_is_ends_with_one_line() -> None:
    call = "bench --model 1.3b --rows 1 --gen-len 2 --percent 100 0 100 0 100 0 --device-mem-gib 100"
    line = f'ulimit -v 1500000; exec "{sys.executable}" -m flexref {call}'
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("flexref: ")
