"""Attention over a KV cache in host memory, and writing it, for any port: arrays of numpy in, arrays of numpy out.

Four calls with the signatures of the protocol (`Backend.cache_rows`, `segments`, `append`, `attend`). Queries, keys,
values and results are float32 or float16; records hold float32, float16 or 4-bit codes, which are read where they lie.
Products, sums and weights are float32. A query's bits depend on its own row's keys alone: on no other row or query, on
no prefix that lies elsewhere, and on no number of threads. It knows no port and no device.

Any thread may call, several at once too: they share the threads, and each has a scratch of its own. A call returns when
its work is done.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from flexref.backend.compiling import CompileTime
from flexref.backend.records import RecordLayout
from flexref.storage.quant import quantize
from flexref_numba.compiled import Compiled, Functions
from flexref_numba.kernels.append import make_append_codes, make_append_numbers
from flexref_numba.kernels.attend import MOST_QUERIES, UNIT_WORDS, make_attend, scratch_bytes, stored_form
from flexref_numba.threads import Threads, address_of, kind_of, ranges, wanted_threads, worth

Numbers = npt.NDArray[Any]
Integers = npt.NDArray[np.int64]
HostPrefix = tuple[Numbers, int]
"""Records of another array, and how many of its first tokens a row begins with: a multiple of CHUNK_TOKENS."""

UNIT_FLOATS = 1 << 14
"""Bounds the queries of all heads of a unit, (heads, queries, D), so that they stay near the caches."""

UNITS_PER_THREAD = 4
"""With fewer units than that heads are divided further."""


@dataclass(frozen=True)
class HostRows:
    """The caches of B rows, each uint8 (capacity * record_bytes,), and what each begins with elsewhere."""

    records: tuple[Numbers, ...]
    layout: RecordLayout
    prefixes: tuple[HostPrefix | None, ...]

    @cached_property
    def table(self) -> Integers:
        """Per row: addresses of its own records and of its prefix's, and how many tokens that is, (B, 3)."""
        rows = [
            (address_of(own), 0 if prefix is None else address_of(prefix[0]), 0 if prefix is None else prefix[1])
            for own, prefix in zip(self.records, self.prefixes, strict=True)
        ]
        return np.array(rows, np.int64).reshape(-1, 3)

    @cached_property
    def capacities(self) -> Integers:
        """Tokens that each row's own array and its prefix hold."""
        shared = [0 if prefix is None else prefix[1] for prefix in self.prefixes]
        own = [records.size // self.layout.record_bytes for records in self.records]
        return np.array(own, np.int64) + np.array(shared, np.int64)


@dataclass(frozen=True)
class HostSegments:
    """Per row: tokens already in its cache, and new tokens among the T of this pass."""

    past: tuple[int, ...]
    new: tuple[int, ...]
    _units: dict[tuple[int, int, int], tuple[Integers, int, int]] = field(
        default_factory=dict, compare=False, repr=False
    )

    @cached_property
    def tokens(self) -> tuple[Integers, Integers]:
        """Of each of the T tokens its row, and its number in it."""
        past, new = np.array(self.past, np.int64), np.array(self.new, np.int64)
        rows = np.repeat(np.arange(len(new)), new)
        return rows, np.arange(len(rows)) + np.repeat(past + new - np.cumsum(new), new)

    @cached_property
    def ends(self) -> Integers:
        """Tokens in each cache after the pass."""
        return np.array(self.past, np.int64) + np.array(self.new, np.int64)

    def units(self, heads: int, width: int, threads: int) -> tuple[Integers, int, int]:
        """Units of attention (N, UNIT_WORDS), how many threads they are worth, and scratch that any needs."""
        found = self._units.get((heads, width, threads))
        if found is None:
            found = self._units[heads, width, threads] = _units(self, heads, width, threads)
        return found


def _units(segments: HostSegments, heads: int, width: int, threads: int) -> tuple[Integers, int, int]:
    blocks, first = [], 0
    for row, (past, new) in enumerate(zip(segments.past, segments.new, strict=True)):
        for start in range(0, new, MOST_QUERIES):
            blocks.append((row, first + start, past + start, min(MOST_QUERIES, new - start)))
        first += new
    divided = max(1, threads * UNITS_PER_THREAD // max(1, len(blocks))) if threads > 1 else 1
    units, needed = [], 0
    for row, token, past, queries in blocks:
        least = -(-heads * queries * width // UNIT_FLOATS)
        for first_head, last_head in ranges(heads, max(divided, least)):
            units.append((row, token, past, queries, first_head, last_head))
            needed = max(needed, scratch_bytes(queries, last_head - first_head, width))
    table = np.array(units, np.int64).reshape(-1, UNIT_WORDS)
    work = 2 * width * table[:, 3] * (table[:, 5] - table[:, 4]) * (table[:, 2] + table[:, 3])
    return table, worth(int(work.sum()), threads), needed


class HostAttention:
    """Attention on the host's processors."""

    def __init__(self, threads: int | None = None, compiling: CompileTime | None = None) -> None:
        """`threads`: as many as numpy's BLAS has, if not given. `compiling` is told the time that calls wait for
        functions to be compiled, the first time on a machine, or to be read."""
        self.functions = Functions(CompileTime() if compiling is None else compiling)
        self.threads = Threads(wanted_threads() if threads is None else threads, self.functions)

    def close(self) -> None:
        """End the threads; no call may be running."""
        self.threads.close()

    def cache_rows(
        self, records: Sequence[Numbers], layout: RecordLayout, prefixes: Sequence[HostPrefix | None] | None = None
    ) -> HostRows:
        """See `Backend.cache_rows`."""
        return HostRows(tuple(records), layout, tuple([None] * len(records) if prefixes is None else prefixes))

    def segments(self, past: Sequence[int], new: Sequence[int]) -> HostSegments:
        """See `Backend.segments`."""
        return HostSegments(tuple(past), tuple(new))

    def append(self, rows: HostRows, segments: HostSegments, k: Numbers, v: Numbers) -> None:
        """See `Backend.append`; `QuantizationError`, and `IndexError` where records end."""
        over = np.flatnonzero(segments.ends > rows.capacities)
        if over.size:
            raise IndexError(f"{segments.ends[over[0]]} records in a cache of {rows.capacities[over[0]]}")
        if not len(k):
            return
        layout, (owners, places) = rows.layout, segments.tokens
        own, shared = rows.table[owners, 0], rows.table[owners, 2]
        targets = own + (places - shared) * layout.record_bytes
        given = kind_of(k)
        common = address_of(targets), layout.value_offset, address_of(k), k.strides[0], address_of(v), v.strides[0]
        if not layout.quantized:
            call = self.functions.shared(make_append_numbers, given, layout.dtype)
            self._shared(len(k), 2 * k.size, call, *common, k.shape[1])
            return
        call = self.functions.shared(make_append_codes, given)
        shape = layout.heads, layout.head_width, layout.group_size, layout.pairs_offset
        if self._shared(len(k), 16 * k.size, call, *common, *shape):
            for part in (k, v):  # the law says what is the matter
                quantize(part.reshape(len(part), *shape[:2]), layout.group_size, np.float16, "a cache record")
            raise AssertionError("a cache record cannot be quantized, though the law can")

    def attend(self, rows: HostRows, segments: HostSegments, q: Numbers, scale: float, out: Numbers) -> Numbers:
        """See `Backend.attend`."""
        layout = rows.layout
        if q.dtype != out.dtype or q.dtype not in (np.float16, np.float32):
            raise ValueError(f"queries and results are both float16 or both float32, found {q.dtype} and {out.dtype}")
        width, count = layout.head_width, self.threads.count
        call = self.functions.shared(make_attend, *stored_form(layout))
        units, parts, needed = segments.units(layout.heads, width, count)
        table = rows.table
        distances = (
            layout.record_bytes,
            layout.codes_bytes // layout.heads,
            4 * layout.groups,
            layout.pairs_offset,
            layout.value_offset,
            width,
            layout.group_size,
        )
        operands = (
            int(q.dtype == np.float16),
            address_of(q),
            q.strides[0],
            address_of(out),
            out.strides[0],
            float(scale),
        )
        places = address_of(units), address_of(table)
        self.threads.share(call, (*places, *distances, *operands), len(units), parts, needed)
        return out

    def _shared(self, tokens: int, work: int, call: Compiled, *operands: int) -> int:
        """`call` for all of the tokens, of which every thread that is worth it takes some."""
        return self.threads.share(call, operands, tokens, worth(work, self.threads.count))
