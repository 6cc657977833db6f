"""`flexref check` as the author of a port calls it: the table, the one line that counts, and exit codes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flexref_numpy import NumpyBackend

import flexref.backend.registry
import flexref.check.portcheck
import flexref.cli.porting
from flexref.architecture.spec import ModelSpec
from flexref.check.models import write_model
from flexref.check.portcheck import PROMPT_TOKENS
from flexref.check.tokencheck import Difference, Tokens
from flexref.cli.main import COMMANDS, command_group, run
from flexref.cli.show.check_report import DECIDED, UNDECIDED
from flexref.testing.contract import CONTRACT, PARTS, clause_name, clauses_for
from flexref.testing.verdicts import NEEDED_BY

SPEC = ModelSpec("tiny", 61, 40, 32, 32, 3, 2, 64, activation="gelu")


def check(*arguments: str) -> int:
    return run(command_group(COMMANDS), ["check", "--backend", "numpy", *arguments])


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A tiny model, without a tokenizer."""
    write_model(tmp_path / "tiny.h5", SPEC)
    return str(tmp_path / "tiny.h5")


def complaints(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("flexref:")]


class OffByOneInTheSecondNorm(NumpyBackend):
    """Shifts one element of the norm before the feed-forward block of every layer, and of that alone."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = 0

    def layer_norm(self, x: Any, w: Any, b: Any, epsilon: float, out: Any = None) -> Any:
        result = super().layer_norm(x, w, b, epsilon, out)
        self.norms += 1
        if self.norms % 7 == 4:  # three layers of two norms, and the head's
            result[-1, 5] += np.float32(0.01)
        return result


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """`numpy` makes a wrong port where the command asks for it."""
    known = flexref.backend.registry.create

    def create(name: str, **options: Any) -> Any:
        return OffByOneInTheSecondNorm() if name == "numpy" else known(name, **options)

    monkeypatch.setattr(flexref.backend.registry, "create", create)


def test_a_right_port_leaves_with_0_and_says_what_was_checked(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert check("--model", model, "--no-contract", "--max-new-tokens", "3") == 0
    shown = capsys.readouterr()
    assert complaints(shown.err) == []
    assert shown.out.startswith("tiny on backend numpy (float32), rows of 1, 7, 17 tokens: ")
    for operator in ("linear attention_qkv", "attend", "layer_norm ffn_norm", "sample", "moved cache"):
        (line,) = (line for line in shown.out.splitlines() if operator in line)
        assert line.count("│") == 7
    assert "3 of 3 rows have the tokens of the reference, the model in float64 on the host" in shown.out
    assert "a run without checks gives the same logits to the bit" in shown.out
    assert shown.out.splitlines()[-1] == "all is within bounds"


@pytest.mark.usefixtures("wrong")
def test_a_wrong_port_leaves_with_1_and_one_line_that_names_its_worst_operator(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check("--model", model, "--no-contract", "--max-new-tokens", "3") == 1
    shown = capsys.readouterr()
    (line,) = complaints(shown.err)
    assert line.startswith("flexref: layer_norm ffn_norm of layer 1 (pass ")
    assert ", 5) is " in line
    assert "off by 0.01" in line
    assert "all is within bounds" not in shown.out


@pytest.mark.usefixtures("wrong")
def test_every_layer_is_shown_where_it_is_asked_for(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert check("--model", model, "--no-contract", "--max-new-tokens", "2", "--layers") == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if "layer_norm ffn_norm" in line]
    assert [f"layer {layer}" in line for layer, line in enumerate(lines)] == [True] * 3


@pytest.mark.usefixtures("wrong")
def test_json_holds_everything_in_one_object(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert check("--model", model, "--max-new-tokens", "2", "--examples", "1", "--json") == 1
    report = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert report["within_bounds"] is False
    assert report["fault"].startswith("layer_norm ffn_norm of layer 1")
    assert (report["backend"], report["model"], report["compute_dtype"]) == ("numpy", "tiny", "float32")
    assert report["prompt_tokens"] == list(PROMPT_TOKENS)
    assert report["policy"]["cache_scheme"] == "none"
    norms = [entry for entry in report["operators"] if (entry["operator"], entry["role"]) == ("layer_norm", "ffn_norm")]
    assert [(norm["stage"], norm["within"]) for norm in norms] == [
        ("layer 0", True),
        ("layer 1", False),
        ("layer 2", True),
    ]
    keys = {"ratio", "error", "bound", "found", "needed", "element", "shapes", "turn", "group", "calls", "unjudged"}
    assert all(keys <= entry.keys() for entry in report["operators"])
    assert norms[1]["ratio"] == pytest.approx(norms[1]["error"] / norms[1]["bound"])
    assert report["tokens"].keys() == {"reference", "token_ids", "differences", "largest_error"}
    clauses = {clause["clause"]: clause for clause in report["contract"]["clauses"]}
    assert clauses["layer_norm_is_the_norm"]["applies"]
    assert report["contract"]["examples"] == 1


def pair(*arguments: str) -> int:
    return run(command_group(COMMANDS), ["check", *arguments, "--max-new-tokens", "2"])


def test_two_ports_are_compared_layer_by_layer(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert pair("numpy", "numpy", "--model", model) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("tiny on numpy beside numpy, rows of 1, 7, 17 tokens: ")
    for stage in ("embed", "layer 0", "layer 1", "layer 2", "head 0"):
        assert sum(f"│ {stage} " in line for line in shown.out.splitlines()) == 1
    assert shown.out.splitlines()[-1] == "all that differs is within what rounding permits"


def test_the_first_divergence_of_two_ports_is_the_one_line(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = flexref.backend.registry.create

    def create(name: str, **options: Any) -> Any:
        return OffByOneInTheSecondNorm() if name == "dry" else known(name, **options)

    monkeypatch.setattr(flexref.backend.registry, "create", create)
    assert pair("numpy", "dry", "--model", model, "--layers") == 1
    (line,) = complaints(capsys.readouterr().err)
    assert line.startswith("flexref: the first divergence: layer_norm ffn_norm of layer 1 (pass 0, group 0, operands ")
    assert "apart by " in line
    assert pair("numpy", "dry", "--model", model, "--json") == 1
    report = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert report["backends"] == ["numpy", "dry"]
    assert report["first_divergence"]["stage"] == "layer 1"
    assert report["fault"].startswith("layer_norm ffn_norm of layer 1")


class Forgetful(NumpyBackend):
    """Right in a model, where logits are never equal, and wrong by the contract."""

    def sample(self, logits: Any, temperature: float, top_k: int, top_p: float, uniforms: Any) -> Any:
        if temperature == 0:
            return logits.shape[1] - 1 - super().sample(logits[:, ::-1], temperature, top_k, top_p, uniforms)
        return super().sample(logits, temperature, top_k, top_p, uniforms)


def test_a_broken_clause_alone_is_a_fault_too(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flexref.backend.registry, "create", lambda name: Forgetful())
    assert check("--model", model, "--contract", "--max-new-tokens", "2", "--examples", "10") == 1
    shown = capsys.readouterr()
    (line,) = complaints(shown.err)
    assert line.startswith("flexref: the port breaks the clause greedy_takes_the_lowest_of_the_best: AssertionError")
    unneeded = len(CONTRACT) - len(clauses_for(NumpyBackend().caps))
    assert f"clauses passed, {unneeded} do not apply" in shown.out
    assert "  gather_takes_the_named_rows: passed" in shown.out
    assert "  greedy_takes_the_lowest_of_the_best: FAILED: " in shown.out


def test_a_broken_clause_comes_with_its_law(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flexref.backend.registry, "create", lambda name: Forgetful())
    assert check("-k", "greedy", "--examples", "10") == 1
    shown = capsys.readouterr()
    law = "Temperature 0, or `top_k` 1, takes the first of the greatest logits, whatever the uniform numbers."
    (line,) = complaints(shown.err)
    assert line.startswith("flexref: the port breaks the clause greedy_takes_the_lowest_of_the_best: AssertionError")
    assert line.endswith(f"; its law: {law}")
    assert f"    the law: {law}" in shown.out.splitlines()
    assert "flexref check --explain greedy_takes_the_lowest_of_the_best shows" in shown.out
    assert check("-k", "greedy", "--examples", "10", "--json") == 1
    (clause,) = json.loads(capsys.readouterr().out)["contract"]["clauses"]
    assert (clause["law"], clause["passed"]) == (law, False)


def test_clauses_that_match_are_checked_without_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert check("-k", "gather_takes", "-k", "frames", "--examples", "3") == 0
    assert capsys.readouterr().out.splitlines() == [
        "contract: 2 of 2 clauses passed, 0 do not apply to this port",
        "  frames_give_back: passed",
        "  gather_takes_the_named_rows: passed",
        "all is within bounds",
    ]
    assert check("--backend", "dry", "-k", "gather_takes", "--examples", "3") == 0
    assert capsys.readouterr().out.splitlines() == ["contract: 0 of 0 clauses passed, 1 do not apply to this port"]


def explain(*arguments: str) -> int:
    return run(command_group(COMMANDS), ["check", "--explain", *arguments])


def test_a_clause_is_explained_by_its_law_and_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert explain("attend_works_on_host_memory") == 0
    shown = capsys.readouterr().out
    assert "Caches, queries and results in host memory: the same law." in shown
    assert "Needed of: ports that compute and attend on the host (`caps.attends_on_host`)" in shown
    assert "Source: flexref/testing/clauses/attention.py, line " in shown
    assert "def attend_works_on_host_memory(backend: Backend, data: st.DataObject) -> None:" in shown
    assert explain("a_closed_port_is_done_and_takes_no_work") == 0
    assert "Needed of: every port" in capsys.readouterr().out
    assert explain("all") == 0
    names = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert {"frames_give_back", "attend_is_causal_attention"} < set(names)


@pytest.mark.parametrize("part", PARTS)
def test_a_clause_of_every_part_says_who_needs_it(capsys: pytest.CaptureFixture[str], part: str) -> None:
    assert explain(clause_name(PARTS[part][0])) == 0
    assert f"Needed of: {NEEDED_BY[part]}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (
            ("--explain", "gater_takes_the_named_rows"),
            "'gater_takes_the_named_rows'; near: gather_takes_the_named_rows",
        ),
        (("--explain", "Frames-give-back"), "'Frames-give-back'; near: frames_give_back"),
        (("--explain", "tickt"), "'tickt'; near: tickets_are_waited_for"),
        (("--explain", "zzz"), "'zzz'; `flexref check --explain all` shows all"),
        (("--backend", "numpy", "-k", "gathr"), "'gathr'; near: gather_takes_the_named_rows, gather_tile_by_tile"),
    ],
)
def test_an_unknown_clause_is_a_wrong_call_that_names_what_is_near(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], near: str
) -> None:
    assert run(command_group(COMMANDS), ["check", *arguments]) == 2
    (line,) = complaints(capsys.readouterr().err)
    assert near in line


def test_explanations_need_hypothesis(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flexref.cli.porting, "find_spec", lambda name: None)
    assert explain("frames_give_back") == 1
    assert check("-k", "frames") == 1
    assert all("the contract needs hypothesis" in line for line in complaints(capsys.readouterr().err))


def test_without_hypothesis_the_contract_is_left_out_or_refused_in_one_line(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flexref.cli.porting, "find_spec", lambda name: None)
    assert check("--model", model, "--max-new-tokens", "1") == 0
    assert "contract: not checked, the contract needs hypothesis" in capsys.readouterr().out
    assert check("--model", model, "--contract") == 1
    (line,) = complaints(capsys.readouterr().err)
    assert "pip install '.[testing]' in the checkout of flexref" in line


def test_the_options_of_generate_mean_the_same_here(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--quantize-cache", "--rows-per-group", "2", "--groups", "2", "--percent", *["0"] * 6, "--no-overlap")
    assert check("--model", model, "--no-contract", "--max-new-tokens", "2", "--json", *options) == 0
    report = json.loads(capsys.readouterr().out)
    policy = report["policy"]
    assert (policy["cache_scheme"], policy["rows_per_group"], policy["groups_per_block"]) == ("int4", 2, 2)
    assert policy["weights"]["disk"] == 1
    assert report["tokens"]["reference"] == "the numpy port through the engine with the same policy"
    assert check("--model", model, "--no-contract", "--json", "--layers-checked", "2", "--max-new-tokens", "1") == 0
    assert json.loads(capsys.readouterr().out)["checked_layers"] == [0, 2]


@pytest.mark.parametrize(
    ("gap", "code", "said"),
    [(0.5, 0, "a tie: rounding permits 0.5"), (0.001, 1, "not a tie: rounding permits 0.001"), (None, 0, DECIDED)],
)
def test_a_token_that_differs_is_a_fault_only_if_rounding_cannot_explain_it(
    model: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    gap: float | None,
    code: int,
    said: str,
) -> None:
    difference = Difference(1, 2, 7, 9, 4.0, 3.9, 3.95, 4.0, permitted_gap=gap)
    tokens = Tokens("another model", [[5], [7]], [difference], 0.1)
    monkeypatch.setattr(flexref.check.portcheck, "compare_tokens", lambda *_: tokens)
    assert check("--model", model, "--no-contract", "--max-new-tokens", "1") == code
    shown = capsys.readouterr()
    text = " ".join(shown.out.split())
    assert "1 of 2 rows have the tokens of the reference, another model" in text
    assert "row 1, pass 2: token 7 with logit 4 (reference 3.95), needed 9 with logit 3.9 (reference 4)" in text
    assert said in text
    assert len(complaints(shown.err)) == code
    assert check("--model", model, "--no-contract", "--max-new-tokens", "1", "--layers-checked", "1") == code
    assert (UNDECIDED in " ".join(capsys.readouterr().out.split())) == (gap is None)


def test_prompts_are_text_or_a_file_of_either_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "The king"}\n{"prompt": [2, 300, 301]}\n')
    arguments = ("--model", "demo", "--prompt", "A queen", "--input", str(prompts), "--max-new-tokens", "1")
    assert check(*arguments, "--no-contract", "--layers-checked", "1", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["prompt_tokens"]) == 3


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--model", "nowhere.h5"], "no such weight file: nowhere.h5"),
        (
            ["--model", "demo", "--backend", "dry"],
            "backend dry computes nothing: there is nothing to measure, score or check",
        ),
        (["--model", "demo", "--backend", "abacus"], "unknown backend 'abacus'"),
        (["--model", "demo", "--device-mem-gib", "0.001"], "device memory is too small by"),
        (["--model", "demo", "--policy", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_input_gets_one_clear_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str
) -> None:
    assert check(*arguments, "--no-contract", "--max-new-tokens", "2") == (
        2 if {"abacus", "dry"} & set(arguments) else 1
    )
    shown = capsys.readouterr()
    (line,) = complaints(shown.err)
    assert complaint in line
    assert "Traceback" not in shown.err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--model", "demo", "--examples", "0"],
        ["--model", "demo", "--layers-checked", "0"],
        ["--model", "demo", "-k", "gather"],
        ["-k", "gather", "--no-contract"],
        ["-k", "gather", "--prompt", "x"],
        ["-k", "gather", "--layers"],
        ["-k", "gather", "--no-overlap"],
    ],
)
def test_a_call_that_makes_no_sense_is_a_usage_error(arguments: list[str]) -> None:
    assert check(*arguments) == 2


def test_an_option_that_clauses_alone_have_no_use_for_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert check("--backend", "numpy", "-k", "frames", "--max-new-tokens", "3") == 2
    assert "Error: -k checks clauses alone: it does not go with --max-new-tokens\n" in capsys.readouterr().err


@pytest.mark.parametrize("logging", [["-q"], ["-v"], ["--log-level", "error"]])
def test_what_all_commands_take_goes_with_clauses_alone(logging: list[str]) -> None:
    assert check("--backend", "dry", "-k", "gather_takes", "--examples", "3", *logging) == 0


def test_clauses_that_do_not_apply_say_nothing_of_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    assert check("--backend", "dry", "-k", "gather_takes", "--examples", "3", "--json") == 0
    assert json.loads(capsys.readouterr().out)["within_bounds"] is None


def test_the_contract_leaves_nothing_in_the_working_folder(tmp_path: Path, model: str) -> None:
    """In a process of its own: in that of the tests hypothesis has long found a folder."""
    here = tmp_path / "here"
    here.mkdir()
    call = [sys.executable, "-m", "flexref", "check", "--backend", "numpy", "--model", model]
    call += ["--contract", "--examples", "3", "--max-new-tokens", "1", "--percent", *("100", "0") * 3]
    done = subprocess.run(call, cwd=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list(here.iterdir()) == []
