"""`flexref convert`: from a folder to a file at the command line, and what it says of bad input."""

import json
import re
import warnings
from itertools import product
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from flexref.architecture.spec import ModelSpec
from flexref.architecture.stages import parameters
from flexref.cli.main import COMMANDS, command_group, run
from flexref.storage.names import resolve
from flexref.storage.weightfile import open_weight_file, read_tensor

ROOT = Path(__file__).parents[2]
SPEC = ModelSpec("tiny", 300, 16, 32, 32, 2, 2, 64)


@pytest.fixture(scope="module")
def make_random_model() -> ModuleType:
    """The tool that makes random models, as a module."""
    path = ROOT / "tools" / "make_random_model"
    module = ModuleType(path.name)
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), module.__dict__)
    return module


@pytest.fixture
def folder(tmp_path: Path, make_random_model: ModuleType) -> Path:
    """A small random OPT folder without a tokenizer."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps(make_random_model.config_of(SPEC, "float16")))
    make_random_model.make(["--config", str(config), "--out", str(tmp_path / "tiny")], standalone_mode=False)
    return tmp_path / "tiny"


def flexref(*arguments: object) -> int:
    return run(command_group(COMMANDS), [str(argument) for argument in arguments])


def test_a_folder_becomes_a_file_and_a_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder.parent / "tiny.h5"
    assert flexref("convert", folder, out) == 0
    shown = capsys.readouterr()
    found = open_weight_file(out)
    assert (found.scheme, found.group_size, found.dtype) == ("none", None, "float16")
    assert shown.out.startswith(f"{out}: tiny, float16, not quantized, ")
    assert shown.out.count("\n") == 1
    assert shown.err == f"{folder} has no tokenizer: prompts for this file are token ids\n"


def test_quantized_is_what_is_asked_for_by_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder.parent / "tiny.h5"
    assert flexref("convert", folder, out, "--quantize", "int4") == 0
    assert capsys.readouterr().out.startswith(f"{out}: tiny, int4 in groups of 64, ")
    assert open_weight_file(out).group_size == 64
    assert flexref("convert", folder, out, "--group-size", 16, "--force") == 2
    assert "--group-size is that of quantized weights: give --quantize int4 or int8" in capsys.readouterr().err


def test_rounding_float32_to_float16_is_told_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.numpy import load_file, save_file

    out, path = folder.parent / "tiny.h5", folder / "model.safetensors"
    tensors = {name: tensor.astype(np.float32) for name, tensor in load_file(path).items()}
    save_file(tensors, path)
    assert flexref("convert", folder, out, "--json") == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["rounding"] is None  # float32 that holds float16 loses nothing
    assert "rounded" not in shown.err
    name = next(name for name in tensors if name.endswith("fc1.weight"))
    tensors[name].flat[3] = 1 + 2.0**-12
    save_file(tensors, path)
    assert flexref("convert", folder, out, "--force") == 0
    assert "float32 rounded to float16, largest relative error 0.000244\n" in capsys.readouterr().err
    assert flexref("convert", folder, out, "--force", "--json") == 0
    assert json.loads(capsys.readouterr().out)["rounding"] == {
        "from": ["float32"],
        "to": "float16",
        "changed_values": 1,
        "largest_relative_error": 2.0**-12 / (1 + 2.0**-12),
        "largest_error_below_normal_range": 0.0,
    }
    assert flexref("convert", folder, out, "--force", "--dtype", "float32") == 0
    assert "rounded" not in capsys.readouterr().err


def test_options_reach_the_file_and_json_tells_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder.parent / "tiny.h5"
    asked = ("--quantize", "int4", "--group-size", 16, "--dtype", "float32", "--json")
    assert flexref("convert", folder, out, *asked) == 0
    report = json.loads(capsys.readouterr().out)
    found = open_weight_file(out)
    assert (found.scheme, found.group_size, found.dtype) == ("int4", 16, "float32")
    assert report.pop("elapsed_s") > 0
    assert report == {
        "file": str(out),
        "model": "tiny",
        "scheme": "int4",
        "group_size": 16,
        "dtype": "float32",
        "parameters": parameters(SPEC),
        "tokenizer_bytes": 0,
        "source_bytes": 2 * parameters(SPEC),
        "file_bytes": out.stat().st_size,
        "fp16_bytes": 2 * parameters(SPEC),
        "rounding": None,
        "ignored_tensors": [],
    }
    assert flexref("convert", folder, out, "--force", "--quantize", "none", "--json") == 0
    assert json.loads(capsys.readouterr().out)["group_size"] is None
    assert open_weight_file(out).scheme == "none"


def test_a_folders_tokenizer_goes_into_the_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tokenizers import Tokenizer, models

    words = {f"w{number}": number for number in range(300)}
    Tokenizer(models.WordLevel(words, unk_token="w0")).save(str(folder / "tokenizer.json"))
    assert flexref("convert", folder, folder.parent / "tiny.h5") == 0
    stored = open_weight_file(folder.parent / "tiny.h5").tokenizer_json
    assert stored is not None
    assert Tokenizer.from_str(stored.decode()).encode("w7").ids == [7]
    assert "no tokenizer" not in capsys.readouterr().err


def test_a_folders_chat_template_goes_into_the_file_and_inspect_tells_of_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tokenizers import Tokenizer, models

    out, again = folder.parent / "tiny.h5", folder.parent / "again.h5"
    words = {f"w{number}": number for number in range(300)}
    Tokenizer(models.WordLevel(words, unk_token="w0")).save(str(folder / "tokenizer.json"))
    assert flexref("convert", folder, out) == 0
    assert flexref("inspect", out) == 0
    assert ", without a chat template\n" in capsys.readouterr().out
    (folder / "chat_template.jinja").write_text("{% for m in messages %}")
    assert flexref("convert", folder, out, "--force") == 1
    assert re.fullmatch(r"flexref: \S+: line 1 of the chat template: .*\n", capsys.readouterr().err)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }} ä")
    assert flexref("convert", folder, out, "--force") == 0
    assert flexref("convert", out, again, "--quantize", "int4") == 0
    for path in (out, again):
        capsys.readouterr()
        assert flexref("inspect", path, "--json") == 0
        assert json.loads(capsys.readouterr().out)["chat_template_bytes"] == 28
    assert flexref("inspect", out) == 0
    assert ", with a chat template of 28 bytes\n" in capsys.readouterr().out
    with out.open("r+b") as file:
        part = open_weight_file(out).tokenizer
        assert part is not None
        file.seek(part.extent.offset)
        file.write(b"#")
    assert flexref("inspect", out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["chat_template_bytes"] is None
    assert flexref("inspect", out) == 0
    assert ", with a chat template that cannot be read\n" in capsys.readouterr().out


def test_tensors_without_use_are_told_on_stderr(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np
    from safetensors.numpy import load_file, save_file

    path = folder / "model.safetensors"
    save_file({**load_file(path), "model.decoder.version": np.ones(3, np.float32)}, path)
    assert flexref("convert", folder, folder.parent / "tiny.h5") == 0
    assert "ignored 1 tensor that this model has no use for: model.decoder.version" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing", "out.h5"], "flexref: no such directory: missing\n"),
        (["{folder}", "/proc/out.h5"], "flexref: cannot write /proc/out.h5: "),
        (["{folder}", "{folder}"], "it is a folder\n"),
        (["{folder}", "/dev/null"], "flexref: cannot write /dev/null: it is there and no regular file\n"),
        (["{folder}/..", "out.h5"], "is no OPT|has no weights"),
    ],
)
def test_bad_input_is_one_line_and_exit_1(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert flexref("convert", *(argument.format(folder=folder) for argument in arguments)) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = [line for line in shown.err.splitlines(keepends=True) if line.startswith("flexref: ")]
    assert re.search(said, line)


def test_every_scheme_and_group_size_makes_a_file_that_generates(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from flexref import load

    out = folder.parent / "tiny.h5"
    for scheme, group_size in [("none", 64), *product(("int4", "int4-mse", "int8"), (32, 64, 128))]:
        asked = ("--quantize", scheme, "--group-size", group_size, "--json", "--force")
        assert flexref("convert", folder, out, *asked) == 0
        groups = None if scheme == "none" else group_size
        report, found = json.loads(capsys.readouterr().out), open_weight_file(out)
        assert (report["scheme"], report["group_size"]) == (found.scheme, found.group_size) == (scheme, groups)
        with load(str(out), backend="numpy") as engine:
            assert len(engine.generate([[2, 5, 7]]).outputs[0].token_ids) > 0


def test_the_built_in_model_is_a_source_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert flexref("convert", "demo", tmp_path / "demo8.h5", "--quantize", "int8", "--group-size", 128) == 0
    found, demo = open_weight_file(tmp_path / "demo8.h5"), open_weight_file(resolve("demo"))
    assert (found.spec, found.tokenizer_json, found.scheme) == (demo.spec, demo.tokenizer_json, "int8")
    assert capsys.readouterr().err == ""
    assert flexref("convert", tmp_path / "demo8.h5", tmp_path / "again.h5") == 1
    assert "holds int8 weights" in capsys.readouterr().err


def read_words(folder: Path) -> Path:
    """Give the folder a tokenizer; a text of its words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"w{number}": number for number in range(300)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    text = folder.parent / "sample.txt"
    text.write_text(" ".join(f"w{number * number % 300}" for number in range(5000)))
    return text


