"""Clauses on attention over a KV cache; a clause is `clause(backend, data)`."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import strategies as st

from flexref.backend.protocol import Backend, HostWork, Lane
from flexref.backend.records import RecordLayout
from flexref.check import laws
from flexref.check.tolerances import PRECISIONS, Values, assert_within
from flexref.testing.bench import Bench, assert_same_bits, guard_values
from flexref.testing.clauses.cache import STALE, CacheBench, drawn_tokens, margins
from flexref.testing.strategies import layouts, ragged

POISON = 3e38
"""What a key that no query may see is set to: its products overflow, and its share of anything must be none at all."""

BESIDE = 3
"""Calls on a lane, and beside them on the caller's thread: enough for each to begin while the other is at work."""

STEEP = 60.0
"""Scores that are so many times as large as usual are too large for exp, unless the highest is taken off them."""

KEY_KINDS = ("normal", "normal", "normal", "constant", "tiny", "zero")
VALUE_KINDS = ("normal", "normal", "normal", "offset", "tiny", "constant", "zero")
"""Most are usual ones: tiny and equal scores hide which keys were read."""


class _Pass:
    """One drawn pass over ragged rows: caches filled with past and new tokens, and queries of the new ones."""

    def __init__(self, bench: Bench, data: st.DataObject, tier: str = "device", long: bool = True) -> None:
        self.bench = bench
        self.layout: RecordLayout = data.draw(layouts(bench.dtype))
        self.past, self.new = data.draw(ragged(long))
        self.total = [past + new for past, new in zip(self.past, self.new, strict=True)]
        self.k = drawn_tokens(data, self.layout, self.total, bench.dtype, KEY_KINDS)
        self.v = drawn_tokens(data, self.layout, self.total, bench.dtype, VALUE_KINDS)
        self.q = drawn_tokens(data, self.layout, self.new, bench.dtype)
        root = self.layout.head_width**-0.5
        # Keys in 4 bits are rounded, and scores with them: if these were larger, nothing could be asked.
        steep = STEEP / 3 if self.layout.quantized else STEEP
        self.scale = data.draw(st.sampled_from((root, 1.0, 0.125, steep * root)))
        self.tier = tier

    def cache(self, stale: int = 255) -> CacheBench:
        """Caches of this pass before its first token."""
        return CacheBench(self.bench, self.layout, self.total, self.tier, stale)

    def fresh(self, which: list[Values]) -> list[Values]:
        """The new tokens of every row among all of its tokens."""
        return [part[past:] for part, past in zip(which, self.past, strict=True)]

    def filled(self, stale: int = 255) -> CacheBench:
        """Caches that hold all tokens of this pass."""
        cache = self.cache(stale)
        cache.fill(self.k, self.v, self.past)
        cache.append(self.fresh(self.k), self.fresh(self.v), self.past)
        return cache

    def run(self, stale: int = 255) -> list[Values]:
        """The results by row."""
        return self.filled(stale).attend(self.q, self.past, self.scale)

    def expected(self, cache: CacheBench, row: int) -> tuple[Values, Values]:
        """(value, bound) of a row's result (S, E), from what its records hold."""
        keys, values = cache.held(row, self.total[row])
        q = self.q[row].reshape(-1, self.layout.heads, self.layout.head_width)
        value, bound = laws.attend(q, keys, values, self.scale, self.bench.arithmetic)
        return value.reshape(-1, cache.width), bound.reshape(-1, cache.width)

    def check(self, cache: CacheBench, found: Sequence[Values], what: str) -> None:
        """Raise `AssertionError` unless the results by row are those of causal attention."""
        scheme = f"{what} over {'4-bit' if self.layout.quantized else 'plain'} records"
        for row, actual in enumerate(found):
            assert_within(actual, *self.expected(cache, row), f"{scheme}, row {row}", self.q[row].shape)


def _attends(backend: Backend, data: st.DataObject, tier: str) -> None:
    with Bench(backend) as bench:
        bench.keep_rows_apart(data.draw(st.booleans()))
        this = _Pass(bench, data, tier)
        cache = this.filled()
        before, after = data.draw(margins), data.draw(margins)
        q = cache.place(np.concatenate(this.q), before, after)
        out = cache.place(guard_values((sum(this.new), cache.width), bench.dtype), after, before)
        cache.attend_into(out.array, q.array, this.new, this.past, this.scale)
        this.check(cache, np.split(out.read(), np.cumsum(this.new)[:-1]), "attend")
        out.assert_untouched_around("attend")
        assert_same_bits(q.read(), np.concatenate(this.q), "q after attend")


