"""`flexref eval` as its users call it: perplexity and questions, as JSON and for people, with good input and bad."""

import json
from pathlib import Path
from typing import Any

import pytest

from flexref.cli.main import COMMANDS, command_group, run
from flexref.loading import load
from flexref.storage.names import resolve
from flexref.storage.weightfile import open_weight_file, read_tensor
from flexref.storage.writer import WeightFileWriter

HELD = Path(__file__).parents[1] / "data" / "heldout"
SMALL = ["--device-mem-gib", "0.02", "--host-mem-gib", "0.02"]


def flexref_run(*arguments: str) -> int:
    return run(command_group(COMMANDS), ["eval", "--model", "demo", *arguments])


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert flexref_run("--json", *arguments) == 0
    parsed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return parsed


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text((HELD / "story.txt").read_text()[:3000])
    return str(path)


@pytest.fixture
def questions(tmp_path: Path) -> str:
    path = tmp_path / "questions.jsonl"
    asked = {"ctx": "The king said to his", "endings": ["servant.", "xylophone zz.", "xq xq xq xq."], "label": 0}
    path.write_text(f"{json.dumps(asked)}\n{json.dumps({**asked, 'label': 2})}\n")
    return str(path)


def test_a_text_has_a_perplexity_with_its_protocol_beside_it(capsys: pytest.CaptureFixture[str], text: str) -> None:
    found = as_json(capsys, "--text", text, "--window", "128", "--stride", "64")
    assert {"perplexity", "bits_per_byte", "word_perplexity", "tokens", "protocol"} <= found.keys()
    assert 10 < found["perplexity"] < 200
    protocol = found["protocol"]
    assert protocol["tokens"] == found["tokens"] > 700
    assert (protocol["window"], protocol["stride"], protocol["bos"], protocol["context_least"]) == (
        128,
        64,
        "first",
        64,
    )
    assert found["stats"]["scored_tokens"] == found["tokens"]
    assert "decode_s" not in found["stats"]
    assert flexref_run("--text", text, "--window", "128") == 0
    shown = capsys.readouterr()
    assert f"perplexity     {found['perplexity']:.4f}\n" in shown.out
    assert protocol["text"] in " ".join(shown.out.split())
    assert "What lay on which tier" in shown.err


def test_a_budget_smaller_than_the_weights_changes_no_figure(
    capsys: pytest.CaptureFixture[str], text: str, tmp_path: Path
) -> None:
    options = ["--text", text, "--window", "128", "--rows-per-group", "2", "--groups", "3"]
    free, tight = (as_json(capsys, *options, *more) for more in ([], [*SMALL, "--disk-dir", str(tmp_path)]))
    assert tight["perplexity"] == free["perplexity"]
    assert tight["stats"]["peak_bytes"]["device"] <= 0.02 * 2**30
    assert tight["stats"]["link_bytes"] != free["stats"]["link_bytes"]
    spread = as_json(capsys, *options[:4], "--percent", *["0"] * 6, "--no-overlap", "--rows-per-group", "2")
    assert spread["stats"]["policy"]["weights"]["disk"] == 1


def test_a_quantized_cache_costs_a_little(capsys: pytest.CaptureFixture[str], text: str) -> None:
    plain, quantized = (as_json(capsys, "--text", text, *more)["perplexity"] for more in ([], ["--quantize-cache"]))
    assert plain != quantized
    assert abs(quantized / plain - 1) < 0.05


def test_questions_have_an_accuracy_with_its_interval(capsys: pytest.CaptureFixture[str], questions: str) -> None:
    found = as_json(capsys, "--choices", questions)
    assert (found["questions"], found["accuracy"], found["layout"]) == (2, 0.5, "ending")
    low, high = found["accuracy_ci95"]
    assert 0 < low < 0.5 < high < 1
    assert found["normalized_accuracy"] in (0, 0.5, 1)
    assert flexref_run("--choices", questions) == 0
    assert "accuracy       0.5000  (95 %: 0.09" in capsys.readouterr().out


