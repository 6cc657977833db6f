"""Weights as halves: matrices in groups of 4 or 8 bits, or of another type, expanded; it knows no product."""

from dataclasses import replace
from typing import cast

from flexref.backend.protocol import Matrix, QuantizedMatrix
from flexref_cupy.device import Device
from flexref_cupy.memory import Tensor

UNIT_GROUPS = (32, 64, 128)
"""Group sizes of the kernels that read units of codes, none of which lies in two groups."""

EXPAND_THREADS, EXPAND_UNITS, EXPAND_UNIT_BYTES = 256, 4, 8
"""Threads of a block of expand.cu, and how many units of how many bytes of codes each of them takes."""

ROW_THREADS = 256
"""Threads of a block that takes one row."""

C_TYPES = {"float16": "half", "float32": "float"}
"""What the kernels call the types."""


def expand(device: Device, w: Matrix, out: Tensor, first: int, last: int) -> None:
    """Rows `first` to `last` of w (O, I) -> out (last - first, I): in float16, or dense ones in their own type.

    Values in groups are the halves that products for few tokens multiply.
    """
    rows = slice(first, last)
    if isinstance(w, QuantizedMatrix):
        codes, scale, zero = parts_of(w)
        _expand_groups(device, replace(w, codes=codes[rows], scale=scale[rows], zero=zero[rows]), out)
    else:
        _convert(device, cast(Tensor, w)[rows], out)


def _convert(device: Device, w: Tensor, out: Tensor) -> None:
    rows, width = out.shape
    if w.dtype == out.dtype:
        device.assign(out, w)
    elif rows:
        _check_expanded(w.dtype, out)
        kernel = device.kernels.get("expand", "expand_dense", STORED=C_TYPES[w.dtype])
        kernel((rows, 1, 1), ROW_THREADS, w.address, w.pitch, out.address, out.pitch, width)


def _expand_groups(device: Device, w: QuantizedMatrix, out: Tensor) -> None:
    codes, scale, zero = parts_of(w)
    rows, width = out.shape
    if not rows:
        return
    _check_expanded(f"{w.bits}-bit", out)
    wide = "wide_" if w.bits == 8 else ""
    stored, kernels = C_TYPES[scale.dtype], device.kernels
    where = (codes.address, codes.pitch, scale.address, scale.pitch, zero.address, zero.pitch)
    if w.group_size in UNIT_GROUPS and width % w.group_size == 0 and is_aligned(codes, 8) and is_aligned(out, 16):
        unit_values = 8 // w.bits * EXPAND_UNIT_BYTES
        units, shift = width // unit_values, (w.group_size // unit_values).bit_length() - 1
        grid = (-(-rows * units // (EXPAND_THREADS * EXPAND_UNITS)), 1, 1)
        kernel = kernels.get("expand", f"expand_{wide}groups", STORED=stored)
        kernel(grid, EXPAND_THREADS, *where, out.address, out.pitch, rows, units, shift)
    else:
        kernel = kernels.get("expand", f"expand_{wide}bytes", STORED=stored)
        kernel((rows, 1, 1), ROW_THREADS, *where, out.address, out.pitch, width, w.group_size)


def parts_of(w: QuantizedMatrix) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scale and zero as the port's own arrays."""
    return cast(tuple[Tensor, Tensor, Tensor], (w.codes, w.scale, w.zero))


def is_aligned(x: Tensor, nbytes: int) -> bool:
    """Whether every row of x (T, W) starts at a multiple of `nbytes`."""
    return x.address % nbytes == 0 and (x.pitch_bytes % nbytes == 0 or x.shape[0] == 1)


def _check_expanded(what: str, out: Tensor) -> None:
    if out.dtype != "float16":
        raise TypeError(f"{what} weights were to be expanded to {out.dtype}; only float16 is possible")
