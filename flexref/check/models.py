"""Tiny random models whose greedy output does not collapse; they come from a seed and from no checkpoint."""

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
    """Random values fit for the tensor's role, the same for a name and a seed whatever else is drawn.

    Norm gains lie around 1 and biases around 0. Matrices enlarge what passes through them, which default
    initializations do not: there every context gives the same next token. Positions outweigh tokens, for where the head
    is tied a token that stayed visible to the end would be followed by itself. Rows after an activation sum to 0, for
    what all contexts have in common, its mean, would else decide.
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
    """Every tensor by its name."""
    return {tensor.name: random_tensor(tensor, seed) for tensor in tensors}


def write_model(path: Path, spec: ModelSpec, scheme: str = "none", dtype: str = "float32", seed: int = 0) -> None:
    """A weight file of a random model; groups of 64, or of what the narrowest matrix holds."""
    options: dict[str, Any] = {"group_size": None if scheme == "none" else 64}
    with WeightFileWriter(path, spec, scheme, dtype=dtype, **options) as writer:
        for name, values in random_tensors(writer.tensors, seed).items():
            writer.write(name, values)


def stored_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a weight file by its name, dense in float32: what the file stands for, 4-bit groups expanded."""
    dense = {}
    for name, stored in open_weight_file(path).tensors.items():
        values = read_tensor(stored)
        dense[name] = dequantize(values) if isinstance(values, Quantized) else values.astype(np.float32)
    return dense
