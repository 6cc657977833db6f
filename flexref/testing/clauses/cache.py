"""Rows of a KV cache on any port, filled and read, and the clauses on `append`; a clause is `clause(backend, data)`."""

from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np
from hypothesis import strategies as st

from flexref.backend.protocol import CHUNK_TOKENS, Array, Backend
from flexref.backend.records import RecordLayout
from flexref.check import laws
from flexref.check.tolerances import Operand, Values, assert_within
from flexref.testing.bench import Bench, Guarded, assert_same_bits, assert_shape, guard_values
from flexref.testing.strategies import arrays, layouts, ragged

STALE = 255
"""What memory holds before its first record: as a float, no number; as scale and zero of a group, no numbers either."""

margins = st.sampled_from((0, 0, 16, 33))


class CacheBench:
    """The caches of some rows on one tier of a port, all of their memory `stale` bytes.

    Every other one is longer than it must be, the first one too.

    `prefixes`: per row None, or the number of a row whose array holds its first tokens, and how many.
    """

    def __init__(
        self,
        bench: Bench,
        layout: RecordLayout,
        tokens: Sequence[int],
        tier: str = "device",
        stale: int = STALE,
        prefixes: Sequence[tuple[int, int] | None] | None = None,
    ) -> None:
        self.bench, self.layout, self.tier, self._prefixes = bench, layout, tier, prefixes
        self.shared = [0 if prefix is None else prefix[1] for prefix in prefixes or [None] * len(tokens)]
        lengths = [
            count - shared + spare for count, shared, spare in zip(tokens, self.shared, cycle((2, 0)), strict=False)
        ]
        self.records = [
            Guarded(bench, np.full(length * layout.record_bytes, stale, np.uint8), tier=tier) for length in lengths
        ]

    @property
    def width(self) -> int:
        """E of the keys, values and queries."""
        return self.layout.heads * self.layout.head_width

    def place(self, values: Values, before: int = 0, after: int = 0) -> Guarded:
        """Values on the caches' tier, as columns of a wider array."""
        return Guarded(self.bench, values, before, after, self.tier)

    def rows(self, which: slice = slice(None)) -> Any:
        """The port's handle of some rows."""
        own = [records.array for records in self.records[which]]
        if self._prefixes is None:
            return self.bench.backend.cache_rows(own, self.layout)
        named = [prefix and (self.records[prefix[0]].array, prefix[1]) for prefix in self._prefixes[which]]
        return self.bench.backend.cache_rows(own, self.layout, named)

    def append(self, k: list[Values], v: list[Values], past: Sequence[int], which: slice = slice(None)) -> None:
        """Append, in one call, the tokens k[row], v[row] (S, E) to the caches of some rows that hold `past` tokens."""
        backend = self.bench.backend
        segments = backend.segments(past, [len(part) for part in k])
        backend.append(self.rows(which), segments, *(self.place(np.concatenate(part)).array for part in (k, v)))

    def fill(self, k: list[Values], v: list[Values], past: Sequence[int]) -> None:
        """Append the first `past` tokens of every row to its own array, row by row, as prefills of their own."""
        for row, (first, count) in enumerate(zip(self.shared, past, strict=True)):
            if count > first:
                self.append([k[row][first:count]], [v[row][first:count]], [first], slice(row, row + 1))

    def attend(self, q: list[Values], past: Sequence[int], scale: float, which: slice = slice(None)) -> list[Values]:
        """q[row] (S, E) over the caches of some rows that hold `past` tokens and S new ones; results by row."""
        out = self.place(guard_values((sum(map(len, q)), self.width), self.bench.dtype))
        self.attend_into(out.array, self.place(np.concatenate(q)).array, [len(part) for part in q], past, scale, which)
        return np.split(out.read(), np.cumsum([len(part) for part in q])[:-1])

    def attend_into(
        self, out: Array, q: Array, new: Sequence[int], past: Sequence[int], scale: float, which: slice = slice(None)
    ) -> None:
        """The port's operator itself."""
        backend = self.bench.backend
        result = backend.attend(self.rows(which), backend.segments(past, new), q, scale, out)
        assert_shape(result, (sum(new), self.width), "attend")

    def held(self, row: int, tokens: int) -> tuple[Operand, Operand]:
        """K and V (T, H, D) of the first tokens of a row, as its records hold them."""
        content = self.records[row].read()
        keys, values = (laws.held(content, self.layout, which, tokens, self.bench.arithmetic) for which in (0, 1))
        return keys, values


