"""Operators on rows by PyTorch's functions, in pieces of a bounded size; it knows no device, cache or workspace."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from flexref.backend.choosing import places_chosen
from flexref.backend.process_settings import WhileInside, put_back
from flexref.backend.protocol import QuantizedMatrix
from flexref.errors import FlexrefError
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


def pieces(shape: Sequence[int], most: int, least: int = 1) -> Iterator[slice]:
    """Cut rows, shape (rows, width), into slices of as many multiples of `least` rows as `most` elements hold."""
    step = max(least, most // max(1, shape[1]) // least * least)
    return (slice(first, min(first + step, shape[0])) for first in range(0, shape[0], step))


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


def dense(w: Array | QuantizedMatrix, rows: slice, dtype: torch.dtype) -> Array:
    """Some rows of a matrix in `dtype`."""
    if isinstance(w, torch.Tensor):
        return w[rows].to(dtype)
    codes: Any = w.codes[rows]
    found = torch.empty((len(codes), w.width), dtype=torch.float32, device=codes.device)
    unpack(codes, w.scale[rows], w.zero[rows], found, w.group_size, w.bits)
    return found.to(dtype)


class RowOperators:
    """The part of the port that is about rows. `_most`: elements of a temporary array, of which a call has a few."""

    _most: int
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
        for columns in pieces(w.shape, self._most, TILE_ROWS):
            tile = dense(w, columns, x.dtype)
            for rows in pieces((len(x), len(tile)), self._most):
                with exact_products:
                    y = x[rows] @ tile.T
                if b is not None:
                    y += b[columns]
                out[rows, columns] = out[rows, columns] + y if add else y
        return out

    def expand(self, w: Any, out: Array) -> Array:
        for rows in pieces(w.shape, self._most, TILE_ROWS):
            out[rows] = dense(w, rows, out.dtype)
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

    def sample(
        self, logits: Array, temperature: float, top_k: int, top_p: float, uniforms: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.int64]:
        """The device puts tokens in order, the host walks along them."""
        chosen = np.empty(len(logits), np.int64)
        for rows in pieces(logits.shape, self._most // 2):  # ids in order are int64
            part = logits[rows]
            if not torch.isfinite(part).all():
                raise FlexrefError("logits are not finite: the model computed an infinity, or what is no number")
            if temperature == 0:
                chosen[rows] = part.argmax(-1).cpu().numpy()
                continue
            ranked, ids = (each.cpu().numpy() for each in part.sort(dim=-1, descending=True, stable=True))
            places = places_chosen(ranked[:, : top_k or None], temperature, top_p, uniforms[rows])
            chosen[rows] = np.take_along_axis(ids, places[:, None], -1)[:, 0]
        return chosen
