"""Group-wise quantization in 4 or 8 bits, as every port computes it; it knows numpy arrays, no files and no models.

A group is `group_size` neighbours along the last axis; the last group of a row holds what is left. Each group is stored
as codes with one scale and one zero, after Sheng et al., *FlexGen* (ICML 2023), section 5.1. With L = 15 steps for 4
bits and 255 for 8:

    zero  = least value, rounded to the scale type
    scale = (greatest value - zero) / L, at least 0, rounded to the scale type
    code  = (value - zero) / scale, rounded to the nearest integer (ties to even), clipped to 0 ... L; 0 if scale is 0
    value = code * scale + zero

All arithmetic is in float32; codes are computed from the rounded scale and zero. Codes of 8 bits are bytes. Codes of 4
bits are packed two to a byte, *planar*: in a group of n values, byte b holds value b in its low nibble and value
b + (n + 1) // 2 in its high one (0 if there is none). So a group expands as two runs, without interleaving, and a short
group takes only its own bytes.

`quant_fit` and `calibration.quant_calibrated` find scale, zero and codes in other ways; the groups are read alike.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flexref.errors import QuantizationError

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]

LEVELS = 15
"""Steps between the least and the greatest code of 4 bits."""

BITS = (4, 8)
"""Bits that a code may have."""

BLOCK_ELEMENTS = 1 << 17
"""Elements that are worked on at a time: 512 KiB as float32, which stays in a core's second-level cache."""

FLOAT32_ROUNDOFF = 2.0**-24
"""Greatest relative error of one float32 operation."""


@dataclass(frozen=True, slots=True, eq=False)
class Quantized:
    """Values (..., I) in groups: codes uint8 (..., packed_width) of `bits`, scale and zero (..., G), I = `width`."""

    codes: Bytes
    scale: Array
    zero: Array
    width: int
    group_size: int
    bits: int = 4

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape (..., I) of the values."""
        return (*self.codes.shape[:-1], self.width)

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scale and zero together."""
        return self.codes.nbytes + self.scale.nbytes + self.zero.nbytes

    def rows(self, first: int, stop: int) -> "Quantized":
        """Entries `first` to `stop` of the first axis, as views."""
        span = slice(first, stop)
        return Quantized(self.codes[span], self.scale[span], self.zero[span], self.width, self.group_size, self.bits)


def levels(bits: int) -> int:
    """Steps between the least and the greatest code."""
    return (1 << bits) - 1