class _InOneBuffer(CacheBench):
    """Caches at equal distances in one buffer, in an order that is drawn; some are longer than they must be."""

    def __init__(self, bench: Bench, data: st.DataObject, layout: RecordLayout, tokens: Sequence[int]) -> None:
        super().__init__(bench, layout, tokens)
        self._size = (max(tokens) + data.draw(st.integers(0, 2))) * layout.record_bytes
        in_order = data.draw(st.sampled_from((True, True, False)))
        self._order = range(len(tokens)) if in_order else data.draw(st.permutations(range(len(tokens))))
        self._whole = bench.buffer("device", len(tokens) * self._size)
        stale = np.full(self._whole.nbytes, STALE, np.uint8)
        bench.backend.upload(stale, out=bench.backend.view(self._whole, 0, stale.shape, "uint8"))

    def rows(self, which: slice = slice(None)) -> Any:
        """The port's handle of some rows."""
        size, view = (self._size,), self.bench.backend.view
        places = [view(self._whole, place * self._size, size, "uint8") for place in self._order[which]]
        return self.bench.backend.cache_rows(places, self.layout)

    def contents(self) -> list[Values]:
        """The bytes of every row's memory."""
        whole = self.bench.bytes_of(self._whole)
        return [whole[place * self._size :][: self._size] for place in self._order]


def attend_is_causal_attention(backend: Backend, data: st.DataObject) -> None:
    """softmax(q k^T scale) v of the records, causal, per row and head, within the bound.

    For ragged rows of every layout, rows with bits of their own or not, scores beyond what exp can take, q and `out`
    slices of wider arrays; q stays as it is.
    """
    _attends(backend, data, "device")


def attend_works_on_host_memory(backend: Backend, data: st.DataObject) -> None:
    """Caches, queries and results in host memory: the same law."""
    _attends(backend, data, "host")


def host_attention_runs_beside_operators(backend: Backend, data: st.DataObject) -> None:
    """Caches on the host are appended and attended to on a lane, beside operators: all bits are those of one by one."""
    with Bench(backend) as bench:
        far, near = _Pass(bench, data, "host", long=False), _Pass(bench, data, long=False)
        expected = [np.concatenate(this.run()) for this in (far, near)]
        there, here = far.cache(), near.cache()
        for this, cache in ((far, there), (near, here)):
            cache.fill(this.k, this.v, this.past)
        k, v, q = (there.place(np.concatenate(part)) for part in (far.fresh(far.k), far.fresh(far.v), far.q))
        out = there.place(guard_values((sum(far.new), there.width), bench.dtype))
        rows, segments = there.rows(), backend.segments(far.past, far.new)
        times = data.draw(st.integers(1, BESIDE))

        def attend() -> None:
            for _ in range(times):
                backend.append(rows, segments, k.array, v.array)
                backend.attend(rows, segments, q.array, far.scale, out.array)

        work = HostWork("host attention of a test", attend, operators=True)
        ticket = backend.submit(Lane.HOST_COMPUTE, [work], [backend.mark()])
        found = []
        for _ in range(times):
            here.append(near.fresh(near.k), near.fresh(near.v), near.past)
            found.append(np.concatenate(here.attend(near.q, near.past, near.scale)))
        backend.wait(ticket)
        for result in found:
            assert_same_bits(result, expected[1], "attend on the device, beside a lane that attends on the host")
        ticket.wait()
        assert_same_bits(out.read(), expected[0], "attend on the host, on a lane beside operators")


def a_prefill_is_a_shorter_one_and_decodes(backend: Backend, data: st.DataObject) -> None:
    """n new tokens at once, or k of them and then one by one, give results within both bounds of each other."""
    with Bench(backend) as bench:
        this = _Pass(bench, data, long=False)
        at_once, in_steps = this.filled(), this.cache()
        in_steps.fill(this.k, this.v, this.past)
        found: list[Values] = []
        for row, (past, count) in enumerate(zip(this.past, this.new, strict=True)):
            cut = data.draw(st.integers(1, count))
            which, parts = slice(row, row + 1), []
            for first, last in [(0, cut), *((token, token + 1) for token in range(cut, count))]:
                k, v = (part[row][past + first : past + last] for part in (this.k, this.v))
                in_steps.append([k], [v], [past + first], which)
                parts += in_steps.attend([this.q[row][first:last]], [past + first], this.scale, which)
            found.append(np.concatenate(parts))
        this.check(in_steps, found, "attend in steps")
        whole = at_once.attend(this.q, this.past, this.scale)
        for row, (stepped, together) in enumerate(zip(found, whole, strict=True)):
            bound = 2 * this.expected(at_once, row)[1]
            assert_within(stepped, together.astype(np.float64), bound, f"row {row}, in steps and at once")


