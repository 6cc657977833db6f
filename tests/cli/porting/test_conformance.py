"""`flexref conformance` as a port's author and CI call it: the table, one line, exit codes, JSON that is read."""

import json
from pathlib import Path

import pytest

import flexref.cli.porting
from flexref.architecture.spec import ModelSpec
from flexref.check.models import write_model
from flexref.cli.main import COMMANDS, command_group, run
from flexref.testing.conformance.results import read_result

PORT = """
from flexref_numpy import NumpyBackend


class Wrong(NumpyBackend):
    def activate(self, x, activation):
        return super().activate(x, "gelu_tanh" if activation == "gelu" else activation)
"""

CLAUSES = ("--clause", "activations_are_their_functions", "--clause", "free_memory", "--examples", "20")


@pytest.fixture
def wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed port that takes one formula for another, and the working folder."""
    (tmp_path / "wrong_port.py").write_text(PORT)
    about = tmp_path / "wrong_port-0.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: wrong-port\nVersion: 0.1\n")
    (about / "entry_points.txt").write_text("[flexref.backends]\nwrong = wrong_port:Wrong\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def conformance(*arguments: str) -> int:
    return run(command_group(COMMANDS), ["conformance", *arguments])


def test_a_right_port_leaves_with_0_and_a_row_for_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert conformance("--backend", "numpy", *CLAUSES) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("port numpy (numpy ")
    assert "2 of 2 clauses passed, 0 are not needed of it" in shown.out
    (line,) = (line for line in shown.out.splitlines() if "│ activate " in line)
    assert [cell.strip() for cell in line.split("│")][2:4] == ["passed", "1"]


def test_a_wrong_port_leaves_with_1_a_line_and_a_case_that_repeats(
    wrong: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert conformance("--backend", "wrong", *CLAUSES) == 1
    shown = capsys.readouterr()
    (line,) = (line for line in shown.err.splitlines() if line.startswith("flexref:"))
    assert line.startswith(
        "flexref: the port wrong breaks 1 clause: activations_are_their_functions (activate) failed: "
    )
    case = "wrong-cases/activations_are_their_functions.npz"
    assert f"its input: {case}, which --replay repeats" in shown.out
    assert conformance("--backend", "wrong", "--replay", case) == 1
    assert "activations_are_their_functions: failed, AssertionError: gelu: element" in capsys.readouterr().err
    assert conformance("--backend", "numpy", "--replay", case, "-q") == 0
    assert capsys.readouterr().out == "activations_are_their_functions: passed\n"


def test_known_failures_turn_the_exit_code_to_0_and_json_is_read_again(
    wrong: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {"activations_are_their_functions": "gelu is next", "free_memory_is_reported": "no driver yet"}
    (wrong / "known.json").write_text(json.dumps(known))
    assert conformance("--backend", "wrong", "--known", "known.json", "--json", *CLAUSES) == 0
    (wrong / "result.json").write_text(capsys.readouterr().out)
    result = read_result("result.json")
    assert [(clause.status, clause.known) for clause in result.clauses] == [
        ("passed", "no driver yet"),
        ("failed", "gelu is next"),
    ]
    assert conformance("--backend", "wrong", "--known", "known.json", *CLAUSES) == 0
    assert "free_memory_is_reported is known to fail and passes: take it off the list" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "must hold a JSON object"),
        ('{"no_such": "x"}', "no clause is called 'no_such'"),
        ('{"free_memory_is_reported": 3}', "needs a reason"),
    ],
)
def test_a_wrong_list_of_known_failures_is_told(
    content: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "known.json").write_text(content)
    assert conformance("--backend", "numpy", "--known", str(tmp_path / "known.json")) == 1
    assert said in capsys.readouterr().err


def test_cases_that_cannot_be_saved_are_told_as_such(wrong: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert conformance("--backend", "wrong", "--cases", "/proc/cases", *CLAUSES) == 1
    assert "flexref: cannot save cases in /proc/cases: No such file or directory\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give --backend"),
        (["--backend", "nummpy"], "unknown backend"),
        (["--backend", "numpy", "--clause", "linaer"], "near: "),
        (["--backend", "numpy", "--clause", ""], "'--clause': it is empty"),
        (["--backend", "numpy", "--operator", "linaer"], "no method of the protocol is called 'linaer'"),
        (["--backend", "numpy", "--replay", "a.npz", "--examples", "3"], "does not go with --examples"),
    ],
)
def test_a_wrong_call_leaves_with_2(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert conformance(*arguments) == 2
    assert said in capsys.readouterr().err


def test_a_port_that_computes_nothing_need_not_pass_what_is_on_values(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        conformance("--backend", "dry", "--clause", "describes", "--clause", "is_the_product", "--examples", "2") == 0
    )
    assert "1 of 1 clause passed, 1 are not needed of it" in capsys.readouterr().out


def test_without_hypothesis_a_line_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(flexref.cli.porting, "find_spec", lambda name: None)
    assert conformance("--backend", "numpy") == 1
    assert "pip install '.[testing]'" in capsys.readouterr().err


def test_two_results_are_compared_and_a_step_back_leaves_with_1(
    wrong: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("numpy", "wrong"):
        conformance("--backend", name, "--json", "--report", f"{name}.html", *CLAUSES)
        (wrong / f"{name}.json").write_text(capsys.readouterr().out)
    assert "gelu: element" in (wrong / "wrong.html").read_text()
    assert conformance("--backend", "numpy", "--report", "wrong.html", *CLAUSES) == 1
    assert "--force replaces it" in capsys.readouterr().err
    assert conformance("diff", "numpy.json", "wrong.json") == 1
    shown = capsys.readouterr()
    assert "activations_are_their_functions: passed, now failed (activate): AssertionError: gelu" in shown.out
    assert shown.err == "flexref: 1 clause got worse, first activations_are_their_functions\n"
    assert conformance("diff", "wrong.json", "numpy.json", "--json") == 0
    assert json.loads(capsys.readouterr().out)["worse"] == 0
    assert conformance("diff", "numpy.json", "numpy.json") == 0
    assert capsys.readouterr().out == "nothing has changed\n"


def test_operands_of_a_model_are_kept_by_check_and_repeated_here(
    wrong: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check = ["check", "--backend", "numpy", "--model", "tiny.h5", "--no-contract", "--max-new-tokens", "2"]
    group = command_group(COMMANDS)
    write_model(wrong / "tiny.h5", ModelSpec("tiny", 61, 40, 32, 32, 2, 2, 64, activation="gelu"))
    assert run(group, [*check, "--record", "ops.npz"]) == 0
    assert "calls were kept" in capsys.readouterr().out
    assert run(group, [*check, "--record", "ops.npz"]) == 1
    assert "--force replaces it" in capsys.readouterr().err
    assert conformance("--backend", "numpy", "--operands", "ops.npz") == 0
    assert "of a model's operators repeated, 0 wrong" in capsys.readouterr().out
    assert conformance("--backend", "wrong", "--operands", "ops.npz", "--json") == 1
    shown = capsys.readouterr()
    assert {failure["method"] for failure in json.loads(shown.out)["operands"]} == {"activate"}
    assert "flexref: the port wrong is wrong in " in shown.err
    assert conformance("--backend", "numpy", "--operands", "ops.npz", "--clause", "linear") == 2
