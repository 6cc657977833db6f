"""Operators on rows by PyTorch's functions, in pieces of a bounded size; it knows no device, cache or workspace."""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from flexref.backend.choosing import RankedSampling
from flexref.backend.pieces import pieces
from flexref.backend.process_settings import WhileInside, put_back
from flexref.backend.protocol import QuantizedMatrix
from flexref.storage.quant import group_bytes, group_runs

Array: TypeAlias = torch.Tensor

TILE_ROWS = 32
"""Tiles of matrices begin at multiples of it, so that whatever their width they are aligned as the matrix is."""

ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = MappingProxyType(
    {
        "relu": torch.relu,
        "gelu": functional.gelu,
        "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
        "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
        "silu": functional.silu,
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
    }
)


@WhileInside
def exact_products() -> Callable[[], None]:
    """Products sum in float32 and read all bits of their operands, whatever is set for the process; then as before."""
    flags, others = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    half = flags.allow_fp16_reduced_precision_reduction, flags.allow_fp16_reduced_precision_reduction_split_k
    flags.allow_fp16_reduced_precision_reduction = False
    rounding = [(each, each.fp32_precision) for each in (flags, others) if each.fp32_precision not in ("none", "ieee")]
    for each, _ in rounding:
        each.fp32_precision = "ieee"

    def undo() -> None:
        flags.allow_fp16_reduced_precision_reduction = half
        for each, before in rounding:
            put_back(each, "fp32_precision", before, "none")

    return undo


def unpack(codes: Array, scale: Array, zero: Array, out: Array, group_size: int, bits: int) -> None:
    """codes (..., packed), scale and zero (..., G) -> out (..., I) in float32, as `storage.quant` says."""
    for first, groups, size in group_runs(out.shape[-1], group_size):
        start, each = first * group_bytes(group_size, bits), group_bytes(size, bits)
        part = codes[..., start : start + groups * each].unflatten(-1, (groups, each))
        found = out[..., first * group_size :][..., : groups * size].unflatten(-1, (groups, size))
        found[..., :each] = part if bits == 8 else part & 15
        found[..., each:] = part[..., : size - each] >> 4
        found *= scale[..., first : first + groups, None]
        found += zero[..., first : first + groups, None]


def dense(w: Array | QuantizedMatrix, rows: slice, dtype: torch.dtype, most: int) -> Array:
    """Some rows of a matrix in `dtype`; codes are expanded in pieces of `most` elements, since that is in float32."""
    if isinstance(w, torch.Tensor):
        return w[rows].to(dtype)
    codes, scale, zero = (part[rows] for part in (w.codes, w.scale, w.zero))
    whole = torch.empty((len(codes), w.width), dtype=dtype, device=codes.device)
    for some in pieces(whole.shape, most):
        found = (part := whole[some]).float()  # `part` itself, where that is its type
        unpack(codes[some], scale[some], zero[some], found, w.group_size, w.bits)
        part.copy_(found)
    return whole


class RowOperators(RankedSampling):
    """The part of the port that is about rows. `_most`: elements of a temporary array, of which a call has a few.

    `_tile`: so many times as many has the part of a matrix that is multiplied at once.
    """

    _most: int
    _tile: int
    empty: Callable[[tuple[int, ...], str], Array]

    def gather(self, table: Array, ids: Array, first: int, out: Array) -> Array:
        for rows in pieces(out.shape, self._most):
            places = ids[rows] - first
            here = (places >= 0) & (places < len(table))
            found = table.index_select(0, places.clamp(0, len(table) - 1)).to(out.dtype)
            out[rows] = torch.where(here[:, None], found, out[rows])
        return out

    def add_rows(self, x: Array, table: Array, ids: Array) -> Array:
        for rows in pieces(x.shape, self._most):
            x[rows] += table.index_select(0, ids[rows])
        return x

    def linear(self, x: Array, w: Any, b: Array | None, *, out: Array | None = None, add: bool = False) -> Array:
        """Tiles depend on I alone, so that codes and what they expand to are multiplied alike."""
        out = self.empty((len(x), w.shape[0]), str(x.dtype).removeprefix("torch.")) if out is None else out
        with exact_products:
            for columns in pieces(w.shape, self._most * self._tile, TILE_ROWS):
                tile = dense(w, columns, x.dtype, self._most).T
                for rows in pieces((len(x), tile.shape[1]), self._most):
                    y = x[rows] @ tile
                    if b is not None:
                        y += b[columns]
                    out[rows, columns] = out[rows, columns] + y if add else y
        return out

    def expand(self, w: Any, out: Array) -> Array:
        for rows in pieces(w.shape, self._most, TILE_ROWS):
            out[rows] = dense(w, rows, out.dtype, self._most)
        return out

    def layer_norm(self, x: Array, w: Array | None, b: Array | None, epsilon: float, out: Array | None = None) -> Array:
        out = self.empty(tuple(x.shape), str(x.dtype).removeprefix("torch.")) if out is None else out
        gain, shift = (None if part is None else part.float() for part in (w, b))
        for rows in pieces(x.shape, self._most):
            out[rows] = functional.layer_norm(x[rows].float(), x.shape[1:], gain, shift, epsilon)
        return out

    def activate(self, x: Array, activation: str) -> Array:
        """In float32, on a copy whose rows meet: PyTorch has other code, and other bits, for slices."""
        for rows in pieces(x.shape, self._most):
            x[rows] = ACTIVATIONS[activation](x[rows].float().contiguous())
        return x

    def _sampled(self, logits: Array) -> Iterator[slice]:
        return pieces(logits.shape, self._most // 2)  # ids in order are int64

    def _ranked(self, logits: Array, best: bool) -> tuple[Any, npt.NDArray[np.int64]] | None:
        if not torch.isfinite(logits).all():
            return None
        if best:
            return logits, logits.argmax(-1, keepdim=True).cpu().numpy()
        ranked, ids = logits.sort(dim=-1, descending=True, stable=True)
        return ranked.cpu().numpy(), ids.cpu().numpy()
