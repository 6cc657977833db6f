"""Weights without a file: laid out like a file's, filled to the last byte, the same for a seed wherever they lie."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from flexref_numpy import NumpyBackend
from hypothesis import given, settings
from hypothesis import strategies as st

from flexref.architecture.spec import ModelSpec
from flexref.check.models import write_model
from flexref.engine.request import Request
from flexref.errors import PolicyError
from flexref.loading import load
from flexref.policy import Policy, Shares
from flexref.storage.quant import Quantized, dequantize
from flexref.storage.random_weights import TILE_ELEMENTS, RandomFile, RandomWeights, random_file
from flexref.storage.weightfile import open_weight_file
from flexref.storage.writer import WeightFileWriter
from flexref.testing import strategies as own

SPEC = ModelSpec("tiny", 90, 40, 64, 64, 2, 2, 128)
STORED = st.sampled_from(
    [("none", "float16"), ("none", "float32"), ("int4", "float16"), ("int4", "float32"), ("int8", "float16")]
)
ROWS = [[5, 6, 7, 8], [9], [10, 11]]


def contents(file: RandomFile, poison: int = 0) -> npt.NDArray[np.uint8]:
    """All bytes of the file that is not there, read into memory that held `poison`."""
    memory = np.full(file.file_bytes, poison, np.uint8)
    source = RandomWeights(file)
    source.read(0, memory)
    source.close()
    return memory


def dense(file: RandomFile, name: str) -> npt.NDArray[Any]:
    """A tensor's values."""
    stored, memory = file.tensors[name], contents(file)
    parts = [
        memory[part.extent.offset : part.extent.stop].view(part.dtype).reshape(part.shape) for part in stored.parts
    ]
    if stored.group_size is None:
        return parts[0].astype(np.float32)
    return dequantize(Quantized(parts[0], parts[1], parts[2], stored.shape[-1], stored.group_size))


def logits_of(file: Any, policy: Policy, **options: Any) -> npt.NDArray[np.float32]:
    """Every logit of a short job, by row and step."""
    found: dict[tuple[int, int], npt.NDArray[np.float32]] = {}

    def keep(numbers: npt.NDArray[np.int64], steps: npt.NDArray[np.int64], values: npt.NDArray[np.float32]) -> None:
        keys = zip(numbers.tolist(), steps.tolist(), strict=True)
        found.update(dict(zip(keys, values, strict=True)))

    with load(file, policy=policy, **options) as engine:
        engine.generate(ROWS, Request(3, ignore_eos=True), on_logits=keep)
    return np.stack([found[key] for key in sorted(found)])


@given(own.specs(), STORED)
def test_the_layout_is_the_one_that_a_writer_gives(
    tmp_path_factory: pytest.TempPathFactory, spec: ModelSpec, stored: tuple[str, str]
) -> None:
    path = tmp_path_factory.mktemp("written") / "model.h5"
    write_model(path, spec, *stored)
    written, found = open_weight_file(path), random_file(spec, scheme=stored[0], dtype=stored[1])
    assert (found.spec, found.scheme, found.group_size) == (written.spec, written.scheme, written.group_size)
    assert (found.dtype, found.tile_rows, found.nbytes) == (written.dtype, written.tile_rows, written.nbytes)
    assert list(found.tensors) == list(written.tensors)
    shifts = set()
    for ours, theirs in zip(found.parts, written.parts, strict=True):
        assert (ours.dataset, ours.shape, ours.dtype) == (theirs.dataset, theirs.shape, theirs.dtype)
        assert ours.extent.nbytes == theirs.extent.nbytes
        shifts.add(theirs.extent.offset - ours.extent.offset)
    assert len(shifts) == 1  # all of it lies after the metadata that a file has first


