"""What the storage tests share: random models, random weight files, and what must come back from them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
from hypothesis import strategies as st

from flexref.architecture.opt import source_names
from flexref.architecture.spec import ACTIVATIONS, ModelSpec
from flexref.architecture.stages import file_stages
from flexref.storage.quant import Array, Quantized
from flexref.storage.schemes import quantize_as
from flexref.storage.trailer import seal
from flexref.storage.weightfile import WeightFile, read_tensor
from flexref.storage.writer import WeightFileWriter

if TYPE_CHECKING:
    import torch


def oracles_torch() -> Any:
    """PyTorch, which writes checkpoints; without it the test is skipped."""
    return pytest.importorskip("torch", reason="the oracle needs PyTorch: pip install '.[oracle]'")


@dataclass(frozen=True)
class Written:
    """A weight file and the float32 tensors that were written to it."""

    path: Path
    tensors: dict[str, Array]


def random_tensors(spec_tensors: tuple, seed: int = 0) -> dict[str, Array]:
    generator = np.random.default_rng(seed)
    return {tensor.name: generator.standard_normal(tensor.shape, np.float32) for tensor in spec_tensors}


def write_file(
    path: Path,
    spec: ModelSpec,
    scheme: str = "int4",
    group_size: int = 8,
    dtype: str = "float16",
    tokenizer: bytes = b"",
) -> Written:
    """A weight file of random tensors at `path`."""
    with WeightFileWriter(path, spec, scheme, group_size, dtype, tokenizer) as writer:
        tensors = random_tensors(writer.tensors)
        for name, values in tensors.items():
            writer.write(name, values)
    return Written(path, tensors)


def reseal(path: Path, metadata_bytes: int | None = None) -> None:
    """Give a file that was tampered with a trailer that fits, as whoever does it on purpose would."""
    if metadata_bytes is None:
        offsets: list[int] = []
        with h5py.File(path, "r") as file:
            file.visititems(
                lambda _, found: (
                    offsets.append(found.id.get_offset() or 1 << 40) if isinstance(found, h5py.Dataset) else None
                )
            )
        metadata_bytes = min(offsets) // 4096 * 4096
    descriptor = os.open(path, os.O_RDWR)
    seal(descriptor, metadata_bytes)
    os.close(descriptor)


def assert_same(found: WeightFile, written: Written) -> None:
    """Every tensor of `found` is, bit for bit, what `written` must have become."""
    assert list(found.tensors) == list(written.tensors)
    for name, stored in found.tensors.items():
        values, tensor = written.tensors[name], read_tensor(stored)
        if isinstance(tensor, Quantized):
            expected = quantize_as(found.scheme, values, found.group_size, found.dtype, name)
            np.testing.assert_array_equal(tensor.codes, expected.codes)
            np.testing.assert_array_equal(tensor.scale, expected.scale)
            np.testing.assert_array_equal(tensor.zero, expected.zero)
        else:
            assert tensor.dtype == np.dtype(found.dtype)
            np.testing.assert_array_equal(tensor, values.astype(found.dtype))


@st.composite
def model_specs(draw: st.DrawFn) -> ModelSpec:
    """Small models of every variant of the family."""
    heads = draw(st.integers(1, 3))
    width = heads * draw(st.integers(1, 9))
    pre_norm = draw(st.booleans())
    vocabulary = draw(st.integers(3, 200))
    return ModelSpec(
        name=draw(st.text(max_size=8)),
        vocabulary=vocabulary,
        positions=draw(st.integers(1, 9)),
        width=width,
        embed_width=draw(st.one_of(st.just(width), st.integers(1, 20))),
        layers=draw(st.integers(1, 2)),
        heads=heads,
        ffn_width=draw(st.integers(1, 40)),
        pre_norm=pre_norm,
        final_norm=pre_norm and draw(st.booleans()),
        bias=draw(st.booleans()),
        affine_norm=draw(st.booleans()),
        activation=draw(st.sampled_from(ACTIVATIONS)),
        tied_head=draw(st.booleans()),
        bos_token_id=draw(st.one_of(st.none(), st.integers(0, vocabulary - 1))),
        eos_token_ids=tuple(draw(st.lists(st.integers(0, vocabulary - 1), max_size=3))),
    )


def config_of(spec: ModelSpec) -> dict[str, Any]:
    """The `config.json` that describes `spec`."""
    return {
        "model_type": "opt",
        "vocab_size": spec.vocabulary,
        "max_position_embeddings": spec.positions,
        "hidden_size": spec.width,
        "word_embed_proj_dim": spec.embed_width,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "ffn_dim": spec.ffn_width,
        "do_layer_norm_before": spec.pre_norm,
        "_remove_final_layer_norm": spec.pre_norm and not spec.final_norm,
        "enable_bias": spec.bias,
        "layer_norm_elementwise_affine": spec.affine_norm,
        "activation_function": spec.activation,
        "tie_word_embeddings": spec.tied_head,
        "bos_token_id": spec.bos_token_id,
        "eos_token_id": list(spec.eos_token_ids) or None,
    }


def checkpoint_tensors(spec: ModelSpec, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random float32 tensors by the names that `transformers` gives them, without what may stand before `decoder`."""
    torch = oracles_torch()
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {}
    for stage in file_stages(spec, tile_rows=spec.vocabulary):
        for tensor in stage.tensors:
            names = source_names(tensor)
            shapes.update((name, (tensor.shape[0] // len(names), *tensor.shape[1:])) for name in names)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


FORMS = ("safetensors", "sharded safetensors", "bin", "sharded bin")


def write_folder(spec: ModelSpec, tensors: dict[str, torch.Tensor], folder: Path, form: str = "safetensors") -> Path:
    """A Hugging Face folder that holds `tensors` under the names given, in one of `FORMS`."""
    torch = oracles_torch()
    from safetensors.torch import save_file

    (folder / "config.json").write_text(json.dumps(config_of(spec)))
    stem, save = ("model.safetensors", save_file) if "safetensors" in form else ("pytorch_model.bin", torch.save)
    if not form.startswith("sharded"):
        save(dict(tensors), folder / stem)
        return folder
    names = list(tensors)
    places = {name: f"part-{number % 3}.{stem}" for number, name in enumerate(names)}
    for shard in set(places.values()):
        save({name: tensors[name] for name in names if places[name] == shard}, folder / shard)
    (folder / f"{stem}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def styled(tensors: dict[str, torch.Tensor], prefix: str = "model.") -> dict[str, torch.Tensor]:
    """The tensors under the names of one of the two styles."""
    return {name if name.startswith("lm_head") else prefix + name: value for name, value in tensors.items()}


class Kit:
    """The helpers above, for tests that cannot import this file; `folder` makes a fresh one at every call."""

    write_file = staticmethod(write_file)
    reseal = staticmethod(reseal)
    assert_same = staticmethod(assert_same)
    model_specs = staticmethod(model_specs)
    checkpoint_tensors = staticmethod(checkpoint_tensors)
    write_folder = staticmethod(write_folder)
    styled = staticmethod(styled)
    forms = FORMS

    def __init__(self, folder: Callable[[], Path]) -> None:
        self.folder = folder


@pytest.fixture(scope="session")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return Kit(lambda: tmp_path_factory.mktemp("storage"))


@pytest.fixture(scope="session")
def tiny_spec() -> ModelSpec:
    return ModelSpec("tiny", 150, 6, 12, 10, 2, 3, 20, tied_head=False)


@pytest.fixture(scope="session")
def tiny_file(kit: Kit, tiny_spec: ModelSpec) -> Written:
    """A small file with a tokenizer, not to be changed: tests copy it."""
    return kit.write_file(kit.folder() / "tiny.h5", tiny_spec, tokenizer=b'{"model": {}}')


@pytest.fixture(scope="session")
def tied_spec() -> ModelSpec:
    """A model of one layer whose head is its token table."""
    return ModelSpec("tied", 150, 6, 12, 10, 1, 3, 20)
