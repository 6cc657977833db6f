"""Attention over records where they lie, and writing them, as functions of numba's; see `softmax` for the order.

What these functions are called with: int64, most of them addresses of host memory, or distances in bytes.
"""

from collections.abc import Callable
from typing import Any

from numba.core import types

from flexref.backend.protocol import CHUNK_TOKENS
from flexref.backend.records import RecordLayout
from flexref_numba.kernels.numbers import expand_row, inner, moved, peek, poke
from flexref_numba.kernels.softmax import softmax_step, weighted_tile
from flexref_numba.kernels.tiles import FLOATS, Form, product_tile
from flexref_numba.kernels.vectors import LANES

TILE_QUERIES, TILE_KEYS, SINGLE_KEYS, TILE_VECTORS = 4, 4, 8, 4
"""Queries and keys of one product, keys of one with a single query, and vectors of values that are added up at once.
No result depends on them."""

EXPANDED_QUERIES = 8
"""From so many queries on a chunk's keys and values are expanded before they are multiplied."""

MOST_QUERIES = 64
"""Queries of a row in one unit: a chunk's records are expanded once for all of them."""

DIRECT_GROUPS = (64,)
"""Lengths of groups that are multiplied as they are stored."""

PAIR_BYTES = 8
"""What scale and zero of a group take that are widened to float32 before a tile: see `products`."""

UNIT_WORDS = 6
"""int64 of a unit of attention: row, first token among those of the pass, tokens before it, queries, and the first and
last of the heads."""

ROW_WORDS = 3
"""int64 of a row: address of its own records, address of its prefix's, and how many tokens of it."""


