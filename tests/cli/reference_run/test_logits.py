"""`flexref logits` and `flexref compare-logits` as somebody calls them who checks an engine of their own."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flexref.architecture.spec import ModelSpec
from flexref.check.models import write_model
from flexref.cli.main import COMMANDS, command_group, run

SPEC = ModelSpec("tiny", 61, 12, 32, 32, 2, 2, 96)


def flexref(*arguments: str) -> int:
    return run(command_group(COMMANDS), arguments)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a tiny model without a tokenizer, and rows of token ids."""
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "tiny.h5", SPEC)
    (tmp_path / "ids.jsonl").write_text('{"prompt": [5, 6, 7, 44], "id": "a"}\n\n{"prompt": [3]}\n')
    return tmp_path


def write_theirs(name: str, change: float = 0.0) -> None:
    """What an engine in float32 gives; one logit of the second row is off by `change`."""
    with np.load("ref.npz") as held:
        arrays = {f"logits_{row}": held[f"logits_{row}"].astype(np.float32) for row in range(2)}
    arrays["logits_1"][0, 9] += change
    np.savez(name, **arrays)


def test_a_right_engine_is_within_and_a_wrong_one_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert flexref("logits", "--model", "tiny.h5", "--input", "ids.jsonl", "-o", "ref.npz") == 0
    shown = capsys.readouterr()
    assert shown.err == "skipped 1 blank line\n"
    assert shown.out.startswith("ref.npz: logits of tiny at 5 positions of 2 rows, with bounds for float32, float16, ")
    write_theirs("right.npz")
    assert flexref("compare-logits", "ref.npz", "right.npz") == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[-1] == "within the bounds of float32"
    assert shown.err == ""
    write_theirs("wrong.npz", 0.01)
    assert flexref("compare-logits", "ref.npz", "wrong.npz") == 1
    shown = capsys.readouterr()
    assert shown.out.splitlines()[-1] == "outside the bounds of float32"
    assert shown.err.startswith("flexref: the logits are not those of tiny: row 1, position 0, token 9: found ")
    assert shown.err.count("\n") == 1
    assert flexref("compare-logits", "ref.npz", "wrong.npz", "--dtype", "bfloat16") == 0


def test_json_holds_every_row_in_one_object(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--input", "ids.jsonl", "--positions", "2", "--dtype", "float16", "-o", "ref.npz")
    assert flexref("logits", "--model", "tiny.h5", *options, "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert made["rows"] == [{"id": "a", "tokens": 4, "positions": 2}, {"id": None, "tokens": 1, "positions": 1}]
    assert (made["dtypes"], made["vocabulary"]) == (["float16"], 61)
    write_theirs("theirs.npz", 50)
    assert flexref("compare-logits", "ref.npz", "theirs.npz", "--dtype", "float16", "--json") == 1
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert (found["within"], found["worst_row"], found["dtype"]) == (False, 1, "float16")
    assert shown.err == f"flexref: {found['fault']}\n"
    assert (found["checksum"], found["reference"]) == (made["checksum"], "ref.npz")
    worst = found["rows"][1]["worst"]
    assert worst["share"] == pytest.approx(worst["error"] / worst["bound"])
    assert found["rows"][1]["first_divergence"]["token_id"] == 9
    assert not found["rows"][1]["first_divergence"]["tie"]
    assert found["rows"][0]["record_id"] == "a"


def test_text_is_taken_where_the_model_has_a_tokenizer(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ("logits", "--model", "demo", "--prompt", "It was", "--dtype", "float32", "--positions", "1")
    assert flexref(*call, "-o", "one.npz") == 0
    assert capsys.readouterr().out.startswith("one.npz: logits of demo at 1 position of 1 row, with bounds for float32")
    assert flexref("logits", "--model", "demo", "--prompt", "It was", "--dtype", "float32", "-o", "ref.npz") == 0
    with np.load("ref.npz") as held:
        assert held["ids_0"][0] == 2
        assert held["logits_0"].shape == (len(held["ids_0"]), 8192)
    assert flexref("logits", "--model", "tiny.h5", "--prompt", "It was", "-o", "other.npz") == 1
    assert "prompt 1: it is text, but the model has no tokenizer" in capsys.readouterr().err


def test_a_row_may_fill_every_position_and_no_more(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "full.jsonl").write_text(json.dumps({"prompt": [1] * 12}))
    (here / "long.jsonl").write_text(json.dumps({"prompt": [1] * 13}))
    assert flexref("logits", "--model", "tiny.h5", "--input", "full.jsonl", "-o", "ref.npz") == 0
    assert flexref("logits", "--model", "tiny.h5", "--input", "long.jsonl", "-o", "long.npz") == 1
    said = "flexref: prompt 1: 13 tokens are too many: the model has 12 positions\n"
    assert capsys.readouterr().err == said
    assert not (here / "long.npz").exists()


def test_a_models_name_cannot_write_lines_of_its_own(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(here / "odd.h5", replace(SPEC, name="odd\x1b[31m\nflexref: all is well"))
    assert flexref("logits", "--model", "odd.h5", "--input", "ids.jsonl", "--dtype", "float32", "-o", "ref.npz") == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("ref.npz: logits of odd\\x1b[31m\\nflexref: all is well at 5 positions")
    write_theirs("wrong.npz", 0.01)
    assert flexref("compare-logits", "ref.npz", "wrong.npz") == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("flexref: the logits are not those of odd\\x1b[31m\\nflexref: all is well: row 1")
    assert shown.err.count("\n") == 1
    placed = ("--percent", *("100", "0") * 3)
    assert flexref("bench", "--model", "odd.h5", "--prompt-len", "2", "--gen-len", "2", "--rows", "1", *placed) == 0
    assert flexref("check", "--model", "odd.h5", "--backend", "numpy", "--no-contract", "--max-new-tokens", "1") == 0
    assert flexref("convert", "odd.h5", "again.h5", "--dtype", "float32") == 0
    shown = capsys.readouterr()
    assert shown.out.count("odd\\x1b[31m\\nflexref") == 3
    assert "\x1b[31m" not in shown.out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("logits", "--model", "tiny.h5", "-o", "ref.npz"), 2, "give --prompt or --input"),
        (("logits", "--model", "tiny.h5", "--input", "ids.jsonl"), 2, "Missing option"),
        (("logits", "--model", "no.h5", "--input", "ids.jsonl", "-o", "x.npz"), 1, "no such weight file: no.h5"),
        (("logits", "--model", "tiny.h5", "--input", "ids.jsonl", "-o", "tiny.h5"), 1, "this command reads it"),
        (("logits", "--model", "tiny.h5", "--input", "ids.jsonl", "-o", "old.npz"), 1, "--force replaces it"),
        (("compare-logits", "ref.npz", "old.npz"), 1, "ref.npz: cannot be read: No such file"),
        (("compare-logits", "old.npz", "old.npz"), 1, "old.npz: it is no .npz file of numpy"),
        (("compare-logits", "old.npz", "old.npz", "--dtype", "float64"), 2, "'float64' is not one of"),
    ],
)
def test_bad_input_gets_one_clear_line(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, said: str
) -> None:
    (here / "old.npz").write_text("older")
    assert flexref(*arguments) == code
    shown = capsys.readouterr()
    assert said in shown.err
    assert "Traceback" not in shown.err
    if code == 1:
        assert shown.err.count("\n") == 1 + ("skipped" in shown.err)
