"""`flexref verify`: every damaged dataset by name, and exit codes that scripts can use."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from flexref.architecture.spec import ModelSpec
from flexref.cli.main import COMMANDS, command_group, run
from flexref.storage.weightfile import open_weight_file
from flexref.storage.writer import WeightFileWriter


def written(path: Path, tokenizer: bytes) -> Path:
    spec = ModelSpec("tiny", 200, 16, 32, 32, 2, 2, 64)
    with WeightFileWriter(path, spec, "int4", 16, "float16", tokenizer) as writer:
        for tensor in writer.tensors:
            writer.write(tensor.name, np.random.default_rng(0).standard_normal(tensor.shape))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    words = {f"w{number}": number for number in range(200)}
    document = Tokenizer(models.WordLevel(words, unk_token="w0")).to_str()
    return written(tmp_path / "tiny.h5", document.encode())


def damage(file: Path, *datasets: str) -> None:
    content = bytearray(file.read_bytes())
    for part in open_weight_file(file).parts:
        if part.dataset in datasets:
            content[part.extent.stop - 1] ^= 0x80
    file.write_bytes(content)


def test_a_whole_file_is_one_line_and_exit_0(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command_group(COMMANDS), ["verify", str(file)]) == 0
    count = len(list(open_weight_file(file).parts))
    assert capsys.readouterr().out.startswith(f"{file}: all {count} datasets match, ")


def test_every_damaged_dataset_is_named_and_the_exit_code_is_1(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["layers/000/attention_qkv/weight/scale", "layers/001/ffn_up/bias", "tokenizer"]
    damage(file, *names)
    assert run(command_group(COMMANDS), ["verify", str(file)]) == 1
    assert capsys.readouterr().out.splitlines() == [f"damaged: {name}" for name in names]
    assert run(command_group(COMMANDS), ["verify", str(file), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["damaged"] == names
    assert report["checked_bytes"] > 0


def test_json_of_a_whole_file_names_none(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command_group(COMMANDS), ["verify", str(file), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    parts = list(open_weight_file(file).parts)
    assert report.pop("elapsed_s") >= 0
    assert report == {
        "file": str(file),
        "damaged": [],
        "tokenizer_error": None,
        "checked_datasets": len(parts),
        "checked_bytes": sum(part.extent.nbytes for part in parts),
    }


@pytest.mark.parametrize("damage_at", [0, 100, -1])
def test_damaged_metadata_is_one_line_and_exit_1(
    file: Path, capsys: pytest.CaptureFixture[str], damage_at: int
) -> None:
    content = bytearray(file.read_bytes())
    content[damage_at] ^= 1
    file.write_bytes(content)
    assert run(command_group(COMMANDS), ["verify", str(file)]) == 1
    shown = capsys.readouterr()
    assert (shown.out, shown.err.count("\n")) == ("", 1)
    assert str(file) in shown.err


def test_a_tokenizer_that_a_job_would_refuse_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path / "tiny.h5", b"{}")
    assert run(command_group(COMMANDS), ["generate", "--model", str(file), "--prompt", "w1"]) == 1
    said = capsys.readouterr().err.removeprefix("flexref: ").strip()
    assert run(command_group(COMMANDS), ["verify", str(file)]) == 1
    assert capsys.readouterr().out == f"refused: {said}\n"
    assert run(command_group(COMMANDS), ["verify", str(file), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["damaged"], report["tokenizer_error"]) == ([], said)


def test_a_chat_template_that_is_none_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = {"model": {"type": "WordLevel", "vocab": {"w0": 0, "w1": 1}, "unk_token": "w0"}}
    for template, code in (("{{ messages[0].content }}", 0), ("{% for %}", 1)):
        chat = {"chat_template": {"template": template, "special_tokens": {}}}
        file = written(tmp_path / f"{code}.h5", json.dumps({**document, **chat}).encode())
        assert run(command_group(COMMANDS), ["verify", str(file)]) == code
    assert "line 1 of the chat template" in capsys.readouterr().out


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_damage_is_told_in_one_line_on_stderr_too(
    file: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    names = [part.dataset for part in open_weight_file(file).parts]
    damage(file, *names[3:5])
    assert run(command_group(COMMANDS), ["verify", str(file), *options]) == 1
    assert capsys.readouterr().err == f"flexref: {file}: 2 of {len(names)} datasets do not match their checksums\n"
