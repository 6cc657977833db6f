"""`flexref inspect`: what it lists, in text and in JSON."""

import json
from pathlib import Path

import numpy as np
import pytest

from flexref.architecture.spec import ModelSpec
from flexref.architecture.stages import parameters
from flexref.cli.main import COMMANDS, command_group, run
from flexref.storage import names
from flexref.storage.weightfile import open_weight_file
from flexref.storage.writer import WeightFileWriter

SPEC = ModelSpec("tiny", 200, 16, 32, 24, 2, 2, 64)


@pytest.fixture(params=["int4", "none"])
def file(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    with WeightFileWriter(tmp_path / "tiny.h5", SPEC, request.param, 16, "float32", b"{}") as writer:
        for tensor in writer.tensors:
            writer.write(tensor.name, np.random.default_rng(0).standard_normal(tensor.shape))
    return tmp_path / "tiny.h5"


def test_json_tells_everything_of_every_tensor(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command_group(COMMANDS), ["inspect", str(file), "--json"]) == 0
    report, found = json.loads(capsys.readouterr().out), open_weight_file(file)
    assert report["model"]["width"] == 32
    assert [report[key] for key in ("scheme", "group_size", "dtype")] == [found.scheme, found.group_size, "float32"]
    assert report["tokenizer_bytes"] == 2
    assert report["file_bytes"] == file.stat().st_size
    assert report["parameters"] == parameters(SPEC)
    assert report["fp16_bytes"] == 2 * parameters(SPEC) == sum(row["fp16_bytes"] for row in report["tensors"])
    assert report["stored_bytes"] == found.nbytes == sum(row["stored_bytes"] for row in report["tensors"])
    for row, tensor in zip(report["tensors"], found.tensors.values(), strict=True):
        assert (row["name"], tuple(row["shape"]), row["scheme"]) == (tensor.name, tensor.shape, tensor.scheme)
        assert row["offset_bytes"] == tensor.parts[0].extent.offset


def test_text_has_a_line_for_every_tensor_and_their_sums(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command_group(COMMANDS), ["inspect", str(file)]) == 0
    lines, found = capsys.readouterr().out.splitlines(), open_weight_file(file)
    assert lines[1] == "model      tiny: 2 layers, width 32, 2 heads, vocabulary 200, 16 positions"
    rows = {line.split()[0]: line for line in lines if line}
    for name, tensor in found.tensors.items():
        shown = tensor.scheme if tensor.scheme != "none" else "float32"
        assert rows[name].split()[-3:] == [shown, f"{tensor.nbytes:,}", f"{2 * tensor.elements:,}"]
        assert " x ".join(str(length) for length in tensor.shape) in rows[name]
    assert rows["sum"].split() == ["sum", f"{found.nbytes:,}", f"{2 * parameters(SPEC):,}"]
    assert len({len(line) for line in lines[5:]}) == 1


def test_demo_is_the_built_in_model(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = tmp_path / "flexref" / "data" / "demo.h5"
    shipped.parent.mkdir(parents=True)
    shipped.write_bytes(file.read_bytes())
    monkeypatch.setattr(names, "__file__", str(tmp_path / "flexref" / "storage" / "names.py"))
    assert run(command_group(COMMANDS), ["inspect", "demo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["file"] == str(shipped)


def test_a_missing_or_foreign_file_is_one_line_and_exit_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "foreign.h5").write_text("text")
    for name in ("missing.h5", "foreign.h5"):
        assert run(command_group(COMMANDS), ["inspect", str(tmp_path / name)]) == 1
        shown = capsys.readouterr()
        assert (shown.out, shown.err.count("\n")) == ("", 1)
        assert name in shown.err
