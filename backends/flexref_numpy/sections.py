"""Where K and V of tokens lie in the records of a cache, as arrays of numpy; it knows no row and no attention."""

import numpy as np

from flexref.backend.records import RecordLayout
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
