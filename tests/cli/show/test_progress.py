"""Progress: a bar on a terminal, plain lines at growing intervals elsewhere, nothing where errors alone are wanted."""

import itertools
import json
import logging
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from flexref.cli.logs import logging_at
from flexref.cli.main import COMMANDS, command_group, run
from flexref.cli.show import displays
from flexref.cli.show.displays import FIRST_S, LONGEST_S, PlainLines
from flexref.cli.show.progress import Progress, progress
from flexref.cli.show.stage import BYTES, WorkStage
from flexref.engine.events import Notice, WeightsLoaded
from flexref.errors import duration


class Clock:
    """A clock that goes as it is told."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def lines_of(clock: Clock) -> tuple[PlainLines, list[str]]:
    """Plain lines on that clock, and what is written; no thread writes any."""
    said: list[str] = []
    shown = PlainLines(said.append, clock)
    shown._thread = threading.current_thread()
    return shown, said


def test_what_is_short_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("converting", unit=BYTES) as shown:
        shown.reach(1, 2)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_shows_what_is_done_on_stderr(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with progress("converting", unit=BYTES) as shown:
        shown.reach(3 << 20, 4 << 20)
    said = capsys.readouterr()
    assert said.out == ""
    assert "converting" in said.err
    assert "3.0/4.0 MiB" in said.err


def test_a_terminal_shows_one_stage_after_another(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with progress("preparing") as shown:
        shown.note("the first of all")
        shown.begin("windows", 7, "windows")
        shown(WeightsLoaded(1 << 20, 2 << 20))
        shown(WeightsLoaded(2 << 20, 2 << 20))
        shown.advance(3)
    said = capsys.readouterr().err
    for expected in ("preparing", "the first of all", "loading weights", "2.0/2.0 MiB", "windows", "3/7"):
        assert expected in said


def test_lines_come_at_growing_intervals_and_never_stop() -> None:
    clock = Clock()
    shown, said = lines_of(clock)
    shown.begin(WorkStage("planning", clock.now_s))
    start_s, at = clock.now_s, []
    while clock.now_s - start_s < 400:
        before = len(said)
        wait_s = shown.write_due()
        if len(said) > before:
            at.append(clock.now_s - start_s)
        assert 0 < wait_s <= LONGEST_S
        clock.now_s += wait_s
    assert at[:6] == [5, 10, 20, 40, 80, 140]
    assert at[0] == FIRST_S
    assert max(later - earlier for earlier, later in itertools.pairwise(at)) == LONGEST_S
    assert said[0] == "planning, 5 s so far"


def test_a_line_tells_how_fast_it_goes_and_how_long_the_rest_takes() -> None:
    clock = Clock()
    shown, said = lines_of(clock)
    work = Progress("preparing", shown, clock)
    work.begin("tokens", 40, "tokens", lambda: "pass 3")
    work.advance(10)
    clock.now_s += 5
    shown.write_due()
    assert said == ["tokens: 10 of 40, pass 3, 2 tokens/s, 15 s left"]


def test_loading_stands_in_for_the_stage_it_is_inside_of() -> None:
    clock = Clock()
    shown, said = lines_of(clock)
    work = Progress("preparing", shown, clock)
    work.begin("tokens", 40, "tokens")
    work(Notice("is logged by whoever tells it"))
    work(WeightsLoaded(1 << 30, 4 << 30))
    clock.now_s += 5
    shown.write_due()
    work(WeightsLoaded(4 << 30, 4 << 30))
    work.advance(20)
    clock.now_s += 10
    shown.write_due()
    assert said == [
        "loading weights: 1.00 GiB of 4.00 GiB, 204.80 MiB/s, 15 s left",
        "tokens: 20 of 40, 2 tokens/s, 10 s left",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (3840, "1 h 4 min"), (9e4, "25 h 0 min")],
)
def test_durations_have_two_units_at_most(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_where_errors_alone_are_wanted_nothing_is_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with logging_at(logging.ERROR), progress("converting", 3) as shown:
        shown.advance()
    assert capsys.readouterr() == ("", "")


def test_a_thread_that_is_not_to_be_had_is_told_and_ends_no_work(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with caplog.at_level(logging.INFO, "flexref"), progress("converting", 3) as shown:
        shown.advance()
    assert caplog.messages == ["no progress is shown: can't start new thread"]


PLACED = ("generate", "eval", "compare-models", "check", "bench")

SLOW = """
import sys, time
from flexref.cli.show import displays
displays.FIRST_S = 0.1
from flexref.cli.show.progress import progress
with progress("tokens", 100, "tokens") as shown:
    for _ in range(10):
        shown.advance()
        time.sleep(0.1)
    print("text", flush=True)
    shown.stop()
    time.sleep(1.5)
