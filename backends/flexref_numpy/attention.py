"""The KV cache of the reference port: append records, and causal attention over them, row by row."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flexref.backend.records import RecordLayout
from flexref.storage.quant import Quantized, dequantize, quantize
from flexref_numpy.operators import TILE_ROWS, Scratch, tiles

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
                continue
            for start, end in tiles(new, TILE_ROWS):  # what quantization holds meanwhile stays small
                packed = quantize(fresh[start:end], layout.group_size, np.float16, "a cache record")
                codes[start:end] = packed.codes
                pairs[start:end, ..., 0], pairs[start:end, ..., 1] = packed.scale, packed.zero


def attend(scratch: Scratch, rows: CacheRows, segments: Segments, q: Numbers, scale: float, out: Numbers) -> Numbers:
    """See `Backend.attend`: some heads and some queries at a time, so that what is expanded stays in the scratch."""
    layout = rows.layout
    for records, (first, past, new) in zip(rows.records, segments, strict=True):
        queries = q[first : first + new].reshape(new, layout.heads, layout.head_width)
        result = out[first : first + new].reshape(new, layout.heads, layout.head_width)
        step = _heads_at_once(scratch, layout, past + new, new)
        for head in range(0, layout.heads, step):
            some = slice(head, min(layout.heads, head + step))
            cache = HeadsOfRow(scratch, records, layout, some, past + new)
            _attend_heads(scratch, queries[:, some], cache, past, np.float32(scale), result[:, some])
    return out


def _heads_at_once(scratch: Scratch, layout: RecordLayout, keys: int, new: int) -> int:
    """Heads whose expanded K and V, and whose scores of some queries, fit the scratch; at least one."""
    operands = scratch.half // (2 * keys * layout.head_width) if layout.quantized else layout.heads
    return max(1, min(layout.heads, operands, scratch.half // (keys * min(new, 64))))


@dataclass(slots=True)
class HeadsOfRow:
    """K and V of some heads of one row as float32, in blocks of tokens; the records themselves, if they hold that."""

    scratch: Scratch
    records: Numbers
    layout: RecordLayout
    some: slice
    keys: int
    block: int = 0
    whole: tuple[Numbers, Numbers] | None = None

    def __post_init__(self) -> None:
        width = (self.some.stop - self.some.start) * self.layout.head_width
        self.block = self.keys if not self.layout.quantized else max(1, self.scratch.half // (2 * width))
        if self.block >= self.keys:
            self.whole = self._expanded(0, 0, self.keys), self._expanded(1, 0, self.keys)

    def blocks(self, keys: int) -> Iterator[tuple[int, int]]:
        """(first, last) of every block of the first `keys` tokens."""
        for first in range(0, keys, self.block):
            yield first, min(keys, first + self.block)

    def part(self, which: int, first: int, last: int) -> Numbers:
        """K (`which` 0) or V (1) of tokens first to last: (T, heads, D)."""
        return self.whole[which][first:last] if self.whole is not None else self._expanded(which, first, last)

    def _expanded(self, which: int, first: int, last: int) -> Numbers:
        codes, pairs = section(self.records, self.layout, which, first, last)
        codes = codes[:, self.some]
        if pairs is None:
            return codes.astype(np.float32, copy=False)
        both = self.scratch.operand(2, *codes.shape[:2], self.layout.head_width)
        scale, zero = pairs[:, self.some, :, 0], pairs[:, self.some, :, 1]
        packed = Quantized(codes, scale, zero, self.layout.head_width, self.layout.group_size)
        return dequantize(packed, out=both[which])


def _attend_heads(scratch: Scratch, q: Numbers, cache: HeadsOfRow, past: int, scale: np.float32, out: Numbers) -> None:
    """q (S, heads, D) -> out (S, heads, D); queries in blocks whose scores fit the scratch."""
    queries, heads, _ = q.shape
    step = max(1, scratch.half // (cache.keys * heads))
    for first in range(0, queries, step):
        last = min(queries, first + step)
        keys = past + last
        scores = scratch.product(heads, last - first, keys)
        with np.errstate(over="ignore", invalid="ignore"):  # a key that is masked below may give anything
            for start, stop in cache.blocks(keys):
                k = cache.part(0, start, stop)
                np.matmul(q[first:last].transpose(1, 0, 2), k.transpose(1, 2, 0), out=scores[:, :, start:stop])
            scores *= scale
        if last - first > 1:
            future = np.arange(keys) > past + np.arange(first, last)[:, None]
            np.copyto(scores, -np.inf, where=future)  # whatever a masked key gave, even a NaN, is gone here
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        result = out[first:last].transpose(1, 0, 2)
        for start, stop in cache.blocks(keys):
            v = cache.part(1, start, stop).transpose(1, 0, 2)
            if start == 0:
                np.matmul(scores[:, :, :stop], v, out=result)
            else:
                result += scores[:, :, start:stop] @ v
