"""Matrix products of the reference port, whose rows have bits that depend on nothing but the row.

A library of BLAS does not give a row of a product the same bits whatever rows are beside it: a single row goes to
another routine, small products go to other kernels than large ones, and the rows at the edge of a kernel's block are
added up in another order. With OpenBLAS 0.3.31 that was seen of every kernel tried (SkylakeX, Haswell, Sandybridge,
Nehalem, Katmai), of some also where the number of rows is padded to any multiple. What every one of them keeps is the
order for a product of one fixed shape, and in it the order is the same for each of a few rows. So x is cut into tiles
of TILE_TOKENS rows, the last one filled up with zeros, w into blocks of rows, and every tile is multiplied by every
block in a product of its own. numpy runs the loop over them without Python.

That is no slower where the library has kernels for small products that copy nothing (processors with AVX-512): from 2
to 32 rows it is two to ten times faster, since a large product copies the weights into another order first. Elsewhere
each tile pays for that copy: README.md of the ports has the figures.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
from threadpoolctl import threadpool_info

from flexref_numpy.scratch import Numbers

TILE_TOKENS, FEW_TOKENS = 4, 2
"""Rows of x in one product, and how many there are if x has no more and the bits are the same then: see `height`."""

BLOCK_OUTPUTS, BLOCK_VALUES = 64, 1 << 17
"""Rows of w in one product: so many, or fewer of wide matrices, so that a block holds at most so many values and the
product of a tile stays below the million of multiplications up to which kernels for small products are used."""

WORTH_A_THREAD = 1 << 21
"""Multiplications that take longer than handing them to a thread does, by far."""


def blas_threads() -> int:
    """How many threads numpy's BLAS uses, as the environment or `threadpoolctl` says; 1 if it does not tell."""
    return max([library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"], default=1)


class Products:
    """Products of fixed shapes, on as many threads as numpy's BLAS would use; a thread takes whole blocks."""

    def __init__(self, threads: int) -> None:
        self._threads, self._agreeing = threads, dict[tuple[int, int], bool]()
        self._pool = ThreadPoolExecutor(threads, "product") if threads > 1 else None

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def height(self, tokens: int, outputs: int, inputs: int) -> int:
        """To how many rows x (T, I) of less than TILE_TOKENS is filled up to be multiplied by w (O, I).

        FEW_TOKENS, which takes less time, where a product of so many rows has the bits that one of TILE_TOKENS has:
        that is tried once for every shape of a block. It is so of kernels for small products, and of few others.
        """
        if tokens > FEW_TOKENS:
            return TILE_TOKENS
        block = block_outputs(inputs)
        shapes = {(min(block, outputs), inputs), (outputs % block, inputs)}
        return FEW_TOKENS if all(self._agrees(shape) for shape in shapes) else TILE_TOKENS

    def _agrees(self, shape: tuple[int, int]) -> bool:
        if shape[0] < 2:
            return True  # nothing, or a single output, whose sum knows no tiles
        if shape not in self._agreeing:
            draw = np.random.default_rng(0)
            x, w = (draw.standard_normal((rows, shape[1]), np.float32) for rows in (TILE_TOKENS, shape[0]))
            few = np.concatenate([x[:FEW_TOKENS] @ w.T, x[FEW_TOKENS:] @ w.T])
            self._agreeing[shape] = bool(np.array_equal(few, x @ w.T))
        return self._agreeing[shape]

    def multiply(self, x: Numbers, w: Numbers, out: Numbers, height: int = TILE_TOKENS) -> None:
        """out (T, O) = x (T, I) w (O, I)^T for T a multiple of `height`; each of them contiguous along its rows."""
        tokens, inputs = x.shape
        outputs = w.shape[0]
        if not tokens or not outputs:
            return
        block = block_outputs(inputs)
        blocks, whole = outputs // block, outputs // block * block
        x_tiles = x.reshape(tokens // height, height, inputs)
        if blocks:
            w_blocks = w[:whole].reshape(blocks, 1, block, inputs).transpose(0, 1, 3, 2)
            targets = out[:, :whole].reshape(*x_tiles.shape[:2], blocks, block).transpose(2, 0, 1, 3)

            def some(first: int, last: int) -> None:
                np.matmul(x_tiles, w_blocks[first:last], out=targets[first:last])

            self._spread(some, blocks, tokens * whole * inputs)
        if outputs - whole == 1:  # numpy would take another routine, which does not keep the order of every row
            np.einsum("ti,i->t", x, w[whole], out=out[:, whole])
        elif whole < outputs:
            np.matmul(x_tiles, w[whole:].T, out=out[:, whole:].reshape(*x_tiles.shape[:2], outputs - whole))

    def _spread(self, some: Callable[[int, int], None], blocks: int, multiplications: int) -> None:
        parts = min(self._threads, blocks, max(1, multiplications // WORTH_A_THREAD))
        if self._pool is None or parts == 1:
            some(0, blocks)
            return
        edges = [blocks * part // parts for part in range(parts + 1)]
        futures = [self._pool.submit(some, *edge) for edge in pairwise(edges[1:])]
        some(*edges[:2])
        for future in futures:
            future.result()


def block_outputs(inputs: int) -> int:
    """Rows of w (O, I) in one product: a power of two, for a width alone."""
    most = max(2, BLOCK_VALUES // max(1, inputs))
    return int(min(BLOCK_OUTPUTS, 1 << (most.bit_length() - 1)))
