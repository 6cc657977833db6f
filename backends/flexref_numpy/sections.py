"""Where K and V of tokens lie in the records of a cache, as arrays of numpy; it knows no pass and no attention."""

from typing import NamedTuple

import numpy as np

from flexref.backend.protocol import CHUNK_TOKENS
from flexref.backend.records import RecordLayout
from flexref.storage.quant import Quantized, dequantize
from flexref_numpy.scratch import Numbers

Parts = tuple[Numbers, Numbers | None]
"""Codes (or values) and pairs of K or of V, (T, H, ...)."""


class Sections:
    """Where K and V of tokens lie in records of one layout; worked out once for all rows of a call."""

    def __init__(self, layout: RecordLayout) -> None:
        self.layout, self._record_bytes = layout, layout.record_bytes
        self._starts = 0, layout.value_offset
        self._dtype = np.dtype(np.uint8 if layout.quantized else layout.dtype)
        self._coded = layout.heads, layout.packed_width if layout.quantized else layout.head_width
        self._code_strides = layout.record_bytes, self._coded[1] * self._dtype.itemsize, self._dtype.itemsize
        self._paired, self._pairs_offset = (layout.heads, layout.groups, 2), layout.pairs_offset
        self._pair_strides = layout.record_bytes, layout.groups * 4, 4, 2

    def of(self, records: Numbers, which: int, first: int, last: int) -> Parts:
        """Codes (or values) and pairs of K (`which` 0) or V (1) of tokens first to last, views."""
        codes, pairs = self.whole(records).parts[which]
        return codes[first:last], None if pairs is None else pairs[first:last]

    def whole(self, records: Numbers) -> "Views":
        """K and V of all records of an array."""
        tokens = records.size // self._record_bytes
        if not tokens:  # numpy takes no offset in an array of no bytes
            records = np.empty(self._record_bytes, np.uint8)
        k, v = (self._parts(records, tokens, start) for start in self._starts)
        return Views(tokens, (k, v), self._chunks(records, tokens))

    def _parts(self, records: Numbers, tokens: int, start: int) -> Parts:
        codes: Numbers = np.ndarray((tokens, *self._coded), self._dtype, records, start, self._code_strides)
        if not self.layout.quantized:
            return codes, None
        start += self._pairs_offset
        return codes, np.ndarray((tokens, *self._paired), np.float16, records, start, self._pair_strides)

    def _chunks(self, records: Numbers, tokens: int) -> tuple[Numbers, Numbers] | None:
        if self.layout.quantized or self._dtype != np.float32:
            return None
        (heads, width), (record, head, value) = self._coded, self._code_strides
        chunks, chunk = tokens // CHUNK_TOKENS, CHUNK_TOKENS * record
        shape = heads, chunks, width, CHUNK_TOKENS
        k: Numbers = np.ndarray(shape, np.float32, records, self._starts[0], (head, chunk, value, record))
        shape = heads, chunks, CHUNK_TOKENS, width
        return k, np.ndarray(shape, np.float32, records, self._starts[1], (head, chunk, record, value))


class Views(NamedTuple):
    """K and V of all records of an array.

    parts: of K and of V. chunks: K^T (H, chunks, D, CHUNK_TOKENS) and V (H, chunks, CHUNK_TOKENS, D) of the array's
    whole chunks, where records hold numbers that can be multiplied as they are.
    """

    tokens: int
    parts: tuple[Parts, Parts]
    chunks: tuple[Numbers, Numbers] | None


class RowRecords:
    """A row's records: of its first `shared` tokens in `prefix`, of all others in its `own` array."""

    __slots__ = ("_layout", "own", "prefix", "shared")

    def __init__(self, layout: RecordLayout, own: Views, prefix: Views, shared: int) -> None:
        self._layout, self.own, self.prefix, self.shared = layout, own, prefix, shared

    def pieces(self, first: int, last: int, size: int = 1) -> tuple[tuple[int, int, Views, int], ...]:
        """(first, last, views, first one there) of tokens first to last, or of chunks of `size`: one piece or two."""
        shared = self.shared // size
        if first >= shared:
            return ((first, last, self.own, first - shared),)
        if last <= shared:
            return ((first, last, self.prefix, first),)
        return (first, shared, self.prefix, first), (shared, last, self.own, 0)

    def expand(self, which: int, first: int, some: slice, out: Numbers) -> None:
        """K (`which` 0) or V (1) of some heads of the tokens from `first` on, as many as `out` (T, heads, D) holds."""
        for start, end, views, there in self.pieces(first, first + len(out)):
            span = slice(there, there + end - start)
            (codes, pairs), tokens = views.parts[which], out[start - first : end - first]
            if pairs is None:
                tokens[...] = codes[span, some]
                continue
            scale, zero = pairs[span, some, :, 0], pairs[span, some, :, 1]
            width, group_size = self._layout.head_width, self._layout.group_size
            dequantize(Quantized(codes[span, some], scale, zero, width, group_size), out=tokens)
