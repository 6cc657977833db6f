"""The KV cache of the reference port: append records, and causal attention over them, row by row."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flexref.backend.records import RecordLayout
from flexref.storage.quant import Quantized, dequantize, quantize
from flexref_numpy.operators import Scratch

Numbers = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class CacheRows:
    """The caches of B rows, each uint8 (capacity * record_bytes,)."""

    records: tuple[Numbers, ...]
    layout: RecordLayout


@dataclass(frozen=True, slots=True)
class Segments:
    """Per row: tokens already in its cache, and new tokens among the T of this pass."""

    past: tuple[int, ...]
    new: tuple[int, ...]

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """(first token among the T, past, new) of every row."""
        first = 0
        for past, new in zip(self.past, self.new, strict=True):
            yield first, past, new
            first += new


def section(
    records: Numbers, layout: RecordLayout, which: int, first: int, last: int
) -> tuple[Numbers, Numbers | None]:
    """Codes (or values) and pairs of K (`which` 0) or V (1) of tokens first to last: (T, H, ...) views."""
    tokens = records.reshape(-1, layout.record_bytes)[first:last]
    start = which * layout.value_offset
    codes = tokens[:, start : start + layout.codes_bytes]
    if not layout.quantized:
        return codes.view(layout.dtype).reshape(last - first, layout.heads, layout.head_width), None
    pairs = tokens[:, start + layout.pairs_offset : start + layout.pairs_offset + layout.pairs_bytes].view(np.float16)
    return (
        codes.reshape(last - first, layout.heads, layout.packed_width),
        pairs.reshape(last - first, layout.heads, layout.groups, 2),
    )


def append(rows: CacheRows, segments: Segments, k: Numbers, v: Numbers) -> None:
    """See `Backend.append`."""
    layout = rows.layout
    for records, (first, past, new) in zip(rows.records, segments, strict=True):
        for which, values in ((0, k), (1, v)):
            codes, pairs = section(records, layout, which, past, past + new)
            fresh = values[first : first + new].reshape(new, layout.heads, layout.head_width)
            if pairs is None:
                codes[...] = fresh
            else:
                packed = quantize(fresh, layout.group_size, np.float16, "a cache record")
                codes[...], pairs[..., 0], pairs[..., 1] = packed.codes, packed.scale, packed.zero


def attend(scratch: Scratch, rows: CacheRows, segments: Segments, q: Numbers, scale: float, out: Numbers) -> Numbers:
    """See `Backend.attend`: head by head where a row is long, so that keys, values and scores stay in the scratch."""
    layout = rows.layout
    for records, (first, past, new) in zip(rows.records, segments, strict=True):
        queries = q[first : first + new].reshape(new, layout.heads, layout.head_width)
        result = out[first : first + new].reshape(new, layout.heads, layout.head_width)
        keys = past + new
        step = _heads_at_once(scratch, layout, keys, new)
        for head in range(0, layout.heads, step):
            some = slice(head, min(layout.heads, head + step))
            k, v = (_expanded(scratch, records, layout, which, keys, some) for which in (0, 1))
            _attend_heads(scratch, queries[:, some], k, v, past, np.float32(scale), result[:, some])
    return out


def _heads_at_once(scratch: Scratch, layout: RecordLayout, keys: int, new: int) -> int:
    """Heads whose expanded K and V and whose scores of at least one query fit the scratch."""
    operands = scratch.half // (2 * keys * layout.head_width) if layout.quantized else layout.heads
    return max(1, min(layout.heads, operands, scratch.half // (keys * min(new, 64))))


def _expanded(scratch: Scratch, records: Numbers, layout: RecordLayout, which: int, keys: int, some: slice) -> Numbers:
    """K or V of some heads as float32 (T, heads, D): the records themselves where they hold that type."""
    codes, pairs = section(records, layout, which, 0, keys)
    codes = codes[:, some]
    if pairs is None:
        return codes.astype(np.float32, copy=False)
    both = scratch.operand(2, *codes.shape[:2], layout.head_width)
    packed = Quantized(codes, pairs[:, some, :, 0], pairs[:, some, :, 1], layout.head_width, layout.group_size)
    return dequantize(packed, out=both[which])


def _attend_heads(
    scratch: Scratch, q: Numbers, k: Numbers, v: Numbers, past: int, scale: np.float32, out: Numbers
) -> None:
    """q (S, heads, D), k and v (T, heads, D) -> out (S, heads, D); queries in blocks whose scores fit the scratch."""
    queries, heads, _ = q.shape
    step = max(1, scratch.half // (k.shape[0] * heads))
    for first in range(0, queries, step):
        last = min(queries, first + step)
        keys = past + last
        scores = scratch.product(heads, last - first, keys)
        with np.errstate(over="ignore", invalid="ignore"):  # a key that is masked below may give anything
            np.matmul(q[first:last].transpose(1, 0, 2), k[:keys].transpose(1, 2, 0), out=scores)
            scores *= scale
        future = np.arange(keys) > past + np.arange(first, last)[:, None]
        scores[:, future] = -np.inf  # whatever a masked key gave, even a NaN, is gone here
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        np.matmul(scores, v[:keys].transpose(1, 0, 2), out=out[first:last].transpose(1, 0, 2))
