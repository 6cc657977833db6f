"""`Backend.linear` of the reference port: rows kept apart, or numpy's products as they are; it knows no model."""

import numpy as np

from flexref.backend.protocol import Matrix, QuantizedMatrix
from flexref_numpy.operators import expand
from flexref_numpy.products import TILE_TOKENS, Products, Tiled
from flexref_numpy.scratch import TILE_ROWS, Numbers, Scratch, tiles

FEW_OUTPUTS = 8192
"""Rows of w in a tile for a few rows of x: their product stays near the caches."""

WIDE = np.dtype(np.float32)


class _Filled:
    """Where x (T, I) is copied to and filled up with zeros to whole tiles of `height` rows, and its product with w."""

    __slots__ = ("product", "rows", "tiled", "zeros")

    def __init__(self, scratch: Scratch, shape: tuple[int, int, int], height: int) -> None:
        tokens, outputs, inputs = shape
        held = -(-tokens // height) * height
        x, product = scratch.operand(held, inputs), scratch.product(held, outputs)
        self.rows, self.zeros = x[:tokens], x[tokens:] if held > tokens else None
        self.tiled, self.product = Tiled(x, product, height), product[:tokens]


class RowsApart:
    """x w^T + b whose rows have bits of their own, in a port's scratch."""

    def __init__(self, scratch: Scratch, products: Products) -> None:
        self._scratch, self._products = scratch, products
        self._filled = dict[tuple[int, int, int], _Filled]()

    def linear(self, x: Numbers, w: Matrix, b: Numbers | None, out: Numbers, *, add: bool) -> Numbers:
        """See `Backend.linear`.

        In the same blocks of `w`, whether it is expanded here or was before: a product's rounding may depend on its
        shape.
        """
        rows, inputs = w.shape
        # The operands' half holds a tile of w and a padded tile of x, the other one at least a tile of products.
        room = self._scratch.half // max(inputs, TILE_TOKENS) - TILE_TOKENS
        if isinstance(w, np.ndarray) and w.dtype == WIDE:
            if len(x) <= TILE_TOKENS and room >= TILE_ROWS:  # w is read once, and a tile of whole blocks may be longer
                room = max(room, min(FEW_OUTPUTS, self._scratch.half // TILE_TOKENS // TILE_ROWS * TILE_ROWS))
            if rows <= room:
                self._multiply(x, w, out, add)
            else:
                for first, last in tiles(rows, room):
                    self._multiply(x, w[first:last], out[:, first:last], add)
        else:
            for first, last in tiles(rows, room):
                operands = self._scratch.operand(TILE_TOKENS + last - first, inputs)
                self._multiply(x, expand(w, first, last, operands[TILE_TOKENS:]), out[:, first:last], add)
        if b is not None:
            out += b
        return out

    def _multiply(self, x: Numbers, w: Numbers, out: Numbers, add: bool) -> None:
        """out = x w^T, or with `add` out += x w^T, for a tile of w."""
        tokens, (outputs, inputs) = len(x), w.shape
        while tokens > TILE_TOKENS:
            most = min(tokens, self._scratch.half // outputs)  # there must be room for the product of a tile
            height = self._products.height(most, outputs, inputs)
            whole = tokens // height * height
            self._whole(x[:whole], w, out[:whole], add, height)
            x, out, tokens = x[whole:], out[whole:], tokens - whole
        if tokens:
            self._few(x, w, out, add)

    def _few(self, x: Numbers, w: Numbers, out: Numbers, add: bool) -> None:
        """The same for at most TILE_TOKENS rows of x, which are filled up."""
        shape = len(x), *w.shape
        filled = self._filled.get(shape)
        if filled is None:
            filled = self._filled[shape] = _Filled(self._scratch, shape, self._products.height(*shape))
        filled.rows[...] = x
        if filled.zeros is not None:
            filled.zeros[...] = 0
        filled.tiled.multiply(w, self._products.pool)
        np.add(out, filled.product, out=out) if add else np.copyto(out, filled.product)

    def _whole(self, x: Numbers, w: Numbers, out: Numbers, add: bool, height: int) -> None:
        """The same for whole tiles of `height` rows of x."""
        if not add:
            return self._products.multiply(x, w, out, height)
        for first, last in tiles(len(x), self._scratch.half // len(w) // height * height):
            product = self._scratch.product(last - first, len(w))
            self._products.multiply(x[first:last], w, product, height)
            out[first:last] += product
        return None


def linear(scratch: Scratch, x: Numbers, w: Matrix, b: Numbers | None, out: Numbers, *, add: bool) -> Numbers:
    """See `Backend.linear`: products of numpy as they are, for rows that need no bits of their own.

    Always in the same tiles of `w`, whether it is expanded here or was before: a product's rounding may depend on its
    shape, and a layer must give the same bits either way.
    """
    rows, inputs = w.shape
    stored_wide = not isinstance(w, QuantizedMatrix) and w[:0].dtype == np.float32
    for first, last in tiles(rows, scratch.half // inputs):
        part = w[first:last] if stored_wide else expand(w, first, last, scratch.operand(last - first, inputs))  # type: ignore[index]
        for start, end in tiles(x.shape[0], scratch.half // (last - first)) if add else ((0, x.shape[0]),):
            target = out[start:end, first:last]
            if add:
                target += np.matmul(x[start:end], part.T, out=scratch.product(end - start, last - first))
            else:
                np.matmul(x[start:end], part.T, out=target)
    if b is not None:
        out += b
    return out
