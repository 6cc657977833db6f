"""`--lengths` of the commands that plan: rows that differ, in place of equal ones, said in words and as JSON."""

import json
from pathlib import Path
from typing import Any

import pytest

from flexref.cli.main import COMMANDS, command_group, run
from flexref.cli.show.plot_titles import job_in_words
from flexref.machine.plain import plain_machine
from flexref.planner.lengths_file import read_lengths
from flexref.planner.plan_request import PlanRequest

WAY = ("--quantize-weights", "int4", "--quantize-cache", "none", "--attention-on", "device", "--groups", "2")


@pytest.fixture
def machine(tmp_path: Path) -> str:
    path = tmp_path / "small.json"
    plain_machine(capacity_bytes=(300 << 20, 1 << 30, 1 << 34)).write(path)
    return str(path)


@pytest.fixture
def lengths(tmp_path: Path) -> str:
    path = tmp_path / "job.jsonl"
    path.write_text('{"prompt_tokens": 37, "new_tokens": 12}\n{"prompt_tokens": 5, "new_tokens": 1, "rows": 3}\n')
    return str(path)


def flexref(*arguments: str) -> int:
    return run(command_group(COMMANDS), arguments)


def test_a_plan_for_rows_that_differ(capsys: pytest.CaptureFixture[str], machine: str, lengths: str) -> None:
    call = ("plan", "--model", "125m", "--machine", machine, *WAY, "--lengths", lengths)
    assert flexref(*call) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "prompts of 5 to 37 tokens (mean 13), 1 to 12 new tokens (mean 3.75)" in shown
    assert "for 4 rows" in shown
    assert flexref(*call, "--json") == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert printed["wanted"]["lengths"] == {
        "rows": 4,
        "kinds": 2,
        "prompt_tokens": {"least": 5, "mean": 13.0, "most": 37, "total": 52},
        "new_tokens": {"least": 1, "mean": 3.75, "most": 12, "total": 15},
    }
    assert printed["predicted"]["rows"] == 4
    assert printed["predicted"]["generated_tokens"] == 15


@pytest.mark.parametrize("option", ["--rows", "--prompt-len", "--gen-len"])
@pytest.mark.parametrize("command", ["plan", "compare-machines", "bench"])
def test_equal_rows_and_lengths_exclude_each_other(
    capsys: pytest.CaptureFixture[str], machine: str, lengths: str, command: str, option: str
) -> None:
    assert flexref(command, "--model", "125m", "--machine", machine, "--lengths", lengths, option, "32") == 2
    assert f"{option} and --lengths exclude each other" in capsys.readouterr().err


def test_what_is_wrong_in_the_file_is_one_line(capsys: pytest.CaptureFixture[str], machine: str, lengths: str) -> None:
    Path(lengths).write_text('{"prompt_tokens": 3}\n')
    assert flexref("plan", "--model", "125m", "--machine", machine, "--lengths", lengths) == 1
    assert capsys.readouterr().err == f"flexref: {lengths}, line 1: field 'new_tokens' is missing\n"
    assert flexref("plan", "--model", "125m", "--machine", machine, "--lengths", lengths, "-o", lengths, "--force") != 0
    assert json.loads(Path(lengths).read_text()) == {"prompt_tokens": 3}


def test_a_benchmark_of_rows_that_differ(capsys: pytest.CaptureFixture[str], lengths: str, tmp_path: Path) -> None:
    call = ("bench", "--model", "tiny", "--lengths", lengths, "--rows-per-group", "1", "--groups", "2")
    assert flexref(*call) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "4 rows that differ: prompts of 5 to 37 tokens (mean 13), 1 to 12 new tokens (mean 3.75)" in shown
    assert "prefill and decode" in shown
    assert " read" in shown
    assert flexref(*call, "--json") == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert printed["lengths"]["prompt_tokens"]["total"] == 52
    assert (printed["rows"], printed["generated_tokens"], printed["decode_step_s"]) == (4, 15, None)
    seconds = printed["prefill_s"] + printed["decode_s"]
    assert printed["read_tokens_per_s"] == pytest.approx(52 / seconds)
    assert printed["tokens_per_s"] == pytest.approx(15 / seconds)
    assert printed["floor_s"] == max(printed["floor_terms_s"].values())
    assert printed["floor_ratio"] == pytest.approx(seconds / printed["floor_s"])
    before = tmp_path / "before.json"
    before.write_text(json.dumps(printed))
    assert flexref(*call, "--json", "--baseline", str(before)) == 0
    assert json.loads(capsys.readouterr().out)["baseline"]["figures"]["tokens_per_s"]["before"] > 0
    Path(lengths).write_text('{"prompt_tokens": 5, "new_tokens": 1}\n{"prompt_tokens": 5, "new_tokens": 2}\n')
    assert flexref(*call, "--json", "--baseline", str(before)) == 1
    assert "lengths was" in capsys.readouterr().err


def test_lengths_take_the_place_of_a_suites_rows(capsys: pytest.CaptureFixture[str], lengths: str) -> None:
    assert flexref("bench", "--suite", "tiny", "--lengths", lengths, "--json") == 0
    assert json.loads(capsys.readouterr().out)["arguments"]["rows"] is None
    Path(lengths).write_text('{"prompt_tokens": 250, "new_tokens": 10}\n')
    assert flexref("bench", "--suite", "tiny", "--lengths", lengths, "--json") == 1
    assert "250 + 10 tokens: the model has 256 positions" in capsys.readouterr().err


def test_machines_are_compared_for_rows_that_differ(
    capsys: pytest.CaptureFixture[str], machine: str, lengths: str
) -> None:
    call = ("compare-machines", "--model", "125m", "--machine", machine, *WAY, "--lengths", lengths, "--json")
    assert flexref(*call) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["problem"] is None
    assert row["tokens_per_s"] > 0


def test_the_title_of_a_plot_says_how_the_rows_differ(lengths: str) -> None:
    wanted = PlanRequest(lengths=read_lengths(lengths))
    assert job_in_words(wanted).startswith(
        "4 rows, prompts of 5 to 37 tokens (mean 13), 1 to 12 new tokens (mean 3.75)"
    )
