"""Choosing the next tokens on the device: only their ids come to the host; it knows no seed and no model."""

import numpy as np
import numpy.typing as npt

from flexref.backend.protocol import Ticket
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
    rows = logits.shape[0]
    if not rows:
        return np.empty(0, np.int64)
    chosen = Tensor(device.scratch.partials + _draws_bytes(rows), (rows,), "int32", rows)
    start(device, logits, temperature, top_k, top_p, uniforms, chosen)
    ids = device.download(chosen)
    if ids.min() < 0:
        row, token = _first_not_finite(ids)
        value = device.download(logits[row : row + 1, token : token + 1])[0, 0]
        raise _not_finite(row, token, f"the logit {value}")
    return ids.astype(np.int64)


def known_after(device: Device, ended: Ticket, chosen: Tensor) -> npt.NDArray[np.int64]:
    """The ids that `start` left in `chosen` (B,), B at least 1, once `ended` is done; raises what `sample` raises."""
    ids = device.download_after(ended, chosen)
    if ids.min() < 0:
        raise _not_finite(*_first_not_finite(ids), "a logit that is not finite")
    return ids.astype(np.int64)


def _draws_bytes(rows: int) -> int:
    return rows * np.dtype(np.float64).itemsize


def start(
    device: Device,
    logits: Tensor,
    temperature: float,
    top_k: int,
    top_p: float,
    uniforms: npt.NDArray[np.float64],
    chosen: Tensor,
) -> None:
    """Start the choice: `chosen` int32 (B,) gets the ids, or -1 - the token whose logit is not finite."""
    rows, vocabulary = logits.shape
    if vocabulary > MOST_TOKENS:
        raise ValueError(f"sampling from {vocabulary} tokens; at most {MOST_TOKENS} are possible")
    divisor = min(max(temperature, SMALLEST_TEMPERATURE), LARGEST_TEMPERATURE) if temperature else 0.0
    draws = np.ascontiguousarray(uniforms, np.float64).view(np.uint8)
    there = Tensor(device.scratch.partials, draws.shape, "uint8", draws.nbytes)
    if temperature:
        device.upload(draws, there)
    kernel = device.kernels.get("sample", "sample", LOGITS=C_TYPES[logits.dtype])
    how = (divisor, top_k, top_p, there.address if temperature else 0)
    kernel((rows, 1, 1), THREADS, logits.address, logits.pitch, vocabulary, *how, chosen.address)


def _first_not_finite(ids: npt.NDArray[np.int32]) -> tuple[int, int]:
    """The first row whose "id" is -1 - the token whose logit is not finite, and that token."""
    row = int(np.flatnonzero(ids < 0)[0])
    return row, -1 - int(ids[row])


def _not_finite(row: int, token: int, logit: str) -> FlexrefError:
    return FlexrefError(
        f"sampling: row {row} of the group has {logit} for token {token}, needed a finite one; the model overflowed"
    )
