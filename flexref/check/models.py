"""Makes tiny random models whose greedy output does not repeat itself; they come from a seed, not a checkpoint."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flexref.architecture.program import Role, TensorKind
from flexref.architecture.spec import ModelSpec
from flexref.architecture.stages import TensorSpec
from flexref.storage.quant import Quantized, dequantize
from flexref.storage.weightfile import open_weight_file, read_tensor
from flexref.storage.writer import WeightFileWriter

Tensor = npt.NDArray[np.float32]


def random_tensor(tensor: TensorSpec, seed: int) -> Tensor:
    """Random values that suit the tensor's role; name and seed alone decide them.

    Gains of norms lie around 1 and biases around 0. Matrices enlarge what they multiply: with usual initializations
    every context would give the same next token. Positions are larger than tokens: with a tied head a token would else
    be followed by itself. The rows of the matrix after an activation sum to 0: an activation's mean, which is the same
    for all contexts, would else decide.
    """
    draw = np.random.default_rng([seed, *tensor.name.encode()])
    values = draw.standard_normal(tensor.shape, dtype=np.float32)
    if tensor.kind is TensorKind.GAIN:
        return np.float32(1) + np.float32(0.1) * values
    if tensor.kind in (TensorKind.SHIFT, TensorKind.BIAS):
        return np.float32(0.1) * values
    if tensor.role is Role.POSITIONS:
        return values
    if tensor.kind is TensorKind.TABLE:
        return np.float32(0.3) * values
    if tensor.role is Role.FFN_DOWN:
        values -= values.mean(-1, keepdims=True)
    return np.float32(2 / tensor.shape[-1] ** 0.5) * values


def random_tensors(tensors: Iterable[TensorSpec], seed: int) -> dict[str, Tensor]:
    """A random value for every tensor, by name; see `random_tensor`."""
    return {tensor.name: random_tensor(tensor, seed) for tensor in tensors}


def write_model(path: Path, spec: ModelSpec, scheme: str = "none", dtype: str = "float32", seed: int = 0) -> None:
    """Write a weight file of a random model, quantized by `scheme` in groups of 64 (`none`: not at all)."""
    options: dict[str, Any] = {"group_size": None if scheme == "none" else 64}
    with WeightFileWriter(path, spec, scheme, dtype=dtype, **options) as writer:
        for name, values in random_tensors(writer.tensors, seed).items():
            writer.write(name, values)


def stored_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a weight file by name, in float32, groups of codes expanded."""
    dense = {}
    for name, stored in open_weight_file(path).tensors.items():
        values = read_tensor(stored)
        dense[name] = dequantize(values) if isinstance(values, Quantized) else values.astype(np.float32)
    return dense