"""


@pytest.mark.parametrize("one_file", [False, True])
def test_a_process_without_a_terminal_says_some_lines_and_none_inside_its_text(one_file: bool) -> None:
    err = subprocess.STDOUT if one_file else subprocess.PIPE
    done = subprocess.run([sys.executable, "-c", SLOW], stdout=subprocess.PIPE, stderr=err, text=True, check=True)
    before, _, after = done.stdout.partition("text\n")
    lines = (before if one_file else done.stderr).splitlines()
    assert 2 <= len(lines) <= 8
    assert all(line.startswith("tokens: ") and line.endswith(" left") for line in lines)
    assert after == ""


COMMAND = """
from flexref.cli.show import displays
displays.FIRST_S = displays.LONGEST_S = 0.05
from flexref.cli.main import main
main()
"""

LONG_COMMANDS = {
    "generate --model demo --prompt King --max-new-tokens 40 --ignore-eos --json": "tokens: ",
    "eval --model demo --text TEXT --json": "windows: ",
    "compare-models demo demo --text TEXT --json": "windows: ",
    "check --backend numpy --model demo --no-contract --max-new-tokens 2 --json": "checking the port, pass ",
    "bench --model tiny --prompt-len 64 --gen-len 16 --rows 32 --json": "run 1 of 1, ",
    "plan --model 125m --machine t4-gcp --prompt-len 16 --gen-len 4 --rows 4 --json": "planning 125m on ",
    "compare-machines --model 125m --machine t4-gcp --prompt-len 16 --gen-len 4 --rows 4 --json": "planning: 0 of 1, ",
    "convert demo OUT --quantize int4-mse --json": "converting: ",
}
"""Commands that may take long, and how a line begins that tells of what takes longest."""


@pytest.mark.parametrize("call", LONG_COMMANDS)
def test_every_long_command_tells_where_it_is_and_keeps_that_from_its_result(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text("But soft, what light through yonder window breaks? It is the east. " * 40)
    begin = LONG_COMMANDS[call]
    call = call.replace("TEXT", str(tmp_path / "text")).replace("OUT", str(tmp_path / "out.h5"))
    placed = ["--percent", *("100", "0") * 3] if call.split()[0] in PLACED else []
    monkeypatch.setattr(displays, "FIRST_S", 0.05)
    monkeypatch.setattr(displays, "LONGEST_S", 0.05)
    assert run(command_group(COMMANDS), [*call.split(), *placed]) == 0
    out, err = capfd.readouterr()
    assert any(line.startswith(begin) for line in err.splitlines()), err
    json.loads(out)


def test_a_long_command_in_a_process_of_its_own_does_the_same() -> None:
    """This session's quick profiles are over at once; a user's is not."""
    command = [sys.executable, "-c", COMMAND, "profile", "--quick", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert any(line.startswith("measuring, ") for line in done.stderr.splitlines()), done.stderr
    json.loads(done.stdout)


def test_a_reader_that_sleeps_keeps_no_work_from_ending() -> None:
    asleep = threading.Event()

    def write(line: str) -> None:
        asleep.wait(30)

    shown = PlainLines(write)
    shown._due_s = 0.0
    shown.begin(WorkStage("planning", 0.0))
    start_s = time.perf_counter()
    shown.end()
    assert time.perf_counter() - start_s < 20
    asleep.set()


def test_work_that_holds_its_thread_for_long_is_not_silent() -> None:
    code = SLOW.partition("    for _")[0] + "    while True: pass\n"
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert re.fullmatch(r"tokens: 0 of 100, \d+ s so far\n", process.stderr.readline())
        finally:
            process.kill()


def test_a_reader_that_leaves_ends_the_lines_and_not_the_work() -> None:
    process = subprocess.Popen([sys.executable, "-c", SLOW], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stderr is not None
    process.stderr.close()
    start_s = time.perf_counter()
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, b"text\n")
    assert time.perf_counter() - start_s < 20
