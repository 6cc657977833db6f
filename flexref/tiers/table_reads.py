"""Which rows of the token table a pass reads from host or disk; it reads none."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flexref.storage.weightfile import StoredTensor

PIECE_BYTES = 1 << 20
"""Bounds the memory that a gather of table rows uses beside its staging, which is counted."""


@dataclass(frozen=True, slots=True)
class TableRead:
    """Rows of a tile of the token table whose home is host or disk, and for which of the T tokens they are."""

    tensor: StoredTensor
    tokens: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    from_disk: bool

    def pieces(self, row_bytes: int) -> Iterator["TableRead"]:
        """The same reads, in pieces of at most PIECE_BYTES."""
        rows = max(1, PIECE_BYTES // row_bytes)
        for first in range(0, len(self.rows), rows):
            some = slice(first, first + rows)
            yield TableRead(self.tensor, self.tokens[some], self.rows[some], self.from_disk)