def drawn_tokens(
    data: st.DataObject, layout: RecordLayout, counts: Sequence[int], dtype: str, kinds: tuple[str, ...] = ("normal",)
) -> list[Values]:
    """For every row its tokens' K, V or Q (S, E)."""
    return [data.draw(arrays((count, layout.heads * layout.head_width), dtype, kinds)) for count in counts]


def cache_operators_keep_their_shapes(backend: Backend, data: st.DataObject) -> None:
    """Handles, `append` and `attend` work for ragged rows of every layout; `attend` returns `out`, (T, E).

    With `shares_prefixes` also for rows that name the first chunk of the first row.
    """
    with Bench(backend) as bench:
        layout = data.draw(layouts(bench.dtype))
        past, new = data.draw(ragged())
        prefixes: list[tuple[int, int] | None] | None = None
        if backend.caps.shares_prefixes and past[0] + new[0] >= CHUNK_TOKENS:
            prefixes = [None, *((0, CHUNK_TOKENS) for _ in past[1:])]
            past = (past[0], *(CHUNK_TOKENS + count for count in past[1:]))
        total = [a + b for a, b in zip(past, new, strict=True)]
        cache = CacheBench(bench, layout, total, prefixes=prefixes)
        x: list[Values] = [np.zeros((count, cache.width), bench.dtype) for count in new]
        cache.append(x, x, past)
        out, q = cache.place(np.concatenate(x)).array, cache.place(np.concatenate(x)).array
        cache.attend_into(out, q, new, past, 1.0)


def _append_to_some(backend: Backend, data: st.DataObject, schemes: tuple[str, ...], tier: str) -> None:
    """Append to ragged rows and check every byte of their memory."""
    with Bench(backend) as bench:
        layout = data.draw(layouts(bench.dtype, schemes))
        past, new = data.draw(ragged())
        cache = CacheBench(bench, layout, [a + b for a, b in zip(past, new, strict=True)], tier)
        kinds = ("normal", "offset", "constant", "tiny", "mixed", "zero")
        k, v = (drawn_tokens(data, layout, new, bench.dtype, kinds) for _ in range(2))
        before, after = data.draw(margins), data.draw(margins)
        placed = [cache.place(np.concatenate(part), before, after).array for part in (k, v)]
        backend.append(cache.rows(), backend.segments(past, new), *placed)
        for row, (first, count) in enumerate(zip(past, new, strict=True)):
            content = cache.records[row].read()
            for which, fresh in ((0, k[row]), (1, v[row])):
                for part in laws.recorded(content, layout, which, first, fresh):
                    assert_within(part.found, part.value, part.bound, f"{part.what} in the records of row {row}")
            size = layout.record_bytes
            untouched = np.concatenate((content[: first * size], content[(first + count) * size :]))
            written = int(np.count_nonzero(untouched != STALE))
            assert not written, (
                f"append of records {first} to {first + count - 1} changed {written} bytes of other records of row "
                f"{row}, needed none"
            )
            cache.records[row].assert_untouched_around("append")


def append_writes_the_records(backend: Backend, data: st.DataObject) -> None:
    """Unquantized: `K | V` of every new token, byte for byte, after the past ones; no other byte changes."""
    _append_to_some(backend, data, ("none",), "device")


def append_quantizes_by_the_law(backend: Backend, data: st.DataObject) -> None:
    """In 4-bit groups: `K codes | K pairs | V codes | V pairs` as `storage.quant` would; no other byte changes."""
    _append_to_some(backend, data, ("int4",), "device")


def append_works_on_host_memory(backend: Backend, data: st.DataObject) -> None:
    """Caches, keys and values in host memory: the same records."""
    _append_to_some(backend, data, ("none", "int4"), "host")


def appends_do_not_depend_on_other_rows(backend: Backend, data: st.DataObject) -> None:
    """A row's records have the same bits whether it is appended to with others or alone, at once or token by token."""
    with Bench(backend) as bench:
        layout = data.draw(layouts(bench.dtype))
        _, new = data.draw(ragged(long=False))
        k, v = (drawn_tokens(data, layout, new, bench.dtype, ("normal", "mixed")) for _ in range(2))
        together, alone = (CacheBench(bench, layout, new) for _ in range(2))
        together.append(k, v, [0] * len(new))
        for row, count in enumerate(new):
            for token in range(count):
                part = slice(token, token + 1)
                alone.append([k[row][part]], [v[row][part]], [token], slice(row, row + 1))
            for which in (0, 1):
                found, expected = (
                    laws.section(cache.records[row].read(), layout, which, 0, count) for cache in (alone, together)
                )
                for actual, needed in zip(found, expected, strict=True):
                    if actual is not None and needed is not None:
                        assert_same_bits(actual, needed, f"records of row {row}, appended alone")
