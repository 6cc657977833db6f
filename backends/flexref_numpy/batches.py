"""Which queries of a pass are attended to together, and how many fit the scratch; it knows no records.

Everything here follows from the rows' lengths: it is worked out once in a pass, for all layers.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from flexref.backend.protocol import CHUNK_TOKENS
from flexref.units import aligned
from flexref_numpy.scratch import Numbers

TILE_QUERIES, HEIGHTS = 4, (16, 8, 4, 2)
"""Queries in one product, and how many there are in their place where that is seen to change no bit."""

MOST_FILLED = 1.25
"""Queries filled up to whole tiles are at most so many times those that there are, if lower tiles do."""

MOST_QUERIES = 64
"""Queries of a row at once, so that their scores stay near the caches."""


def chunks_of(keys: int) -> int:
    """Chunks that hold so many keys."""
    return -(-keys // CHUNK_TOKENS)


@cache
def heights(width: int) -> tuple[int, ...]:
    """Which of HEIGHTS give the bits of TILE_QUERIES in products with K and with V of a chunk; tallest first.

    Tried once, with random numbers. All do in most kernels of OpenBLAS, of those for Haswell and Zen only 8 and 4.
    """
    draw = np.random.default_rng(0)
    rows = HEIGHTS[0]
    q, k, weights, v = (
        draw.standard_normal(shape, np.float32)
        for shape in ((rows, width), (CHUNK_TOKENS, width), (rows, CHUNK_TOKENS), (CHUNK_TOKENS, width))
    )

    def found(height: int) -> Numbers:
        parts = [(x.reshape(-1, height, x.shape[1]) @ y).reshape(rows, -1) for x, y in ((q, k.T), (weights, v))]
        return np.concatenate(parts, axis=1)

    needed = found(TILE_QUERIES)
    return tuple(height for height in HEIGHTS if np.array_equal(found(height), needed))


@dataclass(frozen=True, slots=True)
class Room:
    """How much fits a half of the scratch, of so many floats, for rows of so many `heads` of a `width`.

    The operands' half takes K or V of some chunks of one row; the products' half all scores, padded queries, and what
    each of the chunks gives.
    """

    floats: int
    heads: int
    width: int

    def queries(self, keys: int) -> int:
        """Queries of a row at once, so that one head's scores of them of all keys fit: whole tiles, one at least."""
        most = min(MOST_QUERIES, self.floats // (aligned(keys, CHUNK_TOKENS) + 2 * self.width))
        known = heights(self.width)
        whole = next((height for height in known if height <= most), known[-1])
        return max(1, most // whole) * whole

    def tile(self, queries: int) -> int:
        """How many of so many queries are in one product."""
        known = heights(self.width)
        filled = ((height, aligned(queries, height)) for height in known if height <= queries)
        return next((height for height, padded in filled if padded <= MOST_FILLED * queries), known[-1])

    def padded(self, queries: int) -> int:
        """So many queries, filled up to whole tiles."""
        return aligned(queries, self.tile(queries))

    def chunks(self, chunks: int, queries: int) -> int:
        """Chunks at once, of one head: as many as there is room for, at least one."""
        padded = self.padded(queries)
        left = (self.floats - chunks * padded * CHUNK_TOKENS) // (padded * self.width) - 1
        return max(1, min(chunks, self.floats // (CHUNK_TOKENS * self.width), left))

    def heads_at_once(self, chunks: int, queries: int) -> int:
        """Heads of one row at once, with as many chunks as are at once; at least one."""
        operand = self.chunks(chunks, queries) * CHUNK_TOKENS * self.width
        return max(1, min(self.heads, self.floats // operand, self.floats // self._products(chunks, queries)))

    def rows(self, chunks: int, queries: int) -> int:
        """Rows of all heads at once, at least one."""
        return max(1, self.floats // (self.heads * self._products(chunks, queries)))

    def _products(self, chunks: int, queries: int) -> int:
        """Floats that one head of one row takes in the products' half."""
        padded = self.padded(queries)
        return padded * (chunks * CHUNK_TOKENS + (self.chunks(chunks, queries) + 1) * self.width)


@dataclass(frozen=True, slots=True)
class Batch:
    """Queries of R rows, equally many of each, that see keys in equally many chunks; what of them is at once.

    rows: the numbers of the rows. past: tokens before the first query, of each. tokens: where the queries are among all
    of the pass. tile: queries in one product. hidden: whether a key is after a query, (R, 1, S, keys), of keys from
    `first_hidden` on; None: none is.
    """

    rows: tuple[int, ...]
    past: tuple[int, ...]
    tokens: "slice | Numbers"
    queries: int
    tile: int
    chunks: int
    first_hidden: int
    hidden: Numbers | None
    runs: tuple[tuple[int, int], ...]
    """(first, last) of the chunks that are taken at once."""
    some: tuple[slice, ...]
    """The heads that are taken at once."""

    @property
    def shape(self) -> tuple[int, int]:
        """(R, S)."""
        return len(self.rows), self.queries


def batches(lengths: Iterable[tuple[int, int, int]], room: Room) -> Iterator[Batch]:
    """The batches of a pass whose rows have their first tokens, tokens before and new tokens (first, past, new)."""
    alike: defaultdict[tuple[int, int], list[tuple[int, int, int]]] = defaultdict(list)
    for row, (first, past, new) in enumerate(lengths):
        step = room.queries(past + new)
        for start in range(0, new, step):
            queries = min(step, new - start)
            alike[chunks_of(past + start + queries), queries].append((row, past + start, first + start))
    for (chunks, queries), members in alike.items():
        step = room.rows(chunks, queries)
        for start in range(0, len(members), step):
            yield _batch(members[start : start + step], chunks, queries, room)


def _batch(members: Sequence[tuple[int, int, int]], chunks: int, queries: int, room: Room) -> Batch:
    rows, past, tokens = (tuple(column) for column in zip(*members, strict=True))
    at_once, heads = room.chunks(chunks, queries), room.heads_at_once(chunks, queries)
    first_hidden = (min(past) + 1) // CHUNK_TOKENS * CHUNK_TOKENS
    own = np.array(past)[:, None, None] + np.arange(queries)[:, None]
    hidden = (np.arange(first_hidden, chunks * CHUNK_TOKENS) > own)[:, None]
    return Batch(
        rows=rows,
        past=past,
        tokens=_places(tokens, queries),
        queries=queries,
        tile=room.tile(queries),
        chunks=chunks,
        first_hidden=first_hidden,
        hidden=hidden if hidden.any() else None,
        runs=tuple((first, min(chunks, first + at_once)) for first in range(0, chunks, at_once)),
        some=tuple(slice(head, min(room.heads, head + heads)) for head in range(0, room.heads, heads)),
    )


def _places(first: tuple[int, ...], count: int) -> "slice | Numbers":
    """The places of `count` tokens from each of `first` on: a slice, if they follow each other."""
    if first == tuple(range(first[0], first[0] + count * len(first), count)):
        return slice(first[0], first[0] + count * len(first))
    places: Numbers = (np.array(first)[:, None] + np.arange(count)).ravel()
    return places
