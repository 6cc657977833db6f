"""Causal attention of some rows over their caches, so that a query's bits depend on its own row's keys alone.

Scores and results are products of one shape, TILE_QUERIES queries by CHUNK_TOKENS keys (`products` says why); what the
chunks give is added up one after the other. Keys after a query, and what the last chunk is filled up with, add exact
zeros: so it does not matter which queries are beside one, nor how many keys the others have.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from flexref.backend.protocol import CHUNK_TOKENS
from flexref.backend.records import RecordLayout
from flexref.storage.quant import Quantized, dequantize
from flexref.units import aligned
from flexref_numpy.scratch import Numbers, Scratch
from flexref_numpy.sections import RowRecords, Sections

TILE_QUERIES = 2
"""Queries in one product. A decode has a single one: the other is zeros."""

MOST_QUERIES = 64
"""Queries of a row at once, so that their scores stay near the caches."""


@dataclass(frozen=True, slots=True)
class RowCaches:
    """The caches of R rows: their records, and the tokens `past` before each one's first query; all fill equally many
    chunks.
    """

    sections: Sections
    records: Sequence[RowRecords]
    past: Sequence[int]


def chunks_of(keys: int) -> int:
    """Chunks that hold so many keys."""
    return -(-keys // CHUNK_TOKENS)


def queries_at_once(scratch: Scratch, layout: RecordLayout, keys: int) -> int:
    """Queries of a row at once, so that one head's scores of them and of all keys fit: whole tiles, at least one."""
    room = scratch.half // (aligned(keys, CHUNK_TOKENS) + 3 * layout.head_width)
    return max(1, min(MOST_QUERIES, room) // TILE_QUERIES) * TILE_QUERIES


def attend_rows(scratch: Scratch, caches: RowCaches, q: Numbers, scale: np.float32, out: Numbers) -> None:
    """q (R, S, H, D) -> out (R, S, H, D), as many rows and heads at a time as the scratch holds."""
    rows, queries, heads, _ = q.shape
    room = _Room.of(scratch, caches.sections.layout, chunks_of(max(caches.past) + queries), queries)
    rows_at_once = max(1, room.pairs // heads)
    heads_at_once = min(heads, room.pairs)
    for first in range(0, rows, rows_at_once):
        last = min(rows, first + rows_at_once)
        some = RowCaches(caches.sections, caches.records[first:last], caches.past[first:last])
        for head in range(0, heads, heads_at_once):
            of = slice(head, min(heads, head + heads_at_once))
            _Heads(scratch, some, of, room, queries).attend(q[first:last, :, of], scale, out[first:last, :, of])


@dataclass(frozen=True, slots=True)
class _Room:
    """So many pairs of a row and a head fit the scratch, with so many chunks of keys of them `at_once`.

    The operands' half takes K or V, the other one padded queries, all scores, the results, and what each of the chunks
    at once gives.
    """

    pairs: int
    at_once: int
    chunks: int

    @classmethod
    def of(cls, scratch: Scratch, layout: RecordLayout, chunks: int, queries: int) -> "_Room":
        """As many chunks as there is room for, then as many pairs; at least one of each."""
        padded = aligned(queries, TILE_QUERIES)
        row, chunk, scores = (
            padded * layout.head_width,
            CHUNK_TOKENS * layout.head_width,
            chunks * padded * CHUNK_TOKENS,
        )
        at_once = max(1, min(chunks, scratch.half // chunk, (scratch.half - scores) // row - 2))
        most = min(scratch.half // (at_once * chunk), scratch.half // (scores + (at_once + 2) * row))
        return cls(max(1, most), at_once, chunks)

    def runs(self) -> Iterator[tuple[int, int]]:
        """(first, last) of the chunks that are taken at once."""
        for first in range(0, self.chunks, self.at_once):
            yield first, min(self.chunks, first + self.at_once)


class _Heads:
    """Some heads of R rows, S queries each, and their places in the scratch. P: queries filled up to whole tiles."""

    def __init__(self, scratch: Scratch, caches: RowCaches, some: slice, room: _Room, queries: int) -> None:
        self._caches, self._some, self._room, self._queries = caches, some, room, queries
        layout = caches.sections.layout
        self._shape = len(caches.records), some.stop - some.start, layout.head_width
        self._tiles = -(-queries // TILE_QUERIES)
        pairs, padded = self._shape[0] * self._shape[1], self._tiles * TILE_QUERIES
        row, held = pairs * padded * layout.head_width, pairs * room.at_once * CHUNK_TOKENS * layout.head_width
        scores = pairs * room.chunks * padded * CHUNK_TOKENS
        products = scratch.product(scores + (room.at_once + 2) * row)
        self._held = scratch.operand(held)
        self._scores, self._tiled, self._result, self._given = np.split(products, scores + row * np.arange(3))

    def attend(self, q: Numbers, scale: np.float32, out: Numbers) -> None:
        """q (R, S, heads, D) -> out (R, S, heads, D)."""
        rows, heads, width = self._shape
        padded, chunks = self._tiles * TILE_QUERIES, self._room.chunks
        scores = self._scores.reshape(rows, heads, chunks, padded, CHUNK_TOKENS)
        by_tile = self._scores.reshape(rows, heads, chunks, self._tiles, TILE_QUERIES, CHUNK_TOKENS)
        with np.errstate(over="ignore", invalid="ignore"):  # a key that is masked below may give anything
            tiled = self._tiles_of(q)
            for first, last in self._room.runs():
                k = self._expanded(0, first, last).transpose(0, 3, 1, 4, 2)
                np.matmul(tiled, k[:, :, :, None], out=by_tile[:, :, first:last])
            scores *= scale
        self._mask(scores)
        scores -= scores.max(axis=(2, 4), keepdims=True)
        np.exp(scores, out=scores)
        by_chunk = scores.sum(axis=-1)
        total = sum(by_chunk[:, :, chunk] for chunk in range(chunks))
        scores /= total[:, :, None, :, None]
        result = self._result.reshape(rows, heads, padded, width)
        result[...] = 0
        for first, last in self._room.runs():
            v = self._expanded(1, first, last).transpose(0, 3, 1, 2, 4)
            given = self._given[: rows * heads * (last - first) * padded * width]
            shape = (rows, heads, last - first, self._tiles, TILE_QUERIES, width)
            np.matmul(by_tile[:, :, first:last], v[:, :, :, None], out=given.reshape(shape))
            by_run = given.reshape(rows, heads, last - first, padded, width)
            for chunk in range(last - first):
                result += by_run[:, :, chunk]
        out[...] = result[:, :, : self._queries].transpose(0, 2, 1, 3)

    def _tiles_of(self, q: Numbers) -> Numbers:
        """q (R, S, heads, D), filled up with zeros, as (R, heads, 1, tiles, TILE_QUERIES, D)."""
        rows, heads, width = self._shape
        values = self._tiled.reshape(rows, -1, heads, width)
        values[:, : self._queries], values[:, self._queries :] = q, 0
        tiled = values.reshape(rows, self._tiles, TILE_QUERIES, heads, width)
        return tiled.transpose(0, 3, 1, 2, 4)[:, :, None]

    def _expanded(self, which: int, first: int, last: int) -> Numbers:
        """K (`which` 0) or V (1) of the chunks first to last: (R, chunks, CHUNK_TOKENS, heads, D)."""
        rows, heads, width = self._shape
        caches, layout = self._caches, self._caches.sections.layout
        count = (last - first) * CHUNK_TOKENS
        values = self._held[: rows * count * heads * width].reshape(rows, count, heads, width)
        for records, past, place in zip(caches.records, caches.past, values, strict=True):
            start, end = first * CHUNK_TOKENS, min(past + self._queries, last * CHUNK_TOKENS)
            for offset, array, of_first, of_last in records.pieces(start, end):
                codes, pairs = caches.sections.of(array, which, of_first, of_last)
                codes, tokens = codes[:, self._some], place[offset : offset + of_last - of_first]
                if pairs is None:
                    tokens[...] = codes
                else:
                    scale, zero = pairs[:, self._some, :, 0], pairs[:, self._some, :, 1]
                    dequantize(Quantized(codes, scale, zero, width, layout.group_size), out=tokens)
            place[end - start :] = 0
        return values.reshape(rows, last - first, CHUNK_TOKENS, heads, width)

    def _mask(self, scores: Numbers) -> None:
        """Keys after a query get no share, whatever they gave; scores (R, heads, chunks, P, CHUNK_TOKENS)."""
        past, (_, _, chunks, padded, _) = np.array(self._caches.past), scores.shape
        first = (int(past.min()) + 1) // CHUNK_TOKENS  # the chunks before hold no key after any query
        keys = np.arange(first * CHUNK_TOKENS, chunks * CHUNK_TOKENS).reshape(-1, 1, CHUNK_TOKENS)
        own = past[:, None] + np.minimum(np.arange(padded), self._queries - 1)
        np.copyto(scores[:, :, first:], -np.inf, where=(keys > own[:, None, :, None])[:, None])
