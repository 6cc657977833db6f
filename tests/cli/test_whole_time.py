"""The whole time of a command, from the start of its process, as every command that times jobs prints it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.cli.main import COMMANDS, command_group, run
from flexref.cli.process import START_AFTER_NAME, Begun, process_age_ns
from flexref.engine.wall import PARTS

GENERATE = ("generate", "--model", "demo", "--prompt", "The king", "--max-new-tokens", "2")
BENCH = ("bench", "--model", "tiny", "--prompt-len", "4", "--gen-len", "2", "--rows", "1", "--repeat", "2")

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
"""The kernel knows no better when a process began."""

ROUNDING_S = 1e-9


@pytest.fixture
def evaluate(tmp_path: Path) -> tuple[str, ...]:
    (tmp_path / "text").write_text("The king said to his servant that it was late.")
    return ("eval", "--model", "demo", "--text", str(tmp_path / "text"))


def check(found: dict[str, Any], begins: str, most_s: float) -> None:
    parts = found["wall_parts_s"]
    assert tuple(parts) == PARTS
    assert min(parts.values()) >= 0
    assert abs(sum(parts.values()) - found["wall_s"]) < ROUNDING_S
    assert found["wall_begins"] == begins
    assert 0 < found["wall_s"] <= most_s
    assert parts["imports"] > 0
    assert parts["prefill"] > 0


def test_it_begins_with_the_process() -> None:
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "flexref", *GENERATE, "--json"], capture_output=True, check=True)
    check(json.loads(done.stdout)["stats"], "process", time.perf_counter() - start + TICK_S)


@pytest.mark.parametrize("command", ["generate", "eval", "bench"])
def test_in_a_process_that_did_other_things_it_begins_with_the_command(
    command: str, evaluate: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = {"generate": GENERATE, "eval": evaluate, "bench": BENCH}[command]
    start = time.perf_counter()
    assert run(command_group(COMMANDS), [*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    check(found if command == "bench" else found["stats"], "command", time.perf_counter() - start)
    if command == "bench":
        assert sum(one["wall_s"] for one in found["runs"]) < found["wall_s"]
        assert found["wall_parts_s"]["machine"] > 0


def test_people_see_it_in_every_table(evaluate: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (GENERATE, evaluate, BENCH):
        assert run(command_group(COMMANDS), arguments) == 0
        told = capsys.readouterr()
        assert (told.out + told.err).count(" s since the command began") == 1
        assert "imports" in told.out + told.err


@given(name=st.binary(min_size=1, max_size=15), ago_s=st.integers(0, 60))
def test_the_start_is_found_after_any_name(tmp_path_factory: pytest.TempPathFactory, name: bytes, ago_s: int) -> None:
    status = tmp_path_factory.getbasetemp() / "stat"
    began = int(time.clock_gettime(time.CLOCK_BOOTTIME) / TICK_S) - round(ago_s / TICK_S)
    fields = [b"7"] * 50
    fields[START_AFTER_NAME] = b"%d" % began
    status.write_bytes(b"1 (" + name + b") " + b" ".join(fields))
    age_ns = process_age_ns(status)
    assert age_ns is not None
    assert age_ns >= ago_s * 10**9
    begun = Begun.with_process(status)
    assert begun.what == "process"
    assert begun.at_ns <= time.perf_counter_ns() - ago_s * 10**9


@pytest.mark.parametrize(
    "status", [None, b"", b"1 (python) R 1", b"1 (python) " + b"x " * 50, b"1 (a) " + b"99999999999999 " * 50]
)
def test_where_the_system_does_not_tell_it_begins_with_the_command(tmp_path: Path, status: bytes | None) -> None:
    """Also where it tells of a start that is still to come."""
    if status is not None:
        (tmp_path / "stat").write_bytes(status)
    before = time.perf_counter_ns()
    begun = Begun.with_process(tmp_path / "stat")
    assert begun.what == "command"
    assert begun.at_ns >= before


def test_what_a_job_does_not_need_is_not_imported() -> None:
    """A job that fits on its device is planned without the planner's program."""
    code = "import sys, flexref\nwith flexref.load('demo') as engine:\n    engine.generate([[5]], max_new_tokens=1)\n"
    code += "print(*sorted(name for name in sys.modules if name.startswith(('flexref.planner', 'scipy'))))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.split()
    assert "flexref.planner.plain_choice" in found
    assert not [name for name in found if name.startswith(("flexref.planner.program", "scipy"))]
