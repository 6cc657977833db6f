"""The operators of the reference port other than attention and sampling, as functions of numpy arrays."""

import numpy as np

from flexref.backend.protocol import Matrix, QuantizedMatrix
from flexref.storage.quant import Quantized, dequantize
from flexref_numpy.scratch import TILE_ROWS, Numbers, Scratch, tiles

HALF_BITS = np.int32(-0x70002000)
"""0x8fffe000: the sign, and the fifteen bits of a half that were shifted by 13; not the copies of the sign between."""

EXPONENT_DIFFERENCE = np.float32(2.0**112)


def gather(table: Numbers, ids: Numbers, first: int, out: Numbers) -> Numbers:
    """See `Backend.gather`."""
    local = ids - first
    here = np.flatnonzero((local >= 0) & (local < table.shape[0]))
    if here.size == ids.size:
        np.take(table, local, axis=0, out=out) if table.dtype == out.dtype else np.copyto(out, table[local])
    else:
        out[here] = table[local[here]]
    return out


def add_rows(x: Numbers, table: Numbers, ids: Numbers) -> Numbers:
    """See `Backend.add_rows`."""
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < table.shape[0]:
        raise IndexError(f"row {int(ids.max())} of a table of {table.shape[0]}")
    for first, last in tiles(x.shape[0], TILE_ROWS):
        x[first:last] += table[ids[first:last]]
    return x


def expand(w: Matrix, first: int, last: int, out: Numbers) -> Numbers:
    """Rows `first` to `last` of a matrix (O, I) in float32, in `out` (last - first, I)."""
    if isinstance(w, QuantizedMatrix):
        codes, scale, zero = (part[first:last] for part in (w.codes, w.scale, w.zero))
        return dequantize(Quantized(codes, scale, zero, w.width, w.group_size, w.bits), out=out)
    part = w[first:last]
    if part.dtype == np.float16:
        return widen(part, out)
    np.copyto(out, part)
    return out


def widen(halves: Numbers, out: Numbers) -> Numbers:
    """Finite float16 (O, I) as float32 in `out`, exactly.

    numpy converts halves one by one in software; three passes of integer arithmetic over a few rows at a time are seven
    times faster. Sign, exponent and mantissa move to their places in a float32, which is then too small by the
    difference of the two exponent biases: 2 ** (127 - 15). Subnormals come out right too.
    """
    for first, last in tiles(halves.shape[0], TILE_ROWS):
        bits = out[first:last].view(np.int32)
        np.copyto(bits, halves[first:last].view(np.int16))
        np.left_shift(bits, 13, out=bits)
        np.bitwise_and(bits, HALF_BITS, out=bits)
        out[first:last] *= EXPONENT_DIFFERENCE
    return out


def layer_norm(x: Numbers, w: Numbers | None, b: Numbers | None, epsilon: float, out: Numbers) -> Numbers:
    """See `Backend.layer_norm`; the variance is that of the centred values, which cancels nothing."""
    np.subtract(x, x.mean(axis=-1, keepdims=True), out=out)
    variance = np.einsum("te,te->t", out, out)[:, None] / np.float32(x.shape[-1])
    out /= np.sqrt(variance + np.float32(epsilon))
    if w is not None:
        out *= w
    if b is not None:
        out += b
    return out


def activate(scratch: Scratch, x: Numbers, activation: str) -> Numbers:
    """See `Backend.activate`."""
    if activation == "relu":
        return np.maximum(x, np.float32(0), out=x)  # type: ignore[no-any-return]
    for first, last in tiles(x.shape[0], scratch.half // x.shape[1]):
        _smooth(x[first:last], activation, scratch.product(last - first, x.shape[1]))
    return x


def _smooth(x: Numbers, activation: str, gate: Numbers) -> None:
    """x (T, F) -> its activation in place; `gate` (T, F) is scratch."""
    if activation == "tanh":
        np.tanh(x, out=x)
        return
    if activation == "gelu":
        from scipy.special import erf  # noqa: PLC0415  a fifth of a second, and OPT itself has relu

        np.multiply(x, np.float32(0.5**0.5), out=gate)
        erf(gate, out=gate)
        gate += np.float32(1)
        gate *= np.float32(0.5)
    elif activation == "gelu_tanh":
        with np.errstate(over="ignore"):  # an infinite argument gives the right limit
            np.multiply(x, x, out=gate)
            gate *= np.float32(0.044715)
            gate += np.float32(1)
            gate *= x
        gate *= np.float32((2 / np.pi) ** 0.5)
        np.tanh(gate, out=gate)
        gate += np.float32(1)
        gate *= np.float32(0.5)
    elif activation in ("silu", "quick_gelu", "sigmoid"):
        _logistic(x, np.float32(1.702 if activation == "quick_gelu" else 1), gate)
    else:
        raise ValueError(f"unknown activation {activation!r}")
    if activation == "sigmoid":
        np.copyto(x, gate)
    else:
        x *= gate


def _logistic(x: Numbers, slope: np.float32, out: Numbers) -> None:
    """out = 1 / (1 + exp(-slope x)); by tanh, which overflows for no argument."""
    np.multiply(x, slope * np.float32(0.5), out=out)
    np.tanh(out, out=out)
    out += np.float32(1)
    out *= np.float32(0.5)
