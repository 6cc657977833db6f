"""What is logged and shown on stderr: nothing by the library, and by the commands what their options ask for."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from flexref import Policy, Request, load
from flexref.cli.logs import LOG_OPTIONS, logging_at
from flexref.cli.main import COMMANDS, LazyCommand, command_group, run

GENERATE = ("generate", "--model", "demo", "--prompt", "King", "--max-new-tokens", "2", "--ignore-eos")
PLACED = ("--percent", *("100", "0", "100", "0", "100", "0"))
LONG = [5] * 511
"""Token ids of a prompt that leaves room for two more: the model has 512 positions."""


def flexref(*arguments: str) -> int:
    return run(command_group(COMMANDS), arguments)


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"lm-eval"}))
def test_every_command_is_asked_for_its_logs(name: str) -> None:
    known = {option for parameter in LazyCommand(name, COMMANDS[name]).load().params for option in parameter.opts}
    assert {option for parameter in LOG_OPTIONS for option in parameter.opts} <= known


@pytest.mark.parametrize("before", [(), ("-v",)])
def test_verbose_says_what_was_opened_chosen_loaded_and_run(
    capsys: pytest.CaptureFixture[str], before: tuple[str, ...]
) -> None:
    after = () if before else ("--verbose",)
    assert flexref(*before, *GENERATE, *after, *PLACED, "--json") == 0
    said = capsys.readouterr().err.splitlines()
    for at, expected in enumerate(
        ("opened ", "port numpy", "policy: weights 100/0/0", "block 1 begins: places 1 in groups 1", "loaded weights")
    ):
        assert said[at].startswith(expected), said
    assert said[5].startswith("block 1 ends: ")
    assert len(said) == 6


def test_what_is_only_simulated_is_not_said_to_be_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ("--prompt-len", "8", "--gen-len", "2", "--rows", "2")
    assert flexref("plan", "-v", "--model", "tiny", "--machine", "t4-gcp", *sizes, "--json") == 0
    assert "loaded" not in capsys.readouterr().err


def test_debug_tells_when_and_who(capsys: pytest.CaptureFixture[str]) -> None:
    assert flexref(*GENERATE, "-vv", *PLACED, "--json") == 0
    first = capsys.readouterr().err.splitlines()[0].split()
    assert float(first[0]) >= 0
    assert first[1] == "flexref.loading:"


def test_debug_tells_of_every_pass(capsys: pytest.CaptureFixture[str]) -> None:
    assert flexref(*GENERATE, "--log-level", "debug", *PLACED, "--json") == 0
    said = capsys.readouterr().err
    assert [f"pass {number} ends" in said for number in (0, 1, 2)] == [True, True, False]


@pytest.mark.parametrize("options", [("-q",), ("--log-level", "error")])
def test_quiet_keeps_notices_back_but_no_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    (tmp_path / "long.jsonl").write_text(json.dumps({"prompt": LONG}))
    long = ("generate", "--model", "demo", "--input", str(tmp_path / "long.jsonl"), "--json", *PLACED)
    assert flexref(*long) == 0
    assert "may have at most 2 new tokens" in capsys.readouterr().err
    assert flexref(*long, *options) == 0
    assert capsys.readouterr().err == ""
    assert flexref(*options, "inspect", "nowhere.h5") == 1
    assert capsys.readouterr().err == "flexref: no such weight file: nowhere.h5\n"


def test_quiet_has_the_text_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert flexref(*GENERATE, *PLACED, "-q") == 0
    said = capsys.readouterr()
    assert (said.out[:4], said.err) == ("King", "")


@pytest.mark.parametrize("options", [("-q", "-v"), ("-q", "--log-level", "info"), ("-v", "--log-level", "info")])
def test_options_of_logs_exclude_each_other(capsys: pytest.CaptureFixture[str], options: tuple[str, ...]) -> None:
    assert flexref("inspect", "demo", *options) == 2
    assert flexref(*options[:1], "inspect", "demo", *options[1:]) == 2
    assert "exclude each other" in capsys.readouterr().err


def test_logs_are_as_before_when_a_command_has_ended(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("flexref")
    before = (list(logger.handlers), logger.level, logger.propagate)
    assert flexref("inspect", "demo", "-vv") == 0
    assert flexref("inspect", "nowhere.h5", "-vv") == 1
    assert (list(logger.handlers), logger.level, logger.propagate) == before
    capsys.readouterr()


def test_a_record_is_one_line_whatever_names_it_holds(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_at(logging.INFO):
        logging.getLogger("flexref.any").info("%s", "a\nb\x1b[1m")
    assert capsys.readouterr() == ("", "a\\nb\\x1b[1m\n")


def test_the_library_prints_nothing_and_logs_by_module(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "flexref"), load("demo", policy=Policy()) as engine:
        engine.generate([LONG], Request(3))
    names = [record.name for record in caplog.records]
    assert {
        "flexref.loading",
        "flexref.planner.advisor",
        "flexref.engine.held_weights",
        "flexref.engine.block_log",
    } <= {*names}
    assert names.count("flexref.engine.events") == 1


def test_a_process_that_uses_the_library_prints_nothing() -> None:
    code = "import flexref\n"
    code += "with flexref.load('demo', policy=flexref.Policy()) as engine:\n"
    code += "    engine.generate([[5] * 510], flexref.Request(3))\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