def a_row_is_read_in_any_pieces(backend: Backend, data: st.DataObject) -> None:
    """A row's new tokens at once beside other rows, or in pieces of any sizes alone: the same bits, in records too.

    The last token is always a piece, as a decoded one is.
    """
    backend.keep_rows_apart(True)
    with Bench(backend) as bench:
        this = _Pass(bench, data)
        at_once, in_pieces = this.filled(), this.cache()
        together = at_once.attend(this.q, this.past, this.scale)
        for row, (past, count) in enumerate(zip(this.past, this.new, strict=True)):
            cuts = data.draw(st.sets(st.integers(1, past + count), max_size=3))
            edges, which = sorted({0, past, past + count - 1, past + count, *cuts}), slice(row, row + 1)
            parts = []
            for first, last in pairwise(edges):
                in_pieces.append([this.k[row][first:last]], [this.v[row][first:last]], [first], which)
                if first >= past:
                    q = this.q[row][first - past : last - past]
                    parts += in_pieces.attend([q], [first], this.scale, which)
            assert_same_bits(np.concatenate(parts), together[row], f"row {row} alone, in pieces {edges}")
            found, needed = (cache.records[row].read() for cache in (in_pieces, at_once))
            assert_same_bits(found, needed, f"records of row {row} in pieces {edges}")


def later_tokens_have_no_effect(backend: Backend, data: st.DataObject) -> None:
    """Poison every new token from some place on, of every row: the results of the tokens before keep their bits."""
    with Bench(backend) as bench:
        this = _Pass(bench, data)
        clean = this.run()
        cuts = [data.draw(st.integers(1, count)) for count in this.new]
        # 4-bit groups hold what their float16 scale can say, and a port's own type holds its largest number.
        poison = min(POISON, PRECISIONS["float16" if this.layout.quantized else bench.dtype].largest)
        for row, cut in enumerate(cuts):
            for part in (this.k, this.v):
                part[row] = part[row].copy()
                part[row][this.past[row] + cut :] = poison
            this.q[row] = this.q[row].copy()
            this.q[row][cut:] = 0  # they see the poison, and may: with zeros their own results stay numbers
        for row, (found, cut) in enumerate(zip(this.run(), cuts, strict=True)):
            assert_same_bits(found[:cut], clean[row][:cut], f"row {row} before poisoned tokens")


def stale_records_have_no_effect(backend: Backend, data: st.DataObject) -> None:
    """What lies after a row's last record changes no bit of any result."""
    with Bench(backend) as bench:
        this = _Pass(bench, data)
        clean = this.run(stale=0)
        for stale in (255, 126):
            for row, found in enumerate(this.run(stale)):
                assert_same_bits(found, clean[row], f"row {row} before stale records of bytes {stale}")


def attention_does_not_depend_on_other_rows(backend: Backend, data: st.DataObject) -> None:
    """A row's result has the same bits with other rows beside it and alone."""
    with Bench(backend) as bench:
        this = _Pass(bench, data)
        cache = this.filled()
        together = cache.attend(this.q, this.past, this.scale)
        for row in range(len(this.new)):
            which = slice(row, row + 1)
            (alone,) = cache.attend(this.q[which], this.past[which], this.scale, which)
            assert_same_bits(alone, together[row], f"row {row} alone")


def rows_in_one_buffer_are_as_good_as_rows_apart(backend: Backend, data: st.DataObject) -> None:
    """Rows at equal distances, of equal lengths or not, in order or not: the bits of rows in buffers of their own.

    So lie the rows of a group in an engine, and a port may take them together: results and records are the same.
    """
    with Bench(backend) as bench:
        layout = data.draw(layouts(bench.dtype))
        past, new = data.draw(ragged())
        if data.draw(st.sampled_from((True, True, False))):
            past, new = (counts[:1] * len(counts) for counts in (past, new))
        total = [a + b for a, b in zip(past, new, strict=True)]
        k, v, q = (drawn_tokens(data, layout, counts, bench.dtype) for counts in (total, total, new))
        together, found = _InOneBuffer(bench, data, layout, total), []
        apart = CacheBench(bench, layout, total)
        for cache in (apart, together):
            cache.fill(k, v, past)
            fresh_k, fresh_v = ([part[n:] for part, n in zip(each, past, strict=True)] for each in (k, v))
            cache.append(fresh_k, fresh_v, past)
            found.append(cache.attend(q, past, float(layout.head_width**-0.5)))
        for row, (needed, actual, content) in enumerate(zip(*found, together.contents(), strict=True)):
            assert_same_bits(actual, needed, f"row {row} in one buffer with others, and in its own")
            own = np.full(content.shape, STALE, np.uint8)
            own[: total[row] * layout.record_bytes] = apart.records[row].read()[: total[row] * layout.record_bytes]
            assert_same_bits(content, own, f"records of row {row} in one buffer with others, and in its own")


def attention_repeats_its_bits(backend: Backend, data: st.DataObject) -> None:
    """The same call on the same operands gives the same bits, and changes no record."""
    with Bench(backend) as bench:
        this = _Pass(bench, data)
        cache = this.filled()
        before = [records.read() for records in cache.records]
        first = np.concatenate(cache.attend(this.q, this.past, this.scale))
        assert_same_bits(np.concatenate(cache.attend(this.q, this.past, this.scale)), first, "attend, called again")
        for records, content in zip(cache.records, before, strict=True):
            assert_same_bits(records.read(), content, "records after attend")
