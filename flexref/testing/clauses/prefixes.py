"""Clauses on prefixes that rows share: their records lie once; a clause is `clause(backend, data)`."""

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from flexref.backend.protocol import CHUNK_TOKENS, Backend
from flexref.backend.records import RecordLayout
from flexref.check import laws
from flexref.check.tolerances import Values, assert_within
from flexref.testing.bench import Bench, assert_same_bits, guard_values
from flexref.testing.clauses.cache import CacheBench, drawn_tokens
from flexref.testing.strategies import layouts

PAST, NEW = (0, 1, 63, 64, 70), (1, 2, 17, 70)
"""Tokens of a row after its prefix, and new ones, at the edges of chunks and beyond."""


class _Shared:
    """One drawn pass over rows of which some begin in another's array: that of a row of the pass, or of an earlier one.

    prefixes: per row None, or (row that holds it, its tokens). skipped: rows that are not in the pass, the first ones.
    """

    def __init__(self, bench: Bench, data: st.DataObject) -> None:
        self.bench = bench
        self.layout: RecordLayout = data.draw(layouts(bench.dtype))
        count = data.draw(st.integers(2, 5))
        holders = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=2, unique=True))
        chunks = {row: data.draw(st.integers(1, 3)) for row in holders}
        self.skipped = data.draw(st.integers(0, 1)) if holders[0] == 0 else 0
        self.prefixes: list[tuple[int, int] | None] = []
        self.past: list[int] = []
        self.new: list[int] = []
        for row in range(count):
            holder = None if row in chunks else data.draw(st.sampled_from((*holders, *holders, None)))
            past, new = data.draw(st.sampled_from(PAST)), data.draw(st.sampled_from(NEW))
            self.prefixes.append(
                None if holder is None else (holder, CHUNK_TOKENS * data.draw(st.integers(1, chunks[holder])))
            )
            if row in chunks:  # in the pass it fills what others name, or the last part of it, or goes on after it
                tokens = CHUNK_TOKENS * chunks[row]
                past = data.draw(st.sampled_from((0, tokens - 1, tokens + 5)))
                past, new = (tokens, new) if row < self.skipped else (past, max(tokens - past, 0) + new)
            self.past.append(past + self.shared[row])
            self.new.append(new)
        self.total = [past + new for past, new in zip(self.past, self.new, strict=True)]
        self.k, self.v = (self._with_prefixes(drawn_tokens(data, self.layout, self.total, bench.dtype)) for _ in "kv")
        self.q = drawn_tokens(data, self.layout, self.new, bench.dtype)
        self.pass_rows = slice(self.skipped, None)

    @property
    def shared(self) -> list[int]:
        """Tokens in every row's prefix."""
        return [0 if prefix is None else prefix[1] for prefix in self.prefixes]

    def _with_prefixes(self, values: list[Values]) -> list[Values]:
        """Every row's tokens, of which the first are those of its prefix."""
        return [
            part if prefix is None else np.concatenate((values[prefix[0]][: prefix[1]], part[prefix[1] :]))
            for part, prefix in zip(values, self.prefixes, strict=True)
        ]

    def cache(self, prefixes: Sequence[tuple[int, int] | None] | None) -> CacheBench:
        """Caches that hold all tokens before this pass."""
        cache = CacheBench(self.bench, self.layout, self.total, prefixes=prefixes)
        cache.fill(self.k, self.v, self.past)
        return cache

    def run(self, cache: CacheBench) -> list[Values]:
        """All rows of the pass in one call of `append` and one of `attend`, over one handle; the results by row."""
        backend, which = self.bench.backend, self.pass_rows
        past, new, q = self.past[which], self.new[which], self.q[which]
        rows, segments = cache.rows(which), backend.segments(past, new)
        fresh = (
            np.concatenate([part[of:] for part, of in zip(parts[which], past, strict=True)])
            for parts in (self.k, self.v)
        )
        backend.append(rows, segments, *(cache.place(part).array for part in fresh))
        out = cache.place(guard_values((sum(new), cache.width), self.bench.dtype))
        backend.attend(rows, segments, cache.place(np.concatenate(q)).array, self.scale, out.array)
        return np.split(out.read(), np.cumsum(new)[:-1])

    @property
    def scale(self) -> float:
        """What scores are multiplied by."""
        return float(self.layout.head_width**-0.5)

    def expected(self, own: CacheBench, row: int) -> tuple[Values, Values]:
        """(value, bound) of a row's result (S, E), from what its own copy of all records holds."""
        q = self.q[row].reshape(-1, self.layout.heads, self.layout.head_width)
        value, bound = laws.attend(q, *own.held(row, self.total[row]), self.scale, self.bench.arithmetic)
        return value.reshape(-1, own.width), bound.reshape(-1, own.width)


def a_shared_prefix_is_as_good_as_a_copy(backend: Backend, data: st.DataObject) -> None:
    """Rows that name another array for their first chunks give what they give with copies: results and own records.

    Beside rows without a prefix; the array is that of an earlier row, or of one that fills it in the same call. To the
    bit where `row_invariant` is said, else within the bound.
    """
    with Bench(backend) as bench:
        this = _Shared(bench, data)
        copies, sharing = this.cache(None), this.cache(this.prefixes)
        needed, found = this.run(copies), this.run(sharing)
        said = [prefix and f"{prefix[1]} tokens of row {prefix[0]}" for prefix in this.prefixes]
        for row, (actual, same) in enumerate(zip(found, needed, strict=True), start=this.skipped):
            what = f"row {row}, whose prefix is {said[row]}"
            if backend.caps.row_invariant:
                assert_same_bits(actual, same, what)
            else:
                assert_within(actual, *this.expected(copies, row), what, actual.shape)
        for row, (own, copy, shared) in enumerate(zip(sharing.records, copies.records, this.shared, strict=True)):
            content = copy.read()[shared * this.layout.record_bytes :]
            assert_same_bits(own.read(), content, f"own records of row {row}, whose prefix is {said[row]}")
            own.assert_untouched_around("append and attend")