def group_count(width: int, group_size: int) -> int:
    """Groups in a row of `width` values."""
    return -(-width // group_size)


def group_bytes(size: int, bits: int) -> int:
    """Bytes that hold the codes of a group of `size` values."""
    return size if bits == 8 else (size + 1) // 2


def packed_width(width: int, group_size: int, bits: int = 4) -> int:
    """Bytes that hold the codes of a row of `width` values."""
    full, tail = divmod(width, group_size)
    return full * group_bytes(group_size, bits) + group_bytes(tail, bits)


def check_layout(width: int, group_size: int, scale_dtype: npt.DTypeLike, what: str, bits: int = 4) -> None:
    """Raise `QuantizationError`, which names `what`, if sizes or types are not possible."""
    if bits not in BITS:
        raise QuantizationError(f"{what}: codes have 4 or 8 bits, found {bits}")
    if width < 1 or group_size < 1:
        raise QuantizationError(f"{what}: width and group size must be at least 1, found {width} and {group_size}")
    if np.dtype(scale_dtype) not in (np.float16, np.float32):
        raise QuantizationError(f"{what}: scales are float16 or float32, found {np.dtype(scale_dtype)}")


def group_runs(width: int, group_size: int) -> list[tuple[int, int, int]]:
    """The runs of equal groups of a row, as (first group, groups, values in each): the full ones, then a short one.

    The codes of a run begin `first group * group_bytes(group_size, bits)` bytes after the row's first one, and every
    group of it has `group_bytes(values, bits)`.
    """
    full, tail = divmod(width, group_size)
    runs = [(0, full, group_size), (full, 1, tail)]
    return [run for run in runs if run[1] and run[2]]


def _codes_of(codes: Bytes, run: tuple[int, int, int], group_size: int, bits: int) -> Bytes:
    """The bytes (rows, groups, group bytes) of one run of groups, a view of codes (rows, packed_width)."""
    first, groups, size = run
    start, each = first * group_bytes(group_size, bits), group_bytes(size, bits)
    return codes[:, start : start + groups * each].reshape(len(codes), groups, each, copy=False)


def _values_of(values: Array, run: tuple[int, int, int], group_size: int) -> Array:
    """The values (rows, groups, size) of one run of groups, a view of values (rows, I)."""
    first, groups, size = run
    start = first * group_size
    return values[:, start : start + groups * size].reshape(len(values), groups, size, copy=False)


def _scale_and_zero(low: Array, high: Array, scale_dtype: np.dtype[Any], what: str, top: int) -> tuple[Array, Array]:
    """Rounded scale and zero (rows, groups) of groups with these least and greatest float32 values."""
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise QuantizationError(f"{what}: holds values that are not finite; only finite values can be quantized")
    largest = float(np.finfo(scale_dtype).max)
    with np.errstate(over="ignore", invalid="ignore"):  # what is out of range is refused below
        zero = low.astype(scale_dtype)
        span = np.maximum(high - zero.astype(np.float32), np.float32(0))
        scale = (span / np.float32(top)).astype(scale_dtype)
        greatest = np.float32(top) * scale.astype(np.float32) + zero.astype(np.float32)
    extreme = max(float(np.abs(low).max()), float(np.abs(high).max()))
    if extreme > largest or float(span.max()) > largest or not np.isfinite(greatest).all():
        raise QuantizationError(
            f"{what}: a group reaches {extreme:.6g} and spans {float(span.max()):.6g}; "
            f"scales of type {scale_dtype} hold at most {largest:.6g}"
        )
    return scale, zero


def encode(values: Array, scale: Array, zero: Array, bits: int) -> Array:
    """The codes of float32 values (n, ...), in place and as float32, for scale and zero (...) of any type."""
    step = scale.astype(np.float32)
    values -= zero.astype(np.float32)
    with np.errstate(over="ignore"):  # a subnormal step may send a level beyond float32: it is held to L below
        values /= np.where(step > 0, step, np.float32(np.inf))
    np.rint(values, out=values)
    return np.clip(values, 0, levels(bits), out=values)


def _pack(found: Array, codes: Bytes, bits: int) -> None:
    """Write the bytes (group bytes, rows, groups) of codes (n, rows, groups) of any type."""
    half = len(codes)
    np.copyto(codes, found[:half], casting="unsafe")
    if bits == 4:
        high = found[half:].astype(np.uint8)
        high <<= np.uint8(4)
        codes[: len(high)] |= high


Chooser = Callable[[Array, Array, Array], tuple[Array, Array]]
"""(values (n, rows, groups), scale, zero (rows, groups)) -> another scale and zero of their type. It must not change
values."""


def quantize(
    values: Array,
    group_size: int,
    scale_dtype: npt.DTypeLike,
    what: str,
    bits: int = 4,
    choose: Chooser | None = None,
) -> Quantized:
    """Quantize values (..., I), taken as float32, in groups along the last axis.

    `scale_dtype` (float16 or float32) is the type of scale and zero; `choose`, if given, replaces their values. Raises
    `QuantizationError`, which names `what`, where a value is not finite, or where a group's values or their span exceed
    the range of the scale type.
    """
    width, scale_dtype = values.shape[-1], np.dtype(scale_dtype)
    check_layout(width, group_size, scale_dtype, what, bits)
    flat = values.reshape(-1, width)
    groups, block = group_count(width, group_size), max(1, BLOCK_ELEMENTS // width)
    codes = np.empty((len(flat), packed_width(width, group_size, bits)), np.uint8)
    scale, zero = np.empty((len(flat), groups), scale_dtype), np.empty((len(flat), groups), scale_dtype)
    # Fresh memory for every block would cost more than the arithmetic: the kernel clears it page by page.
    aside, packed = np.empty(min(block, len(flat)) * width, np.float32), np.empty(codes[:block].size, np.uint8)
    for first in range(0, len(flat), block):
        span = slice(first, first + block)
        for run in group_runs(width, group_size):
            source = _values_of(flat[span], run, group_size)
            target = _codes_of(codes[span], run, group_size, bits)
            # Axis 0 runs over the values of a group, so that every step works on whole rows of groups at once.
            turned = aside[: source.size].reshape(source.shape[-1], *source.shape[:-1])
            turned_codes = packed[: target.size].reshape(target.shape[-1], *target.shape[:-1])
            with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is refused
                np.copyto(turned, source.transpose(2, 0, 1), casting="unsafe")
            found = _scale_and_zero(turned.min(0), turned.max(0), scale_dtype, what, levels(bits))
            if choose is not None:
                found = choose(turned, *found)
            _pack(encode(turned, *found, bits), turned_codes, bits)
            np.copyto(target, turned_codes.transpose(1, 2, 0))
            scale[span, run[0] : run[0] + run[1]], zero[span, run[0] : run[0] + run[1]] = found
    shaped: list[Array] = [part.reshape(*values.shape[:-1], part.shape[-1]) for part in (codes, scale, zero)]
    return Quantized(shaped[0], shaped[1], shaped[2], width, group_size, bits)


def packed(found: Array, group_size: int, bits: int) -> Bytes:
    """Codes (O, I) of any type as bytes (O, packed_width)."""
    rows, width = found.shape
    codes = np.empty((rows, packed_width(width, group_size, bits)), np.uint8)
    for run in group_runs(width, group_size):
        target = _codes_of(codes, run, group_size, bits)
        turned = np.empty((target.shape[-1], *target.shape[:-1]), np.uint8)
        _pack(_values_of(found, run, group_size).transpose(2, 0, 1), turned, bits)
        np.copyto(target, turned.transpose(1, 2, 0))
    return codes


def _decode(codes: Bytes, scale: Array, zero: Array, out: Array, bits: int) -> None:
    """Expand codes (rows, groups, bytes) into float32 out (rows, groups, n), with scale and zero (rows, groups)."""
    half, size = codes.shape[-1], out.shape[-1]
    if bits == 8:
        np.copyto(out, codes)
    else:
        np.bitwise_and(codes, np.uint8(LEVELS), out=out[..., :half], casting="unsafe")
        np.right_shift(codes[..., : size - half], np.uint8(4), out=out[..., half:], casting="unsafe")
    out *= scale.astype(np.float32)[..., None]
    out += zero.astype(np.float32)[..., None]


def dequantize(quantized: Quantized, out: Array | None = None, dtype: npt.DTypeLike = np.float32) -> Array:
    """The values (..., I) of `quantized`, computed in float32, as `dtype` or in `out` of the same shape.

    Values are computed directly in `out` if it is float32 and its rows are evenly spaced in memory; else in a block of
    rows at a time, which is then copied. Returns `out`.
    """
    width = quantized.width
    out = np.empty(quantized.shape, dtype) if out is None else out
    if out.shape != quantized.shape:
        raise ValueError(f"out must have shape {quantized.shape}, found {out.shape}")
    codes, scale, zero = (
        part.reshape(-1, part.shape[-1]) for part in (quantized.codes, quantized.scale, quantized.zero)
    )
    try:
        rows = out.reshape(-1, width, copy=False)
    except ValueError:  # the leading axes cannot be walked as one: expand aside
        out[...] = dequantize(quantized, dtype=out.dtype)
        return out
    block = max(1, BLOCK_ELEMENTS // width)
    aside = None if out.dtype == np.float32 else np.empty((min(block, len(rows)), width), np.float32)
    for first in range(0, len(rows), block):
        span = slice(first, first + block)
        target = rows[span] if aside is None else aside[: len(rows[span])]
        for run in group_runs(width, quantized.group_size):
            groups = (span, slice(run[0], run[0] + run[1]))
            part = _codes_of(codes[span], run, quantized.group_size, quantized.bits)
            found = _values_of(target, run, quantized.group_size)
            _decode(part, scale[groups], zero[groups], found, quantized.bits)
        if aside is not None:
            rows[span] = target
    return out


def _half_spacing(values: Array) -> Array:
    """Half the distance of float16 or float32 `values` to their neighbours: the most that rounding to them moved."""
    limits = np.finfo(values.dtype)
    exponent = np.frexp(np.abs(values.astype(np.float64)))[1] - 1
    exponent = np.where(values == 0, limits.minexp, np.maximum(exponent, limits.minexp))
    halves: Array = np.ldexp(0.5, exponent - limits.nmant)
    return halves


def error_bound(quantized: Quantized) -> npt.NDArray[np.float64]:
    """The greatest |dequantized - original| (..., I) that the arithmetic allows for float32 originals of `quantize`.

    Inside a group's range it is half a step; above it L roundings of the scale, below it one rounding of zero. To that
    come float32 roundings, with unit roundoff U, scale s, its rounding r and zero z: (2 L + 3) U s to find a code,
    (2 L + 1) U (s + r) in the scale itself, U (|z| + (2 L + 1) s) to expand. The last term of the code covers results
    below float32's normal range. It is no bound where `choose` replaced scale or zero.
    """
    top = levels(quantized.bits)
    scale, zero = quantized.scale.astype(np.float64), np.abs(quantized.zero.astype(np.float64))
    scale_rounding, zero_rounding = _half_spacing(quantized.scale), _half_spacing(quantized.zero)
    bound = np.maximum(np.maximum(scale / 2, top * scale_rounding), zero_rounding)
    bound += FLOAT32_ROUNDOFF * (zero + 4 * (top + 1) * (scale + scale_rounding)) + 2.0**-140
    sizes = [size for _, groups, size in group_runs(quantized.width, quantized.group_size) for _ in range(groups)]
    return np.repeat(bound, sizes, axis=-1)
