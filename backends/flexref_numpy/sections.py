"""Where K and V of tokens lie in the records of a cache, as arrays of numpy; it knows no pass and no attention."""

import numpy as np

from flexref.backend.protocol import CHUNK_TOKENS
from flexref.backend.records import RecordLayout
from flexref.storage.quant import Quantized, dequantize
from flexref_numpy.scratch import Numbers


class Sections:
    """Where K and V of tokens lie in records of one layout; worked out once for all rows of a call."""

    def __init__(self, layout: RecordLayout) -> None:
        self.layout, self._record_bytes = layout, layout.record_bytes
        self._starts, self._codes_bytes = (0, layout.value_offset), layout.codes_bytes
        self._pairs_offset, self._pairs_bytes = layout.pairs_offset, layout.pairs_bytes
        self._coded = layout.heads, layout.packed_width if layout.quantized else layout.head_width
        self._paired = layout.heads, layout.groups, 2

    def of(self, records: Numbers, which: int, first: int, last: int) -> tuple[Numbers, Numbers | None]:
        """Codes (or values) and pairs of K (`which` 0) or V (1) of tokens first to last: (T, H, ...) views."""
        tokens = records.reshape(-1, self._record_bytes)[first:last]
        start = self._starts[which]
        codes = tokens[:, start : start + self._codes_bytes]
        if not self.layout.quantized:
            return codes.view(self.layout.dtype).reshape(last - first, *self._coded), None
        start += self._pairs_offset
        pairs = tokens[:, start : start + self._pairs_bytes].view(np.float16)
        return codes.reshape(last - first, *self._coded), pairs.reshape(last - first, *self._paired)

    def whole(self, records: Numbers) -> "Views":
        """K and V of all records of an array."""
        return Views(self, records)


class Views:
    """K and V of all records of an array.

    parts: of K and of V, codes (or values) and pairs, (T, H, ...). chunks: K^T (H, chunks, D, CHUNK_TOKENS) and V (H,
    chunks, CHUNK_TOKENS, D) of the array's whole chunks, where records hold numbers that can be multiplied as they are.
    """

    __slots__ = ("chunks", "parts", "tokens")

    def __init__(self, sections: Sections, records: Numbers) -> None:
        layout = sections.layout
        self.tokens = records.size // layout.record_bytes
        self.parts = tuple(sections.of(records, which, 0, self.tokens) for which in (0, 1))
        self.chunks: tuple[Numbers, Numbers] | None = None
        if not layout.quantized and layout.dtype == "float32":
            chunks = self.tokens // CHUNK_TOKENS
            shape = chunks, CHUNK_TOKENS, layout.heads, layout.head_width
            k, v = (codes[: chunks * CHUNK_TOKENS].reshape(shape, copy=False) for codes, _ in self.parts)
            self.chunks = k.transpose(2, 0, 3, 1), v.transpose(2, 0, 1, 3)


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
