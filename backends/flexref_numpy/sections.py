"""Where K and V of tokens lie in the records of a cache, as arrays of numpy; it knows no pass and no attention."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from flexref.backend.records import RecordLayout
from flexref_numpy.scratch import Numbers


@dataclass(frozen=True, slots=True)
class RowRecords:
    """A row's records: of its first `shared` tokens in `prefix`, of all others in its `own` array."""

    own: Numbers
    prefix: Numbers
    shared: int

    def pieces(self, first: int, last: int) -> Iterator[tuple[int, Numbers, int, int]]:
        """(tokens of earlier pieces, array, first record, last record) of tokens first to last, in one piece or two."""
        cut = min(max(first, self.shared), last)
        if first < cut:
            yield 0, self.prefix, first, cut
        if cut < last:
            yield cut - first, self.own, cut - self.shared, last - self.shared


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