def scratch_bytes(queries: int, heads: int, width: int) -> int:
    """What a unit of attention needs: queries, sums, state and weights of each, and a chunk of keys or values, or one
    number and scales and zeros of a few keys."""
    chunk, pairs = (
        4 * CHUNK_TOKENS * max(width, LANES),
        4 * LANES + SINGLE_KEYS * PAIR_BYTES * heads * max(1, width // 64),
    )
    return 4 * queries * heads * (2 * width + LANES + CHUNK_TOKENS) + max(chunk, pairs)


def stored_form(layout: RecordLayout) -> tuple[Form, bool]:
    """How a head's numbers lie in a record, and whether they are multiplied as they are stored.

    A head that is shorter than a group is one group. Groups of other lengths are expanded first, chunk by chunk.
    """
    if not layout.quantized:
        return Form(layout.dtype), True
    group = min(layout.group_size, layout.head_width)
    if layout.head_width % group == 0 and group in DIRECT_GROUPS:
        return Form("codes4", group, "float16"), True
    return Form("codes4", 0, "float16"), False


def _scores(form: Form, tall: bool) -> Any:
    """A function of numba's: scores (queries, CHUNK_TOKENS) of float32 queries (queries, D) and the keys of a chunk.

    `tall`: several queries in one product, where there are as many.
    """
    many, single, one = (product_tile(form, *shape) for shape in ((TILE_QUERIES, TILE_KEYS), (1, SINGLE_KEYS), (1, 1)))
    row_bytes, tile, at_once = 4 * CHUNK_TOKENS, TILE_QUERIES if tall else 1, TILE_KEYS if tall else SINGLE_KEYS
    multiply = many if tall else single

    @inner
    def scores(q, count, width, k, pairs, pitch, pair_pitch, keys, out):
        q_pitch, zeros, query, step = 4 * width, pairs + PAIR_BYTES // 2, 0, PAIR_BYTES
        while query < count:
            height = tile if query + tile <= count else 1
            x, y, key = q + query * q_pitch, out + query * row_bytes, 0
            while height == tile and key + at_once <= keys:
                at, pair, z = k + key * pitch, key * pair_pitch, y + 4 * key
                s, t = pairs + pair, zeros + pair
                multiply(x, q_pitch, at, pitch, s, t, pair_pitch, step, width, z, row_bytes, 0, 0)
                key += at_once
            while key < keys:
                at, pair, z = k + key * pitch, key * pair_pitch, y + 4 * key
                for _ in range(height):
                    one(x, 0, at, 0, pairs + pair, zeros + pair, 0, step, width, z, 0, 0, 0)
                    x, z = x + q_pitch, z + row_bytes
                x -= height * q_pitch
                key += 1
            query += height

    return scores


def _weighted(form: Form, tall: bool) -> Any:
    """A function of numba's: sums (queries, D) take what the weights of a chunk give of its values."""
    vectors, tile = form.group // LANES if form.coded else TILE_VECTORS, TILE_QUERIES if tall else 1
    many, single = weighted_tile(form, tile, vectors), weighted_tile(form, 1, vectors)
    rest = FLOATS if form.coded else form  # codes come in whole groups: of them there is no rest
    vector, column = weighted_tile(rest, 1, 1), weighted_tile(rest, 1, 0)
    row_bytes, step = 4 * CHUNK_TOKENS, LANES * vectors
    step_bytes = step // 2 if form.coded else step * (4 if form.kind == "float32" else 2)
    value_bytes = 2 if form.kind == "float16" else 4

    @inner
    def weighted(weights, count, width, v, pairs, pitch, pair_pitch, keys, factors, factor_pitch, sums):
        sums_pitch, done = 4 * width, width // step
        for block in range(done):
            at, s, query = v + block * step_bytes, pairs + PAIR_BYTES * block, 0
            z = s + PAIR_BYTES // 2
            while query < count:
                p, f, y = weights + query * row_bytes, factors + query * factor_pitch, sums + query * sums_pitch
                y += 4 * step * block
                if query + tile <= count:
                    many(p, row_bytes, keys, at, pitch, s, z, pair_pitch, f, factor_pitch, y, sums_pitch)
                    query += tile
                else:
                    single(p, row_bytes, keys, at, pitch, s, z, pair_pitch, f, factor_pitch, y, sums_pitch)
                    query += 1
        for query in range(count if done * step < width else 0):
            p, f, y = weights + query * row_bytes, factors + query * factor_pitch, sums + query * sums_pitch
            place = done * step
            while place + LANES <= width:
                vector(p, 0, keys, v + value_bytes * place, pitch, 0, 0, 0, f, 0, y + 4 * place, 0)
                place += LANES
            while place < width:
                column(p, 0, keys, v + value_bytes * place, pitch, 0, 0, 0, f, 0, y + 4 * place, 0)
                place += 1

    return weighted


def _ends(kind: str) -> tuple[Any, Any]:
    """Functions of numba's: scaled float32 queries and empty sums, and what sums give, of results of a `kind`."""
    given, number, found, write = peek(kind), peek("float32"), poke(kind), poke("float32")
    nbytes, state_bytes = 2 if kind == "float16" else 4, 4 * LANES

    @inner
    def begin(q, q_pitch, count, heads, width, scale: float, queries, sums, states):
        for head in range(heads):
            for query in range(count):
                place = head * count + query
                at = q + query * q_pitch + nbytes * head * width
                for d in range(width):
                    write(queries + 4 * (place * width + d), given(at + nbytes * d) * scale)
                    write(sums + 4 * (place * width + d), types.float32(0))
                write(states + state_bytes * place, types.float32(-float("inf")))
                write(states + state_bytes * place + 4, types.float32(0))

    @inner
    def end(out, out_pitch, count, heads, width, sums, states):
        for head in range(heads):
            for query in range(count):
                place = head * count + query
                at = out + query * out_pitch + nbytes * head * width
                total = number(states + state_bytes * place + 4)
                for d in range(width):
                    found(at + nbytes * d, number(sums + 4 * (place * width + d)) / total)

    return begin, end


def _chunk_expanded(form: Form) -> Any:
    """A function of numba's: one chunk for all heads of a unit, each of which is expanded first, K and then V."""
    scores, weighted, expanded = _scores(FLOATS, True), _weighted(FLOATS, True), expand_row(form)
    step, state_bytes, row_bytes = softmax_step(CHUNK_TOKENS), 4 * LANES, 4 * CHUNK_TOKENS

    @inner
    def expand(records, pairs, pitch, keys, width, group, out):
        for key in range(keys):
            far = key * pitch
            expanded(records + far, pairs + far, pairs + far + 2, 4, width, group, out + 4 * key * width)

    @inner
    def chunk(
        queries, sums, states, weights, count, blind, heads, width, group, k, pairs, head_bytes, pair_bytes,
        value_offset, record_bytes, keys, seen,
    ):  # fmt: skip
        held = weights + row_bytes * heads * count
        for head in range(heads):
            place = head * count + blind
            x, y, s = queries + 4 * place * width, sums + 4 * place * width, states + state_bytes * place
            of_head, of_pairs = k + head * head_bytes, pairs + head * pair_bytes
            expand(of_head, of_pairs, record_bytes, keys, width, group, held)
            scores(x, count - blind, width, held, 0, 4 * width, 0, keys, weights)
            for query in range(count - blind):
                step(weights + row_bytes * query, min(keys, seen + query), s + state_bytes * query)
            expand(of_head + value_offset, of_pairs + value_offset, record_bytes, keys, width, group, held)
            weighted(weights, count - blind, width, held, 0, 4 * width, 0, keys, s + 8, state_bytes, y)

    return chunk


def _chunk_in_place(form: Form) -> Any:
    """A function of numba's: one chunk for all heads of a unit, read where it lies.

    A few keys at a time for all heads, so that records are read from one end to the other.
    """
    in_tiles, coded, wide = form._replace(pair="float32"), form.coded, moved("float16", "float32")
    scores, weighted, one = _scores(in_tiles, False), _weighted(in_tiles, False), poke("float32")
    step, state_bytes, row_bytes = softmax_step(CHUNK_TOKENS), 4 * LANES, 4 * CHUNK_TOKENS

    @inner
    def chunk(
        queries, sums, states, weights, count, blind, heads, width, group, k, pairs, head_bytes, pair_bytes,
        value_offset, record_bytes, keys, seen,
    ):  # fmt: skip
        seeing, unscaled = count - blind, weights + row_bytes * heads * count
        widened, halves = unscaled + 4 * LANES, heads * (pair_bytes // 2)  # of a record
        head_pitch, pitch = 2 * pair_bytes, 4 * halves
        one(unscaled, types.float32(1))
        for key in range(0, keys, SINGLE_KEYS):
            far, some = key * record_bytes, min(SINGLE_KEYS, keys - key)
            for record in range(some if coded else 0):
                wide(pairs + far + record * record_bytes, halves, widened + record * pitch)
            for head in range(heads):
                place = head * count + blind
                x, out = queries + 4 * place * width, weights + row_bytes * place + 4 * key
                at, pair = k + far + head * head_bytes, widened + head * head_pitch
                scores(x, seeing, width, at, pair, record_bytes, pitch, some, out)
        for head in range(heads):
            for query in range(seeing):
                place = head * count + blind + query
                step(weights + row_bytes * place, min(keys, seen + query), states + state_bytes * place)
        for key in range(0, keys, SINGLE_KEYS):
            far, some = key * record_bytes + value_offset, min(SINGLE_KEYS, keys - key)
            for record in range(some if coded else 0):
                wide(pairs + far + record * record_bytes, halves, widened + record * pitch)
            for head in range(heads):
                place = head * count + blind
                y, p = sums + 4 * place * width, weights + row_bytes * place + 4 * key
                at, pair = k + far + head * head_bytes, widened + head * head_pitch
                factor, factor_pitch = unscaled, 0
                if key == 0:
                    factor, factor_pitch = states + state_bytes * place + 8, state_bytes
                weighted(p, seeing, width, at, pair, record_bytes, pitch, some, factor, factor_pitch, y)

    return chunk


def make_attend(form: Form, as_stored: bool) -> Callable[..., Any]:
    """Attention for units `first` to `last`, of records in one `form` with groups of `group`.

    q and out are float16 if `halves`, else float32.
    """
    expanded = _chunk_expanded(form)
    in_place = _chunk_in_place(form) if as_stored else expanded
    integer, (begin, end), (begin_halves, end_halves) = peek("int64"), _ends("float32"), _ends("float16")
    state_bytes, chunk = 4 * LANES, CHUNK_TOKENS
    expanded_from = EXPANDED_QUERIES if as_stored else 0

    def attend(
        units, first, last, rows, record_bytes, head_bytes, pair_bytes, pairs_offset, value_offset, width, group,
        halves, q, q_pitch, out, out_pitch, scale: float, scratch,
    ) -> None:  # fmt: skip
        for unit in range(first, last):
            at = units + 8 * UNIT_WORDS * unit
            row, token, past, count = (
                rows + 8 * ROW_WORDS * integer(at),
                integer(at + 8),
                integer(at + 16),
                integer(at + 24),
            )
            head, heads = integer(at + 32), integer(at + 40) - integer(at + 32)
            own, prefix, shared = integer(row), integer(row + 8), integer(row + 16)
            queries = scratch
            sums = queries + 4 * heads * count * width
            states = sums + 4 * heads * count * width
            weights = states + state_bytes * heads * count
            corner = (2 if halves else 4) * head * width
            x, y = q + token * q_pitch + corner, out + token * out_pitch + corner
            if halves:
                begin_halves(x, q_pitch, count, heads, width, scale, queries, sums, states)
            else:
                begin(x, q_pitch, count, heads, width, scale, queries, sums, states)
            for start in range(0, past + count, chunk):
                keys = min(chunk, past + count - start)
                records = prefix + start * record_bytes if start < shared else own + (start - shared) * record_bytes
                blind = max(0, start - past)  # queries that come before this chunk
                k, pairs = records + head * head_bytes, records + pairs_offset + head * pair_bytes
                seen = past + blind + 1 - start  # of this chunk, by the first query that sees some
                if count >= expanded_from:
                    expanded(
                        queries, sums, states, weights, count, blind, heads, width, group, k, pairs, head_bytes,
                        pair_bytes, value_offset, record_bytes, keys, seen,
                    )  # fmt: skip
                else:
                    in_place(
                        queries, sums, states, weights, count, blind, heads, width, group, k, pairs, head_bytes,
                        pair_bytes, value_offset, record_bytes, keys, seen,
                    )  # fmt: skip
            if halves:
                end_halves(y, out_pitch, count, heads, width, sums, states)
            else:
                end(y, out_pitch, count, heads, width, sums, states)

    return attend
