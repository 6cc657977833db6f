"""Causal attention of some rows over their caches, so that a query's bits depend on its own row's keys alone.

Scores and results are products of one shape, a tile of queries by CHUNK_TOKENS keys (`products` says why), or of one
whose bits are seen to be the same; what the chunks give is added up one after the other. Keys after a query, and what
the last chunk is filled up with, add exact zeros: so it does not matter which queries are beside one, nor how many keys
the others have. Nor does it matter how far apart keys lie in memory: whole chunks are read where they are, if they are
float32, by queries that come alone.
"""

from collections.abc import Sequence

import numpy as np

from flexref.backend.protocol import CHUNK_TOKENS
from flexref_numpy.batches import Batch
from flexref_numpy.scratch import Numbers, Scratch
from flexref_numpy.sections import RowRecords


class Heads:
    """Some heads of a batch, and their places in the scratch, which are the same for every layer of a pass.

    P: queries, filled up to whole tiles. In the products' half lie scores, which become weights, (R, heads, P, chunks,
    CHUNK_TOKENS); padded queries, later sums, (R, heads, P, D); and what every chunk at once gives.
    """

    def __init__(self, scratch: Scratch, batch: Batch, some: slice, width: int) -> None:
        self._scratch, self._batch, self._some = scratch, batch, some
        (rows, queries), chunks, heads = batch.shape, batch.chunks, some.stop - some.start
        tiles, at_once = -(-queries // batch.tile), batch.runs[0][1]
        self._heads, self._width, padded = heads, width, tiles * batch.tile
        self._keys = [past + queries for past in batch.past]
        ends = np.cumsum([padded * size for size in (chunks * CHUNK_TOKENS, width, at_once * width)]) * rows * heads
        scores, tiled, given, _ = np.split(scratch.product(int(ends[-1])), ends)
        by_row = scores.reshape(rows, heads, tiles, batch.tile, chunks, CHUNK_TOKENS)
        self._by_tile = by_row.transpose(0, 1, 4, 2, 3, 5)
        self._tiled = tiled.reshape(rows, heads, 1, tiles, batch.tile, width)
        self._given = given.reshape(rows, heads, at_once, tiles, batch.tile, width)
        self._scores = scores.reshape(rows, heads, padded, chunks, CHUNK_TOKENS)[:, :, :queries]
        self._flat = scores.reshape(rows, heads, padded, -1)[:, :, :queries]
        self._sometimes_hidden = self._flat[..., batch.first_hidden :]
        self._by_chunk = given.reshape(rows, heads, at_once, padded, width).transpose(2, 0, 1, 3, 4)
        self._kept = tiled.reshape(rows, heads, padded, width)
        self._queries, self._rest = self._kept[:, :, :queries].transpose(0, 2, 1, 3), self._kept[:, :, queries:]
        self._sums = self._by_chunk[0] if len(batch.runs) == 1 else self._kept
        self._results = self._sums[:, :, :queries].transpose(0, 2, 1, 3)
        self._operands: dict[tuple[int, bool], tuple[Numbers, Numbers, Numbers]] = {}

    def attend(self, rows: Sequence[RowRecords], q: Numbers, scale: np.float32, out: Numbers) -> None:
        """q (R, S, H, D) -> out (R, S, H, D), of these heads; `rows`: those of the batch."""
        sharing = _sharing(rows)
        np.multiply(q[:, :, self._some], scale, out=self._queries)
        self._rest[...] = 0
        with np.errstate(over="ignore", invalid="ignore"):  # a key that is hidden below may give anything
            for run in self._batch.runs:
                self._multiply(rows, sharing, 0, run)
        self._weigh()
        for run in self._batch.runs:
            self._multiply(rows, sharing, 1, run)
            if run[0] == 0 and self._sums is self._kept:
                self._kept[...] = self._by_chunk[0]
            for chunk in range(run[0] == 0, run[1] - run[0]):
                self._sums += self._by_chunk[chunk]
        out[:, :, self._some] = self._results

    def _weigh(self) -> None:
        """Scores become weights; their sums are added up chunk after chunk."""
        flat, batch = self._flat, self._batch
        if batch.hidden is not None:
            np.copyto(self._sometimes_hidden, -np.inf, where=batch.hidden)
        flat -= np.maximum.reduce(flat, axis=-1, keepdims=True)
        np.exp(flat, out=flat)
        sums = np.add.reduce(self._scores, axis=-1)
        flat /= sums if batch.chunks == 1 else np.add.accumulate(sums, axis=-1)[..., -1:]

    def _multiply(
        self, rows: Sequence[RowRecords], sharing: Sequence[Sequence[int]], which: int, run: tuple[int, int]
    ) -> None:
        """Scores of a run's chunks (`which` 0: by K), or what they give (1: by V).

        What must be expanded of a prefix is expanded once for all rows of the batch that begin with it.
        """
        direct = self._batch.queries == 1 and rows[0].own.chunks is not None
        for places in () if direct else sharing:
            row, first = rows[places[0]], run[0]
            last = min(run[1], row.shared // CHUNK_TOKENS)
            if first < last:
                operand = self._expanded(row, which, (first, last), row.shared)
                for place in places:
                    self._multiply_by(operand, which, place, (first, last, 0))
        for place, row in enumerate(rows):
            first, last = run
            if direct:
                whole = min(last, self._keys[place] // CHUNK_TOKENS)
                if first < whole:
                    for start, end, views, there in row.pieces(first, whole, CHUNK_TOKENS):
                        assert views.chunks is not None
                        operand = views.chunks[which][self._some, there : there + end - start, None]
                        self._multiply_by(operand, which, place, (start, end, start - run[0]))
                    first = whole
            elif row.shared:
                first = max(first, row.shared // CHUNK_TOKENS)
            if first < last:
                operand = self._expanded(row, which, (first, last), self._keys[place])
                self._multiply_by(operand, which, place, (first, last, first - run[0]))

    def _multiply_by(self, operand: Numbers, which: int, place: int, chunks: tuple[int, int, int]) -> None:
        """One row's product with K^T (heads, chunks, 1, D, CHUNK_TOKENS), or V with D last.

        `chunks`: the first and last of them, and which of the run the first one is.
        """
        first, last, of_run = chunks
        of_row = self._by_tile[place, :, first:last]
        if which == 0:
            np.matmul(self._tiled[place], operand, out=of_row)
        else:
            np.matmul(of_row, operand, out=self._given[place, :, of_run : of_run + last - first])

    def _expanded(self, row: RowRecords, which: int, chunks: tuple[int, int], keys: int) -> Numbers:
        """K^T (`which` 0) or V (1) of chunks first to last in the operands' half, filled up with zeros."""
        first, last = chunks
        values, *operands = self._operand(last - first, row.own.parts[0][1] is None)
        tokens = keys - first * CHUNK_TOKENS
        if tokens < len(values):
            values[tokens:] = 0
            values = values[:tokens]
        row.expand(which, first * CHUNK_TOKENS, self._some, values)
        return operands[which]

    def _operand(self, chunks: int, plain: bool) -> tuple[Numbers, Numbers, Numbers]:
        """A place for so many chunks of keys, (T, heads, D), and the same as K^T and as V of a product."""
        found = self._operands.get((chunks, plain))
        if found is None:
            count, heads, width = chunks * CHUNK_TOKENS, self._heads, self._width
            held = self._scratch.operand(heads * count * width)
            if plain:  # each head by itself: its chunks are read once for every tile of queries
                values = held.reshape(heads, count, width).transpose(1, 0, 2)
            else:
                values = held.reshape(count, heads, width)
            split = values.reshape(chunks, CHUNK_TOKENS, heads, width, copy=False)[:, :, None]
            found = values, split.transpose(3, 0, 2, 4, 1), split.transpose(3, 0, 2, 1, 4)
            self._operands[chunks, plain] = found
        return found


def _sharing(rows: Sequence[RowRecords]) -> list[list[int]]:
    """The places of rows that begin with equally many tokens of one prefix."""
    found: dict[tuple[int, int], list[int]] = {}
    for place, row in enumerate(rows):
        if row.shared:
            found.setdefault((id(row.prefix), row.shared), []).append(place)
    return list(found.values())
