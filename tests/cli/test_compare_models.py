"""`flexref compare-models` as its users call it: the built-in model beside itself in other forms."""

import json
from datetime import date
from pathlib import Path

import pytest

from flexref.cli.main import COMMANDS, command_group, run
from flexref.storage.names import resolve
from flexref.storage.weightfile import open_weight_file, read_tensor
from flexref.storage.writer import WeightFileWriter
from flexref.version import __version__

HELD = Path(__file__).parents[1] / "data" / "heldout"


@pytest.fixture(scope="module")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The built-in model with weights cut to some sixteenths."""
    path, file = tmp_path_factory.mktemp("models") / "coarse.h5", open_weight_file(resolve("demo"))
    with WeightFileWriter(path, file.spec, "none", None, "float16", file.tokenizer_json) as writer:
        for tensor in writer.tensors:
            values = read_tensor(file.tensors[tensor.name])
            assert not isinstance(values, tuple)
            coarse = tensor.name.startswith("layers/") and values.ndim == 2
            writer.write(tensor.name, (values * 128).round() / 128 if coarse else values)
    return str(path)


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text((HELD / "novel.txt").read_text()[:2500])
    return str(path)


def compare_models(*arguments: str) -> int:
    return run(command_group(COMMANDS), ["compare-models", *arguments])


def test_two_models_are_compared_for_people_and_as_json(
    capsys: pytest.CaptureFixture[str], coarse: str, text: str
) -> None:
    options = ("demo", coarse, "--text", text, "--window", "128")
    assert compare_models(*options, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert 0 < found["kl_mean_nats"] < found["kl_p99_nats"] < found["kl_max_nats"]
    assert 0.5 < found["same_top1_share"] < 1
    low, high = found["perplexity_difference_ci95"]
    assert low < found["perplexity_b"] - found["perplexity_a"] < high
    assert [layer["stage"] for layer in found["layers"]] == ["embed", *(f"layer {layer}" for layer in range(7))]
    assert found["layers"][0]["overall"] == 0 < found["layers"][1]["overall"] < found["layers"][7]["overall"]
    assert found["model_b"] == coarse
    assert compare_models(*options) == 0
    shown = capsys.readouterr().out
    for part in ("KL(A||B)", "99th percentile", "same top token", "paired block bootstrap", "layer 6", "stride 64"):
        assert part in shown


def test_a_model_beside_itself_tells_what_a_4_bit_cache_costs(capsys: pytest.CaptureFixture[str], text: str) -> None:
    options = ("demo", "demo", "--text", text, "--window", "128", "--percent", *("100", "0") * 3, "--json")
    assert compare_models(*options) == 0
    shown = capsys.readouterr()
    assert shown.err == ""  # no bar where nobody looks
    same = json.loads(shown.out)
    assert compare_models(*options, "--quantize-cache") == 0
    found = json.loads(capsys.readouterr().out)
    assert (same["kl_max_nats"], same["same_top1_share"]) == (0, 1)
    assert found["perplexity_a"] == same["perplexity_a"] != found["perplexity_b"]
    assert 0 < found["kl_mean_nats"] < 0.1


def test_the_errors_by_layer_are_drawn(coarse: str, text: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    path = tmp_path / "errors.png"
    assert compare_models("demo", coarse, "--text", text, "--window", "128", "--plot", str(path)) == 0
    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_plot_says_what_it_shows_and_is_the_same_every_time(coarse: str, text: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    drawn = [tmp_path / "one.svg", tmp_path / "two.svg"]
    for path in drawn:
        assert compare_models("demo", coarse, "--text", text, "--window", "128", "--plot", str(path)) == 0
    first, second = (path.read_text() for path in drawn)
    assert first == second
    assert f"How far {Path(coarse).name} (B) is from demo.h5 (A)" in first
    assert f"flexref {__version__}, {date.today().isoformat()}" in first


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["demo", "/nowhere.h5"], "no such weight file: /nowhere.h5"),
        (["demo", "demo", "--plot", "errors.txt"], "--plot writes .png, .svg, .pdf files, found 'errors.txt'"),
        (["demo", "demo", "--window", "1000"], "window must be from 2"),
        (["demo", "demo", "--device-mem-gib", "0.001"], "device memory is too small by"),
    ],
)
def test_bad_input_gets_one_clear_line(
    capsys: pytest.CaptureFixture[str], text: str, arguments: list[str], complaint: str
) -> None:
    assert compare_models(*arguments, "--text", text) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("flexref:")]
    assert len(lines) == 1
    assert complaint in lines[0]


def test_a_plot_without_matplotlib_is_refused_before_anything_is_computed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flexref.cli.show.plots.find_spec", lambda name: None)
    assert compare_models("demo", "demo", "--text", "/nowhere", "--plot", "errors.png") == 1
    assert "--plot needs matplotlib" in capsys.readouterr().err