def test_a_model_without_a_tokenizer_reads_no_sample(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert flexref("convert", folder, folder.parent / "tiny.h5", "--calibrate", "sample.txt") == 1
    assert "has no tokenizer, so that no text can calibrate it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("scheme", "found_scheme"),
    [("int4", "int4-calibrated"), ("int4-mse", "int4-calibrated"), ("int8", "int8"), ("none", "none")],
)
def test_a_sample_of_text_calibrates(
    folder: Path, scheme: str, found_scheme: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text, out = read_words(folder), folder.parent / "tiny.h5"
    options = ["--quantize", scheme, "--group-size", 32]
    assert flexref("convert", folder, out, *options, "--calibrate", text) == 0
    stored = "float16" if scheme == "none" else f"{found_scheme} in groups of 32"
    assert f": tiny, {stored}, " in capsys.readouterr().out
    found = open_weight_file(out)
    assert found.scheme == found_scheme
    assert found.group_size == (None if scheme == "none" else 32)
    assert flexref("convert", folder, folder.parent / "plain.h5", *options) == 0
    plain = open_weight_file(folder.parent / "plain.h5")
    name = "layers/000/attention_qkv/bias"
    assert not np.array_equal(read_tensor(plain.tensors[name]), read_tensor(found.tensors[name]))


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("layer", ["embed_tokens", "self_attn.q_proj", "self_attn.v_proj", "fc1", "fc2"])
@pytest.mark.parametrize("calibrated", [False, True])
def test_weights_that_are_not_finite_are_one_line_without_warnings(
    folder: Path, bad: float, layer: str, calibrated: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.numpy import load_file, save_file

    text, path = read_words(folder), folder / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith(f"{layer}.weight"))
    tensors[name].flat[3] = bad
    save_file(tensors, path)
    sample = ["--calibrate", text] if calibrated else []
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert (
            flexref("convert", folder, folder.parent / "tiny.h5", "--quantize", "int4", "--group-size", 32, *sample)
            == 1
        )
    assert [str(warning.message) for warning in told] == []
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1
    assert "not finite" in shown.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["x"],
        ["x", "y", "--quantize", "int2"],
        ["x", "y", "--group-size", "0"],
    ],
)
def test_a_usage_error_is_exit_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert flexref("convert", *arguments) == 2
    assert "Usage: flexref convert" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_tool_makes_folders_in_shards_that_convert_to_what_it_writes_itself(
    tmp_path: Path, make_random_model: ModuleType, dtype: str
) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(make_random_model.config_of(SPEC, dtype)))
    options = ["--config", str(config), "--dtype", dtype, "--std", "0.1"]
    make_random_model.make([*options, "--out", str(tmp_path / "f"), "--shard-gib", "0.00002"], standalone_mode=False)
    assert len(list((tmp_path / "f").glob("*.safetensors"))) > 2
    assert flexref("convert", tmp_path / "f", tmp_path / "f.h5", "--quantize", "none", "--dtype", "float32") == 0
    folder_file = open_weight_file(tmp_path / "f.h5")
    if dtype != "bfloat16":
        make_random_model.make([*options, "--out", str(tmp_path / "d.h5")], standalone_mode=False)
        direct = open_weight_file(tmp_path / "d.h5")
        assert (parameters(direct.spec), direct.dtype, direct.scheme) == (parameters(folder_file.spec), dtype, "none")
