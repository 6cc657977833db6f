"""Converting with a sample of text: better logits than least squares, every variant, bounded samples, plain errors."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Document
from tokenizers import models, pre_tokenizers, processors

from flexref import load
from flexref.architecture.spec import ModelSpec
from flexref.calibration import calibrate
from flexref.calibration.calibrate import SCHEME, CalibrationSample, convert_calibrated
from flexref.check.models import write_model
from flexref.engine.request import Request
from flexref.errors import CheckpointError, PromptError
from flexref.policy import Policy, Shares
from flexref.storage.convert import convert
from flexref.storage.origin import Rows, whole
from flexref.storage.quant import Quantized
from flexref.storage.weightfile import open_weight_file, read_tensor, verify
from flexref.testing.strategies import specs
from flexref.text.tokenizer import Tokenizer

SPEC = ModelSpec("tiny", 90, 24, 32, 32, 2, 2, 96)


def tokenizer_json(words: int = 80) -> bytes:
    """Words `w0`, `w1` ... are tokens 1, 2 ...; a text begins with token 0."""
    document = Document(models.WordLevel({"</s>": 0} | {f"w{n}": n + 1 for n in range(words)}, unk_token="</s>"))
    document.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    document.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 0)])
    return document.to_str().encode()


def text_of(tokens: int, words: int = 80, seed: int = 0) -> str:
    """Words, each of which makes its neighbour likely."""
    draw = np.random.default_rng(seed)
    steps = np.where(draw.random(tokens) < 0.7, 1, draw.integers(0, words, tokens))
    return " ".join(f"w{number}" for number in np.cumsum(steps) % words)


def model(folder: Path, spec: ModelSpec = SPEC, seed: int = 0) -> Path:
    write_model(folder / "dense.h5", spec, "none", "float32", seed)
    return folder / "dense.h5"


@settings(max_examples=settings.default.max_examples // 2)  # each example is a whole model, twice
@given(
    spec=specs(layers=2, positions=20),
    group_size=st.sampled_from([4, 32, 64]),
    dtype=st.sampled_from(["float16", "float32"]),
)
def test_every_variant_is_calibrated_to_a_sound_file(
    tmp_path_factory: pytest.TempPathFactory, spec: ModelSpec, group_size: int, dtype: str
) -> None:
    folder = tmp_path_factory.mktemp("calibrated")
    sample = CalibrationSample(text_of(60, spec.vocabulary - 1), tokenizer_json(spec.vocabulary - 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrate, "LEAST_TOKENS", 10)
        done = convert_calibrated(model(folder, spec), folder / "c.h5", sample, SCHEME, group_size, dtype)
    found = open_weight_file(folder / "c.h5")
    assert verify(found.path) == []
    assert (found.scheme, found.layout, found.group_size, found.spec) == ("int4-calibrated", "int4", group_size, spec)
    assert done.file_bytes == Path(found.path).stat().st_size
    dense = open_weight_file(folder / "dense.h5")
    for name, stored in found.tensors.items():
        if name.startswith("layers/") and not name.endswith(("norm/weight", "norm/bias")):
            assert isinstance(read_tensor(stored), Quantized) == name.endswith("/weight")
        elif name in dense.tensors and dense.tensors[name].shape == stored.shape:
            expected = read_tensor(dense.tensors[name]).astype(dtype)
            np.testing.assert_array_equal(read_tensor(stored), expected)


def logits_of(path: Path, prompts: list[list[int]], cache_scheme: str = "none") -> np.ndarray:
    """The first logits (B, V) after every prompt."""
    found: dict[int, np.ndarray] = {}

    def keep(rows, steps, values) -> None:
        found.update(zip(rows.tolist(), values.copy(), strict=True))

    on_device = Shares(1.0, 0.0, 0.0)
    policy = Policy(on_device, on_device, rows_per_group=len(prompts), cache_scheme=cache_scheme)
    with load(str(path), policy=policy, backend="numpy") as engine:
        engine.generate(prompts, Request(1, ignore_eos=True), on_logits=keep)
    return np.stack([found[row] for row in range(len(prompts))])


def test_logits_after_other_texts_are_closer_than_by_least_squares(tmp_path: Path) -> None:
    dense, tokenizer = model(tmp_path), tokenizer_json()
    convert_calibrated(dense, tmp_path / "c.h5", CalibrationSample(text_of(6000), tokenizer), SCHEME, 32, "float16")
    convert(dense, tmp_path / "m.h5", "int4-mse", 32, "float16", tokenizer)
    ids = Tokenizer.from_json(tokenizer).encode(text_of(1500, seed=1))[1:]
    prompts = [[0, *ids[first : first + 15]] for first in range(0, 1500, 15)]
    exact, found, plain = (logits_of(tmp_path / name, prompts) for name in ("dense.h5", "c.h5", "m.h5"))
    errors = [float(np.square(part - exact).mean()) for part in (found, plain)]
    assert errors[0] < 0.9 * errors[1]


@pytest.mark.parametrize("scheme", ["none", "int8"])
def test_whatever_the_weights_are_a_4_bit_cache_costs_less(tmp_path: Path, scheme: str) -> None:
    dense, tokenizer = model(tmp_path), tokenizer_json()
    convert(dense, tmp_path / "plain.h5", scheme, 32, "float32", tokenizer)
    convert_calibrated(dense, tmp_path / "new.h5", CalibrationSample(text_of(6000), tokenizer), scheme, 32, "float32")
    ids = Tokenizer.from_json(tokenizer).encode(text_of(1500, seed=1))[1:]
    prompts = [[0, *ids[first : first + 15]] for first in range(0, 1500, 15)]
    exact = logits_of(dense, prompts)
    errors = {
        (name, cache): float(np.square(logits_of(tmp_path / name, prompts, cache) - exact).mean())
        for name in ("plain.h5", "new.h5")
        for cache in ("none", "int4")
    }
    assert errors["new.h5", "int4"] < 0.7 * errors["plain.h5", "int4"]
    if scheme == "none":
        assert errors["new.h5", "none"] < 1e-4 * errors["new.h5", "int4"]
        assert errors["plain.h5", "none"] == 0


def test_a_bias_takes_up_what_errors_do_to_the_mean(tmp_path: Path) -> None:
    dense = model(tmp_path)
    convert_calibrated(
        dense, tmp_path / "c.h5", CalibrationSample(text_of(5000), tokenizer_json()), SCHEME, 32, "float32"
    )
    before, after = open_weight_file(dense).tensors, open_weight_file(tmp_path / "c.h5").tensors
    name = "layers/000/ffn_down/bias"
    assert not np.array_equal(read_tensor(before[name]), read_tensor(after[name]))
    norm = "layers/000/ffn_norm/bias"
    np.testing.assert_array_equal(read_tensor(before[norm]), read_tensor(after[norm]))


@given(tokens=st.integers(5, 400), positions=st.integers(2, 50), most=st.integers(1, 300))
def test_a_sample_is_runs_of_the_text_begun_as_texts_are(tokens: int, positions: int, most: int) -> None:
    tokenizer, text = Tokenizer.from_json(tokenizer_json()), text_of(tokens)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrate, "LEAST_TOKENS", 5)
        patch.setattr(calibrate, "MOST_TOKENS", most)
        runs = CalibrationSample(text, tokenizer_json()).runs(positions)
    ids = tokenizer.encode(text)[1:]
    cut = [[0, *ids[first : first + positions - 1]] for first in range(0, tokens, positions - 1)]
    assert all(run in cut for run in runs)
    assert len(runs) == min(len(cut), max(1, most // (positions - 1)))
    assert runs[0] == cut[0]


def test_a_text_that_says_too_little_is_refused(tmp_path: Path) -> None:
    short = CalibrationSample(text_of(4000), tokenizer_json())
    with pytest.raises(PromptError, match="has 4000 tokens, needed at least 4096"):
        convert_calibrated(model(tmp_path), tmp_path / "c.h5", short, SCHEME, 32, "float16")
    assert not (tmp_path / "c.h5").exists()


@pytest.mark.parametrize("scheme", ["none", SCHEME])
def test_weights_that_are_not_finite_are_refused_by_name(
    tmp_path: Path, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = model(tmp_path)

    def spoilt(parts: Sequence[Rows]) -> np.ndarray:
        values = whole(parts)
        values.flat[-1] = np.nan if parts[0].name.endswith("000/attention_qkv/weight") else values.flat[-1]
        return values

    monkeypatch.setattr(calibrate, "whole", spoilt)
    with pytest.raises(CheckpointError, match="layers/000/attention_qkv/weight: holds weights that are not finite"):
        convert_calibrated(
            source, tmp_path / "c.h5", CalibrationSample(text_of(5000), tokenizer_json()), scheme, 32, "float32"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["dense.h5"]
