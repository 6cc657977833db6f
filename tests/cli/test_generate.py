"""`flexref generate` as its users call it: on the built-in model, with good input and bad."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import flexref
from flexref import loading
from flexref.backend.protocol import Backend
from flexref.block import compute
from flexref.block.replays import Replays
from flexref.block.watch import OnNotice
from flexref.cli.main import COMMANDS, command_group, run
from flexref.engine.request import Request
from flexref.policy import Policy

SMALL = ["--device-mem-gib", "0.012", "--host-mem-gib", "0.005"]


def flexref_run(*arguments: str) -> int:
    return run(command_group(COMMANDS), ["generate", *arguments])


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert flexref_run("--model", "demo", "--json", *arguments) == 0
    captured = capsys.readouterr()
    parsed: dict[str, Any] = json.loads(captured.out)
    return parsed


def test_the_built_in_model_writes_english_under_a_budget_smaller_than_its_weights(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    result = as_json(capsys, "--prompt", "It was a fine morning, and", *SMALL, "--disk-dir", str(tmp_path))
    (output,) = result["outputs"]
    words = output["text"].split()
    assert len(output["token_ids"]) == 32
    assert sum(word.strip(".,;:!?'\"").isalpha() for word in words) > 0.8 * len(words) > 10
    stats = result["stats"]
    assert stats["peak_bytes"]["device"] <= 0.012 * 2**30
    assert stats["peak_bytes"]["host"] <= 0.005 * 2**30
    assert stats["link_bytes"]["disk->host"]["weights"] > 0
    assert stats["tokens_per_s"] > 0
    assert {"prefill_s", "decode_s", "link_bytes", "peak_bytes", "policy"} <= stats.keys()


def test_one_prompt_is_streamed_and_the_tables_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert flexref_run("--model", "demo", "--prompt", "The king said", "--max-new-tokens", "8") == 0
    captured = capsys.readouterr()
    with flexref.load("demo") as engine:
        whole = engine.generate(["The king said"], Request(8)).outputs[0].text
    assert captured.out == f"The king said{whole}\n"
    assert "What lay on which tier" in captured.err
    assert "What crossed which link" in captured.err
    assert "tokens/s" in captured.err


def test_what_is_shown_of_a_job_takes_no_replays_from_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed: list[bool] = []

    class Seen(Replays):
        def __init__(self, backend: Backend, on: bool, tell: OnNotice | None = None) -> None:
            if backend.name == "numpy":  # and not the port of a prediction
                allowed.append(on)
            super().__init__(backend, on, tell)

    monkeypatch.setattr(compute, "Replays", Seen)
    as_json(capsys, "--prompt", "The king said", "--max-new-tokens", "2")
    as_json(capsys, "--prompt", "The king said", "--max-new-tokens", "2", "--no-graphs")
    assert allowed == [True, False]


def test_outputs_come_in_the_order_of_the_input_whatever_their_form(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "The king"}\n{"prompt": [2, 300, 301]}\n{"prompt": "In the beginning God"}\n')
    result = as_json(capsys, "--input", str(prompts), "--max-new-tokens", "4", "--rows-per-group", "2", "--groups", "2")
    assert [output["prompt"] for output in result["outputs"]] == ["The king", [2, 300, 301], "In the beginning God"]
    alone = as_json(capsys, "--prompt", "In the beginning God", "--max-new-tokens", "4")
    assert result["outputs"][2]["token_ids"] == alone["outputs"][0]["token_ids"]


def test_a_stop_string_ends_the_text_before_it_also_across_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--prompt", "It was a fine morning, and", "--max-new-tokens", "24")
    text = as_json(capsys, *arguments)["outputs"][0]["text"]
    stop = text[len(text) // 2 - 4 : len(text) // 2 + 5]  # nine characters from the middle: more than one token
    (output,) = as_json(capsys, *arguments, "--stop", stop)["outputs"]
    assert output["text"] == text[: text.find(stop)]
    assert output["finish_reason"] == "stop"


def test_a_seed_gives_the_same_sample_again_and_another_seed_another(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--prompt", "The", "--temperature", "1", "--top-k", "40", "--top-p", "0.95", "--max-new-tokens", "12")
    first, again, other = (
        as_json(capsys, *arguments, "--seed", seed)["outputs"][0]["token_ids"] for seed in ("1", "1", "2")
    )
    assert first == again
    assert first != other


def test_a_policy_goes_from_a_file_into_the_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    policy = Policy.from_percent([50, 25, 0, 50, 100, 0], rows_per_group=1, groups_per_block=2, cache_scheme="int4")
    path.write_text(json.dumps({"policy": json.loads(policy.to_json()), "predicted": {}}))
    arguments = ("--prompt", "The king", "--prompt", "A queen", "--max-new-tokens", "3", "--policy", str(path))
    found = Policy.from_mapping(as_json(capsys, *arguments)["stats"]["policy"])
    assert found.read_ahead_gib  # the engine has chosen, since the file leaves it open
    assert replace(found, read_ahead_gib=None) == policy


@pytest.mark.parametrize(("option", "graphs"), [("--graphs", True), ("--no-graphs", False)])
def test_whether_anything_is_replayed_is_the_engines_to_know(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, option: str, graphs: bool
) -> None:
    opened, told = loading.open_engine, []

    def noting(*given: Any, **named: Any) -> Any:
        told.append(named["graphs"])
        return opened(*given, **named)

    monkeypatch.setattr(loading, "open_engine", noting)
    stats = as_json(capsys, "--prompt", "The king", "--max-new-tokens", "4", option)["stats"]
    assert (told, stats["replayed_visits"]) == ([graphs], 0)  # numpy records nothing


def test_a_chosen_policy_keeps_what_the_options_ask_for(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--rows-per-group", "2", "--groups", "3", "--attention-on", "host", "--quantize-cache", "--no-overlap")
    options += ("--no-row-invariant",)
    prompts = [part for number in range(7) for part in ("--prompt", f"King {number}")]
    stats = as_json(capsys, *prompts, "--max-new-tokens", "2", *options)["stats"]
    asked = {
        "rows_per_group": 2,
        "groups_per_block": 3,
        "attention_on": "host",
        "cache_scheme": "int4",
        "overlap": False,
        "row_invariant": False,
    }
    assert {name: stats["policy"][name] for name in asked} == asked
    # The seventh row takes the place of one that has ended: two more passes for its two tokens.
    assert (stats["blocks"], stats["rows_admitted"], stats["occupancy"]["passes"]) == (1, 7, 4)


def test_a_trace_is_written_for_perfetto(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    as_json(capsys, "--prompt", "The", "--max-new-tokens", "3", "--percent", *["0"] * 6, "--trace", str(trace))
    slices = [event for event in json.loads(trace.read_text()) if event["ph"] == "X"]
    assert {"compute", "disk_in", "weights_in"} <= {event["cat"] for event in slices}
    assert all(event["dur"] >= 0 for event in slices)


def test_a_trace_that_cannot_be_written_is_refused_before_the_work(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert flexref_run("--model", "demo", "--prompt", "x", "--trace", str(tmp_path)) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"flexref: cannot write {tmp_path}: it is a folder\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--model", "nowhere.h5", "--prompt", "x"], "no such weight file: nowhere.h5"),
        (["--model", "demo", "--prompt", "word " * 600], "positions"),
        (["--model", "demo", "--prompt", "x", "--backend", "abacus"], "abacus"),
        (["--model", "demo", "--prompt", "x", "--device-mem-gib", "0.001"], "device memory is too small by"),
        (["--model", "demo", "--prompt", "x", "--percent", "60", "60", *"0000"], "must not exceed 1 together"),
        (["--model", "demo", "--prompt", "x", "--temperature", "-1"], "temperature"),
        (["--model", "demo", "--input", "/nowhere"], "/nowhere"),
        (["--model", "demo", "--prompt", "x", "--policy", "/nowhere"], "/nowhere"),
        (["--model", "demo", "--prompt", "x", "--percent", *"000000", "--disk-dir", "/proc/none"], "/proc/none"),
        (["--model", "demo", "--prompt", "x", "--trace", "/proc/none/trace"], "/proc/none/trace"),
    ],
)
def test_bad_input_gets_one_clear_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str
) -> None:
    code = flexref_run(*arguments, "--max-new-tokens", "2")
    captured = capsys.readouterr()
    wrong_call = complaint in ("abacus", "must not exceed 1 together", "temperature")
    assert code == (2 if wrong_call else 1)
    lines = [line for line in captured.err.splitlines() if line.startswith("flexref:")]
    assert len(lines) == 1
    assert complaint in lines[0]
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    "arguments",
    [["--model", "demo"], ["--prompt", "x"], ["--model", "demo", "--prompt", "x", "--max-new-tokens", "0"]],
)
def test_a_call_that_makes_no_sense_is_a_usage_error(arguments: list[str]) -> None:
    assert flexref_run(*arguments) == 2


def test_log_probabilities_are_told_of_every_token(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--prompt", "The king said", "--max-new-tokens", "4", "--temperature", "0.8")
    (output,) = as_json(capsys, *arguments, "--logprobs", "3")["outputs"]
    assert [known["token_id"] for known in output["logprobs"]] == output["token_ids"]
    assert "".join(known["text"] for known in output["logprobs"]) == output["text"]
    for known in output["logprobs"]:
        best = [token["logprob"] for token in known["top"]]
        assert len(best) == 3
        assert best == sorted(best, reverse=True)
        assert known["logprob"] <= best[0] <= 0
    assert as_json(capsys, *arguments)["outputs"][0]["logprobs"] is None
    assert flexref_run("--model", "demo", *arguments, "--logprobs", "3") == 2, "they belong to --json"


def test_an_id_is_carried_through_to_both_outputs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "The king", "id": "a-7"}\n\n{"prompt": "A queen", "id": 8}\n{"prompt": "It"}\n')
    options = ("--input", str(prompts), "--max-new-tokens", "2")
    assert [output["id"] for output in as_json(capsys, *options)["outputs"]] == ["a-7", 8, None]
    assert flexref_run("--model", "demo", *options) == 0
    shown = capsys.readouterr()
    for heading in ("--- 1: a-7 (length)", "--- 2: 8 (length)", "--- 3 (length)"):
        assert heading in shown.out
    assert shown.err.count("skipped 1 blank line\n") == 1


def test_rows_that_the_positions_cut_are_told_of_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": [2] + [300] * count}) + "\n" for count in (509, 510, 3)))
    options = ("--model", "demo", "--input", str(prompts), "--ignore-eos", "--json")
    assert flexref_run(*options, "--max-new-tokens", "5") == 0
    shown = capsys.readouterr()
    assert shown.err.count("2 of 3 rows may have at most 2 to 3 new tokens, not 5: the model has 512 positions") == 1
    outputs = json.loads(shown.out)["outputs"]
    assert [(len(output["token_ids"]), output["finish_reason"], output["cut_to_positions"]) for output in outputs] == [
        (3, "length", True),
        (2, "length", True),
        (5, "length", False),
    ]
    assert flexref_run(*options, "--max-new-tokens", "2") == 0
    assert "may have at most" not in capsys.readouterr().err