def test_last_words_have_no_normalized_accuracy(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "lambada.jsonl"
    path.write_text('{"text": "And the king said to his servants, Go up"}\n')
    found = as_json(capsys, "--choices", str(path))
    assert found["layout"] == "last_word"
    assert "normalized_accuracy" not in found
    assert flexref_run("--choices", str(path)) == 0
    assert "judged by greedy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--text", "/nowhere"], "/nowhere: cannot be read"),
        (["--choices", "/nowhere"], "/nowhere: cannot be read"),
        (["--text", "TEXT", "--window", "600"], "window must be from 2 to the model's 512 positions, found 600"),
        (["--text", "TEXT", "--window", "8", "--stride", "8"], "stride must be from 1 to 7"),
        (["--text", "TEXT", "--device-mem-gib", "0.001"], "device memory is too small by"),
        (["--text", "TEXT", "--backend", "dry"], "backend dry computes nothing"),
        (["--text", "TEXT", "--backend", "abacus"], "abacus"),
        (["--text", "TEXT", "--policy", "/nowhere"], "/nowhere"),
        (["--choices", "TEXT"], "line 1: not JSON"),
    ],
)
def test_bad_input_gets_one_clear_line(
    capsys: pytest.CaptureFixture[str], text: str, arguments: list[str], complaint: str
) -> None:
    assert flexref_run(*(text if argument == "TEXT" else argument for argument in arguments)) == (
        2 if {"abacus", "dry"} & set(arguments) else 1
    )
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("flexref:")]
    assert len(lines) == 1
    assert complaint in lines[0]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--text", "a", "--choices", "b"],
        ["--text", "a", "--tokens", "b"],
        ["--tokens", "a", "--choices", "b"],
        ["--choices", "b", "--window", "8"],
        ["--choices", "b", "--bos", "every"],
    ],
)
def test_a_call_that_makes_no_sense_is_a_usage_error(arguments: list[str]) -> None:
    assert flexref_run(*arguments) == 2


FORMS = {
    "words": lambda ids: " ".join(map(str, ids[:9])) + "\n" + "\n".join(map(str, ids[9:])),
    "a list": lambda ids: json.dumps(ids, indent=1),
    "lists in lines": lambda ids: f"{json.dumps(ids[:9])}\n\n{json.dumps(ids[9:])}\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_token_ids_have_the_perplexity_of_their_text(
    capsys: pytest.CaptureFixture[str], text: str, tmp_path: Path, form: str
) -> None:
    with load("demo") as engine:
        assert engine.tokenizer is not None
        ids = engine.tokenizer.encode(Path(text).read_text())
    path = tmp_path / "ids"
    path.write_text(FORMS[form](ids))
    found = as_json(capsys, "--tokens", str(path), "--window", "128")
    of_text = as_json(capsys, "--text", text, "--window", "128")
    for key in ("perplexity", "tokens", "protocol"):
        assert found[key] == of_text[key]
    assert (found["bits_per_byte"], found["word_perplexity"]) == (None, None)
    assert flexref_run("--tokens", str(path), "--window", "128") == 0
    shown = capsys.readouterr().out
    assert "stride 64" in shown
    assert "per word" not in shown


def test_a_model_without_a_tokenizer_is_evaluated_on_token_ids(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path, file, ids = tmp_path / "bare.h5", open_weight_file(resolve("demo")), tmp_path / "ids.txt"
    with WeightFileWriter(path, file.spec, "none", None, "float16", None) as writer:
        for tensor in writer.tensors:
            values = read_tensor(file.tensors[tensor.name])
            assert not isinstance(values, tuple)
            writer.write(tensor.name, values)
    ids.write_text(" ".join(str(2 + number % 300) for number in range(200)))
    assert run(command_group(COMMANDS), ["eval", "--model", str(path), "--tokens", str(ids), "--json"]) == 0
    bare = json.loads(capsys.readouterr().out)
    assert bare["perplexity"] == as_json(capsys, "--tokens", str(ids))["perplexity"]
    compared = ["compare-models", "demo", str(path), "--tokens", str(ids), "--json"]
    assert run(command_group(COMMANDS), compared) == 0
    assert json.loads(capsys.readouterr().out)["kl_max_nats"] == 0
    assert run(command_group(COMMANDS), compared[:3]) == 2


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "holds no token ids"),
        (b"[]", "holds no token ids"),
        (b"1 2\n3 x", "line 2: 'x' is no token id"),
        (b"1 -2", "line 1: '-2' is no token id"),
        (b"[1, 2]\n[3, true]", "line 2: 'True' is no token id"),
        (b"[1, 2]\n[3, 4.5]", "line 2: '4.5' is no token id"),
        (b"[1, [2]]", "line 1: '[2]' is no token id"),
        (b"[1,\n2", "not JSON"),
        (b"9" * 5000, "line 1: '9999"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff", "not UTF-8"),
        (b"1 2 99999", "token 3 is 99999; the vocabulary has"),
        (b"2", "1 token, of which none has a context"),
    ],
)
def test_bad_token_files_get_one_clear_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes, complaint: str
) -> None:
    path = tmp_path / "ids"
    path.write_bytes(content)
    assert flexref_run("--tokens", str(path)) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("flexref:")]
    assert complaint in line
    assert len(line) < 300