@settings(max_examples=settings.default.max_examples // 2)  # each example is a whole file, several times
@given(own.specs(), STORED, st.integers(0, 1 << 40))
def test_every_byte_is_filled_and_the_same_for_a_seed(spec: ModelSpec, stored: tuple[str, str], seed: int) -> None:
    file = random_file(spec, scheme=stored[0], dtype=stored[1], seed=seed)
    first = contents(file, poison=0xAA)
    assert np.array_equal(first, contents(file, poison=0x55))
    gaps = np.ones(file.file_bytes, np.bool_)
    for part in file.parts:
        gaps[part.extent.offset : part.extent.stop] = False
    assert not first[gaps].any()


@given(st.data())
def test_a_byte_is_the_same_however_it_is_read(data: st.DataObject) -> None:
    file = random_file(SPEC, scheme="int4")
    whole, source = contents(file), RandomWeights(file)
    first = data.draw(st.integers(0, file.file_bytes - 1))
    some = np.full(data.draw(st.integers(1, min(20_000, file.file_bytes - first))), 0xAA, np.uint8)
    source.read(first, some)
    assert np.array_equal(some, whole[first : first + len(some)])
    rows = np.full((3, 128), 0xAA, np.uint8)
    offsets = np.array([0, first // 2, file.file_bytes - 128])
    source.read_rows(offsets, rows)
    assert all(np.array_equal(row, whole[at : at + 128]) for row, at in zip(rows, offsets.tolist(), strict=True))
    source.close()


def test_what_is_longer_than_a_tile_goes_round_and_no_two_rows_are_equal() -> None:
    spec = ModelSpec("wide", 90, 40, 1024, 1024, 1, 8, 4096)
    up = dense(random_file(spec), "layers/000/ffn_up/weight")
    assert up.size > TILE_ELEMENTS
    assert len(np.unique(up[:, :8], axis=0)) == 4096
    flat = up.reshape(-1)
    assert np.array_equal(flat[TILE_ELEMENTS:], flat[: up.size - TILE_ELEMENTS])


def test_another_seed_gives_other_weights_and_no_two_tensors_are_equal() -> None:
    name, file = "layers/000/attention_qkv/weight", random_file(SPEC)
    for other in (dense(random_file(SPEC, seed=1), name), dense(file, "layers/001/attention_qkv/weight")):
        assert np.mean(dense(file, name) == other) < 0.01


@pytest.mark.parametrize("scheme", ["none", "int4"])
def test_values_are_like_those_of_a_model(scheme: str) -> None:
    file = random_file(ModelSpec("tiny", 90, 40, 256, 256, 8, 2, 512), scheme=scheme)
    for name, mean, deviation in (
        ("layers/003/attention_qkv/weight", 0, 0.02),
        ("layers/003/ffn_up/weight", 0, 0.02),
        ("layers/003/attention_out/weight", 0, 0.005),
        ("layers/003/ffn_down/weight", 0, 0.005),
        ("tokens/0000", 0, 0.02),
        ("embed/positions", 0, 0.02),
        ("layers/003/attention_norm/weight", 1, 0.1),
        ("layers/003/ffn_up/bias", 0, 0.02),
    ):
        values = dense(file, name)
        assert abs(values.mean() - mean) < 0.2 * deviation, name
        assert 0.8 < values.std() / deviation < 1.2, name


class Poisoned(NumpyBackend):
    """The numpy port, whose fresh memory holds bytes that are no numbers."""

    def allocate(self, tier: str, nbytes: int) -> Any:
        memory = super().allocate(tier, nbytes)
        memory.fill(0xFF)
        return memory


@settings(max_examples=settings.default.max_examples // 2)  # each example is two whole jobs
@given(own.specs(), STORED, own.policies(cache_schemes=("none",)), st.sampled_from([(1, 0), (0, 1), (0.5, 0.5)]))
def test_logits_are_bit_identical_wherever_random_weights_lie(
    spec: ModelSpec, stored: tuple[str, str], policy: Policy, shares: tuple[float, float]
) -> None:
    file = random_file(spec, scheme=stored[0], dtype=stored[1])
    placed = policy.changed(
        weights=Shares(*shares, 0.0), rows_per_group=2, groups_per_block=2, host_attention_share=1.0
    )
    home = placed.changed(
        weights=Shares(), cache=Shares(), activations=Shares(), attention_on="device", host_attention_share=1.0
    )
    assert np.array_equal(
        logits_of(file, placed, backend=Poisoned(1 << 16)), logits_of(file, home, backend=NumpyBackend(1 << 16))
    )


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_file_with_these_very_values_computes_the_same(tmp_path: Path, dtype: str) -> None:
    file = random_file(SPEC, dtype=dtype)
    with WeightFileWriter(tmp_path / "model.h5", SPEC, "none", None, dtype) as writer:
        for tensor in writer.tensors:
            writer.write(tensor.name, dense(file, tensor.name))
    policy = Policy(weights=Shares(0.5, 0.5, 0.0))
    assert np.array_equal(logits_of(file, policy), logits_of(tmp_path / "model.h5", policy))


@pytest.mark.parametrize("scheme", ["none", "int4"])
@pytest.mark.parametrize("pre_norm", [True, False])
def test_logits_of_deep_models_stay_finite_and_small(scheme: str, pre_norm: bool) -> None:
    spec = ModelSpec("deep", 90, 40, 128, 128, 96, 2, 512, pre_norm=pre_norm, final_norm=pre_norm)
    logits = logits_of(random_file(spec, scheme=scheme), Policy())
    assert np.isfinite(logits).all()
    assert 0.01 < np.abs(logits).max() < 100


def test_random_weights_cannot_be_at_home_on_disk() -> None:
    policy = Policy(weights=Shares(0.0, 0.5, 0.5))
    with load(random_file(SPEC), policy=policy) as engine:
        with pytest.raises(PolicyError, match=r"^random weights of tiny: .* would lie on disk") as refused:
            engine.generate(ROWS)
        assert "\n" not in str(refused.value)
        assert not any("weights" in arena.holders for arena in engine.session.arenas.values())


def test_the_largest_model_is_laid_out_without_any_memory() -> None:
    file = random_file(ModelSpec("opt-175b", 50272, 2048, 12288, 12288, 96, 96, 49152), scheme="int4")
    assert 0.56 < (file.nbytes - 50272 * 12288 * 2) * 1.0 / 174e9 < 0.58
    assert file.file_bytes - file.nbytes < 4096 * len(list(file.parts))
