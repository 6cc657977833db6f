"""Choosing the next tokens on the device: only their ids come to the host; it knows no seed and no model."""

import numpy as np
import numpy.typing as npt

from flexref.errors import FlexrefError
from flexref_cupy.device import Device
from flexref_cupy.memory import Tensor
from flexref_cupy.operators.expanding import C_TYPES

THREADS = 1024
"""Threads of a block of sample.cu, which takes a row."""

MOST_TOKENS = 1 << 24
"""Bounds V: so many amounts of the best token's 2^39 are the most that an integer of 64 bits holds."""

_FLOAT = np.finfo(np.float32)
SMALLEST_TEMPERATURE, LARGEST_TEMPERATURE = float(_FLOAT.tiny), float(_FLOAT.max)
"""A temperature that float32 cannot hold means the nearest one that it can."""


def sample(
    device: Device, logits: Tensor, temperature: float, top_k: int, top_p: float, uniforms: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    """See `Backend.sample`: logits (B, V) of either type, V at most `MOST_TOKENS`."""
    rows, vocabulary = logits.shape
    if vocabulary > MOST_TOKENS:
        raise ValueError(f"sampling from {vocabulary} tokens; at most {MOST_TOKENS} are possible")
    if not rows:
        return np.empty(0, np.int64)
    divisor = min(max(temperature, SMALLEST_TEMPERATURE), LARGEST_TEMPERATURE) if temperature else 0.0
    draws = np.ascontiguousarray(uniforms, np.float64).view(np.uint8)
    there = Tensor(device.scratch.partials, draws.shape, "uint8", draws.nbytes)
    chosen = Tensor(there.address + draws.nbytes, (rows,), "int32", rows)
    if temperature:
        device.upload(draws, there)
    kernel = device.kernels.get("sample", "sample", LOGITS=C_TYPES[logits.dtype])
    how = (divisor, top_k, top_p, there.address if temperature else 0)
    kernel((rows, 1, 1), THREADS, logits.address, logits.pitch, vocabulary, *how, chosen.address)
    ids = device.download(chosen)
    if ids.min() < 0:
        raise _not_finite(device, logits, ids)
    return ids.astype(np.int64)


def _not_finite(device: Device, logits: Tensor, ids: npt.NDArray[np.int32]) -> FlexrefError:
    """What is wrong with the first row whose "id" is -1 - the token whose logit is not finite."""
    row = int(np.flatnonzero(ids < 0)[0])
    token = -1 - int(ids[row])
    value = device.download(logits[row : row + 1, token : token + 1])[0, 0]
    return FlexrefError(
        f"sampling: row {row} of the group has the logit {value} for token {token}, needed a finite one; the model "
        f"overflowed"
    )
