"""The process around a command: closed streams, readers that leave, signals, and what it imports."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flexref.policy import Policy


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """`line` run by a shell, in which F is the command."""
    return subprocess.run(
        ["bash", "-c", f'F() {{ "{sys.executable}" -m flexref "$@"; }}; {line}'],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_file_that_is_not_there_is_a_failure() -> None:
    assert shell("F inspect /nowhere.h5").returncode == 1


@pytest.mark.parametrize("call", ["--help", "inspect demo", "inspect demo --json", "verify demo"])
def test_closed_streams_are_told_of_or_lead_nowhere(call: str) -> None:
    done = shell(f"F {call} >&-")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "standard output is closed" in done.stderr
    assert shell(f"F {call} 2>&- <&-").returncode == 0


@pytest.mark.parametrize(
    "call",
    [
        *("--help", "--version", "inspect demo"),
        "plan -q --model tiny --machine t4-gcp --prompt-len 8 --gen-len 4 --rows 4",
    ],
)
def test_a_reader_that_takes_nothing_makes_141_of_every_output(call: str) -> None:
    done = shell(f"(sleep 0.1; F {call}) | true; exit ${{PIPESTATUS[0]}}")
    assert (done.returncode, done.stderr) == (141, "")


def test_names_that_are_no_utf8_are_shown_on_a_strict_stdout(tmp_path: Path) -> None:
    done = shell(f"cd {tmp_path}; PYTHONIOENCODING=utf-8:strict F inspect $'\\xff.h5'")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("presses", [1, 3])
def test_signals_end_a_command_with_their_code_and_no_traceback(number: int, presses: int) -> None:
    code = "import signal; from flexref.cli import main as m; m.run = lambda *a: (print('on', flush=True), wait())[0]\n"
    code += "import time\ndef wait():\n    while True:\n        try:\n            time.sleep(9)\n"
    code += f"        except KeyboardInterrupt:\n            if {presses} == 1: raise\n"
    code += "            print('again', flush=True)\n"
    process = subprocess.Popen([sys.executable, "-c", code + "m.main()"], stdout=-1, stderr=-1, text=True)
    assert process.stdout is not None
    for _ in range(presses):
        process.stdout.readline()
        process.send_signal(number)
        time.sleep(0.02)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "call",
    [
        "generate --model demo --prompt King --max-new-tokens 2 --policy POLICY",
        "generate --model demo --prompt King --max-new-tokens 2 --percent 100 0 100 0 100 0",
        "generate --model demo --prompt King --max-new-tokens 2",
        "eval --model demo --text TEXT --percent 100 0 100 0 100 0",
        "compare-models demo demo --text TEXT",
        "info",
        "models",
        "schema plan",
        "inspect demo",
        "verify demo",
        "bench --list",
        "generate --model demo --prompt x --temperature -1",
        "generate --model demo --max-tokens 3",
        "plan --model nonsense --prompt-len 8 --gen-len 8 --machine t4-gcp",
        "--help",
        "plan -h",
    ],
)
def test_what_solves_no_program_loads_no_scipy(call: str, tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text(Policy().to_json())
    (tmp_path / "text.txt").write_text("But soft, what light through yonder window breaks?")
    call = call.replace("POLICY", str(tmp_path / "policy.json")).replace("TEXT", str(tmp_path / "text.txt"))
    # numba loads scipy for itself: the port of it is as good as not installed here.
    code = "import sys; sys.modules['numba'] = None; from flexref.cli.main import COMMANDS, command_group, run; "
    code += "run(command_group(COMMANDS), sys.argv[1:]); print('loaded:', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *call.split()], capture_output=True, text=True, check=True)
    assert "scipy" not in done.stdout.partition("loaded:")[2].split()


@pytest.mark.parametrize("call", ["", "generate --nothing", "generate", "inspect /nowhere.h5"])
def test_a_complaint_that_cannot_be_written_leaves_the_exit_code_as_it_is(call: str) -> None:
    code = 1 if "nowhere" in call else 2
    assert shell(f"F {call} 2>/dev/full").returncode == code
    assert shell(f"(sleep 0.1; F {call}) 2>&1 >/dev/null | true; exit ${{PIPESTATUS[0]}}").returncode == code
