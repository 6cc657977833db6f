"""Matrix products of the reference port, whose rows have bits that depend on nothing but the row.

A library of BLAS does not give a row of a product the same bits whatever rows are beside it: a single row goes to
another routine, small products go to other kernels than large ones, and the rows at the edge of a kernel's block are
added up in another order. With OpenBLAS 0.3.31 that was seen of every kernel tried (SkylakeX, Haswell, Sandybridge,
Nehalem, Katmai), of some also where the number of rows is padded to any multiple. What every one of them keeps is the
order for a product of one fixed shape, and in it the order is the same for each of a few rows. So x is cut into tiles
of TILE_TOKENS rows, the last one filled up with zeros, w into blocks of rows, and every tile is multiplied by every
block in a product of its own. numpy runs the loop over them without Python. Tiles of other heights take their place
where their bits are seen to be the same: with kernels for small products that is so of every height, with those for
AVX2 of 8 rows and no more (of twelve rows they add up the second six in another order).

Where the library has kernels for small products that copy nothing (processors with AVX-512), one row costs what it
costs without, and 2 to 32 rows cost a half to a sixth, since a large product copies the weights into another order
first. Elsewhere each tile pays for that copy: README.md of the ports has the figures.
"""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
from threadpoolctl import threadpool_info

from flexref_numpy.scratch import Numbers

TILE_TOKENS, OTHERS = 4, (16, 8, 2)
"""Rows of x in one product, and how many it may also be: see `Products.height`."""

BLOCK_OUTPUTS, BLOCK_VALUES = 64, 1 << 17
"""Rows of w in one product: so many, or fewer of wide matrices, so that a block holds at most so many values."""

MOST_MULTIPLICATIONS = 1_000_000
"""Of one product: up to so many OpenBLAS uses kernels for small ones."""

WORTH_A_THREAD = 1 << 21
"""Multiplications that take longer than handing them to a thread does, by far."""


def blas_threads() -> int:
    """How many threads numpy's BLAS uses, as the environment or `threadpoolctl` says; 1 if it does not tell."""
    return max([library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"], default=1)


def block_outputs(inputs: int, height: int = TILE_TOKENS) -> int:
    """Rows of w (O, I) in one product with `height` rows of x: a power of two that depends on nothing else."""
    most = min(BLOCK_VALUES, MOST_MULTIPLICATIONS // height) // max(1, inputs)
    return int(min(BLOCK_OUTPUTS, 1 << (max(2, most).bit_length() - 1)))


class Tiled:
    """x (T, I) in tiles of `height` rows, of which T is a multiple, and where products go: out (T, O).

    Each is contiguous along its rows. All are views, so that one may be kept for memory that is used again.
    """

    def __init__(self, x: Numbers, out: Numbers, height: int) -> None:
        (tokens, inputs), outputs = x.shape, out.shape[1]
        block = block_outputs(inputs, height)
        self.blocks, whole = outputs // block, outputs // block * block
        self._x, self._x_tiles, self._whole = x, x.reshape(-1, height, inputs), whole
        targets = out[:, :whole].reshape(tokens // height, height, self.blocks, block)
        self._targets = targets.transpose(2, 0, 1, 3)
        self._rest = out[:, whole:].reshape(tokens // height, height, outputs - whole)
        self._column = out[:, whole] if outputs - whole == 1 else None
        self._shape = self.blocks, 1, block, inputs
        self.multiplications = tokens * whole * inputs

    def multiply(self, w: Numbers, pool: "Pool | None") -> None:
        """out = x w^T, w (O, I); a thread takes whole blocks."""
        if self.blocks:
            whole = w[: self._whole].reshape(self._shape).transpose(0, 1, 3, 2)
            if pool is None:
                np.matmul(self._x_tiles, whole, out=self._targets)
            else:
                pool.matmul(self._x_tiles, whole, self._targets, self.multiplications)
        if self._column is not None:  # numpy would take another routine, which does not keep the order of every row
            np.einsum("ti,i->t", self._x, w[self._whole], out=self._column)
        elif self._rest.size:
            np.matmul(self._x_tiles, w[self._whole :].T, out=self._rest)


class Pool:
    """Some threads that share products."""

    def __init__(self, threads: int) -> None:
        self._threads, self._pool = threads, ThreadPoolExecutor(threads, "product")

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def matmul(self, x: Numbers, w: Numbers, out: Numbers, multiplications: int) -> None:
        """out (blocks, ...) = x w, of which every thread that is worth it takes whole blocks."""
        parts = min(self._threads, len(w), max(1, multiplications // WORTH_A_THREAD))
        edges = [len(w) * part // parts for part in range(parts + 1)]

        def some(first: int, last: int) -> None:
            np.matmul(x, w[first:last], out=out[first:last])

        futures = [self._pool.submit(some, *edge) for edge in pairwise(edges[1:])]
        some(*edges[:2])
        for future in futures:
            future.result()


class Products:
    """Products of fixed shapes, on as many threads as numpy's BLAS would use."""

    def __init__(self, threads: int) -> None:
        self.pool = Pool(threads) if threads > 1 else None
        self._agreeing = dict[tuple[int, int, int], bool]()

    def close(self) -> None:
        """End the threads."""
        if self.pool is not None:
            self.pool.close()

    def height(self, tokens: int, outputs: int, inputs: int) -> int:
        """How many rows of x (T, I) one product with w (O, I) takes: whole tiles of the most that change no bit.

        Fewer rows than TILE_TOKENS are to be filled up, to so many.
        """
        if tokens < TILE_TOKENS:
            fitting = [height for height in OTHERS if tokens <= height < TILE_TOKENS]
        else:
            fitting = [height for height in OTHERS if TILE_TOKENS < height <= tokens]
        return next((height for height in fitting if self.agrees(height, outputs, inputs)), TILE_TOKENS)

    def agrees(self, height: int, outputs: int, inputs: int) -> bool:
        """Whether products of `height` rows have the bits of those of TILE_TOKENS, whichever of them a row is.

        That is tried once for every kind of shape, with random numbers: one block of w, and what is left of its rows.
        """
        block = max(block_outputs(inputs, each) for each in (height, TILE_TOKENS))
        kind = height, min(outputs, block + outputs % block), inputs
        if kind not in self._agreeing:
            draw = np.random.default_rng(0)
            x, w = (draw.standard_normal((rows, inputs), np.float32) for rows in (max(OTHERS), kind[1]))
            found, needed = (np.empty((len(x), len(w)), np.float32) for _ in range(2))
            Tiled(x[::-1].copy(), found, height).multiply(w, None)
            Tiled(x, needed, TILE_TOKENS).multiply(w, None)
            self._agreeing[kind] = bool(np.array_equal(found[::-1], needed))
        return self._agreeing[kind]

    def multiply(self, x: Numbers, w: Numbers, out: Numbers, height: int = TILE_TOKENS) -> None:
        """out (T, O) = x (T, I) w (O, I)^T for T a multiple of `height`; each of them contiguous along its rows."""
        if out.size:
            Tiled(x, out, height).multiply(w, self.pool)
