"""What stands for memory, arrays and caches: sizes, shapes, types and tiers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flexref.backend.protocol import Matrix, Prefix, QuantizedMatrix
from flexref.backend.records import RecordLayout
from flexref.units import DTYPE_BYTES


@dataclass(frozen=True, slots=True)
class DryBuffer:
    """A size that stands for memory."""

    nbytes: int
    tier: str


@dataclass(frozen=True, slots=True)
class DryArray:
    """A shape and a type that stand for an array."""

    shape: tuple[int, ...]
    dtype: str
    tier: str = "device"

    def __getitem__(self, key: Any) -> "DryArray":
        keys = key if isinstance(key, tuple) else (key,)
        if not all(isinstance(part, slice) for part in keys):
            raise TypeError(f"only slices make views, found {key!r}")
        lengths = [len(range(*part.indices(length))) for part, length in zip(keys, self.shape, strict=False)]
        return DryArray((*lengths, *self.shape[len(lengths) :]), self.dtype, self.tier)


@dataclass(frozen=True, slots=True)
class DryValues(DryArray):
    """An array of which the numbers are known, for they came from the host: row numbers."""

    values: Any = None


@dataclass(eq=False, slots=True)
class DryCaches:
    """What `cache_rows` was called with: tokens that every row has in its prefix, bytes of its own array, and so on."""

    shared: tuple[int, ...]
    capacities: tuple[int, ...]
    layout: RecordLayout
    tier: str


class DrySegments:
    """What `segments` stands for: (past, new) tokens of every row; and the sums that time follows from.

    new: new tokens of all rows; pairs: visible pairs of query and key; decoding: records that rows of one new token
    read; visible: visible pairs of the other rows.
    """

    __slots__ = ("decoding", "lengths", "new", "pairs", "visible")

    def __init__(self, lengths: tuple[tuple[int, int], ...]) -> None:
        self.stand_for(lengths)

    def stand_for(self, lengths: tuple[tuple[int, int], ...]) -> None:
        """From now on for these."""
        self.lengths = lengths
        self.new = sum(new for _, new in lengths)
        self.pairs = sum(past * new + new * (new + 1) // 2 for past, new in lengths)
        self.decoding = sum(past + new for past, new in lengths if new == 1)
        self.visible = self.pairs - self.decoding


def sizes_of(
    records: Sequence[Any], prefixes: Sequence[Prefix | None] | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """`shared` and `capacities` of the caches of these rows."""
    named = [None] * len(records) if prefixes is None else prefixes
    shared = tuple(0 if prefix is None else prefix[1] for _, prefix in zip(records, named, strict=True))
    return shared, tuple(array.shape[0] for array in records)


def nbytes_of(array: Any) -> int:
    """Bytes of an array's elements."""
    return int(math.prod(array.shape)) * DTYPE_BYTES[array.dtype]


def stored_as(matrix: Matrix) -> str:
    """What a machine calls a matrix that is stored so: its type, or its scheme."""
    return f"int{matrix.bits}" if isinstance(matrix, QuantizedMatrix) else str(matrix.dtype)  # type: ignore[attr-defined]


def gathered_bytes(table: DryArray, ids: Any, first: int, out: DryArray) -> int:
    """Bytes of the rows of `out` that come from this tile of a table, at least 1: looking for them takes time too.

    All of them, where the row numbers are not known.
    """
    whole = nbytes_of(out)
    values = getattr(ids, "values", None)
    if values is None or not len(values):
        return whole
    found = int(((values >= first) & (values < first + table.shape[0])).sum())
    return max(1, whole * found // len(values))
